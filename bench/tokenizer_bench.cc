// Sentences per second of the tokenizer on one thread, with the vocabulary of all-MiniLM-L6-v2.
//   tokenizer_bench [google benchmark flags]

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "benchmark/benchmark.h"
#include "runtime/tokenizer.h"

namespace flashsvd {
namespace {

// 22 to 24 words each.
constexpr std::string_view kSentences[] = {
    "The committee will publish its findings next spring, after two rounds of interviews with the "
    "engineers who built and operated the old pumping station.",
    "Heavy rain closed both mountain roads on Tuesday evening, and nearly four hundred travellers "
    "spent the night in schools, churches and private homes.",
    "She unwrapped the violin slowly, checked every string against the piano, and only then "
    "admitted that the repair had been worth its astonishing price.",
    "Our latest measurements show that compressing the attention weights saves memory, but naive "
    "implementations lose most of that advantage to additional kernel launches and "
    "synchronization.",
    "If the warehouse doesn't confirm the order by 17:30, please call Ms. O'Neill directly and ask "
    "for the tracking number of shipment #4471-B.",
    "Critics called the remake unnecessary; audiences disagreed, buying 1.2 million tickets during "
    "its first weekend and queueing around the block in several European capitals.",
    "Photosynthesis converts light into chemical energy, which plants store as carbohydrates and "
    "later release through respiration whenever growth or maintenance of their tissue requires it.",
    "A café in São Paulo's old centre serves crème brûlée beside pão de queijo, and the naïve "
    "visitor usually orders both at once.",
};
constexpr int kNumSentences = sizeof(kSentences) / sizeof(kSentences[0]);

std::unique_ptr<Tokenizer> LoadOrDie() {
  auto tokenizer = LoadTokenizer(std::string(FSVD_TEST_DATA) + "/tokenizer");
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
    std::exit(1);
  }
  return *std::move(tokenizer);
}

void EncodeAll(benchmark::State& state, bool with_offsets) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadOrDie();
  EncodeOptions options;
  options.max_tokens = 256;
  options.with_offsets = with_offsets;
  Encoding encoding;
  int64_t bytes = 0;
  for (auto unused : state) {
    for (const std::string_view sentence : kSentences) {
      if (const absl::Status status = tokenizer->Encode(sentence, options, &encoding);
          !status.ok()) {
        state.SkipWithError(status.ToString().c_str());
        return;
      }
      benchmark::DoNotOptimize(encoding.ids.data());
      bytes += static_cast<int64_t>(sentence.size());
    }
  }
  state.SetItemsProcessed(state.iterations() * kNumSentences);
  state.SetBytesProcessed(bytes);
}

void BM_EncodeSentences(benchmark::State& state) { EncodeAll(state, false); }
BENCHMARK(BM_EncodeSentences);

void BM_EncodeSentencesWithOffsets(benchmark::State& state) { EncodeAll(state, true); }
BENCHMARK(BM_EncodeSentencesWithOffsets);

// 1 MiB of one repeated string, as an adversary would send it, to the last token.
void BM_EncodeMebibyte(benchmark::State& state, std::string_view repeated) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadOrDie();
  std::string text;
  while (text.size() + repeated.size() <= 1 << 20) text += repeated;
  EncodeOptions options;
  options.truncation = Truncation::kLeft;
  Encoding encoding;
  for (auto unused : state) {
    if (!tokenizer->Encode(text, options, &encoding).ok()) state.SkipWithError("failed");
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
}
BENCHMARK_CAPTURE(BM_EncodeMebibyte, one_letter, "a")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_EncodeMebibyte, words, "unaffordability ")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_EncodeMebibyte, ideographs, "\xE6\xBC\xA2")->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_EncodeMebibyte, stripped_marks, "\xCC\x81\xCC\xA3")
    ->Unit(benchmark::kMillisecond);
// Marks that stay and have to be put in canonical order.
BENCHMARK_CAPTURE(BM_EncodeMebibyte, reordered_marks, "\xE3\x80\xAE\xCC\x81\xE1\xAD\x84\xCC\xA3")
    ->Unit(benchmark::kMillisecond);

void BM_LoadTokenizer(benchmark::State& state) {
  for (auto unused : state) benchmark::DoNotOptimize(LoadOrDie());
}
BENCHMARK(BM_LoadTokenizer)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace flashsvd

BENCHMARK_MAIN();
