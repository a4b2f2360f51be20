#ifndef FLASHSVD_RUNTIME_TOKENIZER_H_
#define FLASHSVD_RUNTIME_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace flashsvd {

enum class Truncation : uint8_t {
  kNone,   // too many tokens is InvalidArgument
  kRight,  // keep the beginning
  kLeft,   // keep the end
};

struct EncodeOptions {
  // Limit on the result, special tokens included. REQUIRES: >= the special tokens added.
  int max_tokens = 512;
  Truncation truncation = Truncation::kRight;
  bool add_special_tokens = true;
  // Also fill Encoding::offsets.
  bool with_offsets = false;
};

// Bytes [begin, end) of the input text; {0, 0} for a special token that the text does not contain.
struct ByteSpan {
  uint32_t begin = 0;
  uint32_t end = 0;
  bool operator==(const ByteSpan&) const = default;
};

// What the model will see. Vectors keep their capacity over Clear(), so a reused Encoding stops
// allocating.
struct Encoding {
  std::vector<int32_t> ids;
  std::vector<int32_t> type_ids;  // same length
  std::vector<ByteSpan> offsets;  // same length, or empty when not asked for
  bool truncated = false;

  void Clear() {
    ids.clear();
    type_ids.clear();
    offsets.clear();
    truncated = false;
  }
};

// Text to token ids, equal to what the model's Hugging Face tokenizer gives. Immutable after
// construction; thread-safe. Time is linear in the text, and with kRight or kNone in the text up to
// the token limit.
// Text that is not UTF-8 is InvalidArgument, naming the byte offset.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Replaces `out`.
  virtual absl::Status Encode(std::string_view text, const EncodeOptions& options,
                              Encoding* out) const = 0;
  // Two texts as the model was trained to see them ([CLS] a [SEP] b [SEP], type ids 0 and 1);
  // truncates the longer one first. Offsets are relative to each text.
  virtual absl::Status EncodePair(std::string_view first, std::string_view second,
                                  const EncodeOptions& options, Encoding* out) const = 0;

  virtual int vocab_size() const = 0;
  // REQUIRES: 0 <= id < vocab_size().
  virtual std::string_view IdToToken(int32_t id) const = 0;
  // Special tokens that Encode adds to a single text.
  virtual int num_special_tokens() const = 0;
};

// Reads tokenizer.json, or vocab.txt and tokenizer_config.json where there is none, from a model
// directory. Errors name file and field: NotFound, InvalidArgument (malformed, or a kind of
// tokenizer that is not supported).
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& model_dir);

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_TOKENIZER_H_
