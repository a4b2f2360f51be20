#ifndef FLASHSVD_RUNTIME_MODEL_CONFIG_H_
#define FLASHSVD_RUNTIME_MODEL_CONFIG_H_

#include <string>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace flashsvd {

// What a model directory says about its encoder: config.json and, where present, the
// sentence-transformers files.
struct ModelConfig {
  std::string model_type;  // "bert"
  int hidden = 0;          // d
  int layers = 0;
  int heads = 0;  // H
  int ffn = 0;    // F
  int vocab = 0;
  int max_positions = 0;
  int type_vocab = 0;
  float layer_norm_eps = 0;
  Activation activation = Activation::kGelu;

  // Tokens of one text, special tokens included: sentence_bert_config.json's max_seq_length where
  // there is one, never more than max_positions.
  int max_seq_length = 0;
  // modules.json and <pooling>/config.json; mean when the directory has none.
  Pooling pooling = Pooling::kMean;
  // modules.json has a Normalize module.
  bool normalize = false;

  int head_dim() const { return hidden / heads; }
};

// Reads and validates. Errors name file and field, such as
// "DIR/config.json: hidden_size: 384 is not a multiple of num_attention_heads 7".
// NotFound: config.json is missing. InvalidArgument: malformed JSON, a missing or ill-typed field,
// a size that is out of range, an architecture, activation, position embedding or pooling that is
// not supported.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir);

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_MODEL_CONFIG_H_
