#ifndef FLASHSVD_RUNTIME_RANDOM_WEIGHTS_H_
#define FLASHSVD_RUNTIME_RANDOM_WEIGHTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/model_config.h"
#include "runtime/weights.h"

namespace flashsvd {

struct RandomWeightsOptions {
  // Layout of query, key and value; attention output and feed-forward are then full factor pairs,
  // or dense with kDense.
  LinearLayout layout = LinearLayout::kDense;
  int rank_qkv = 0;  // R per head for kPerHead, else r
  int rank_ffn = 0;
  int rank_out = 0;  // attention output
  uint64_t seed = 1;
};

// Weights of any shape without a checkpoint, for benchmarks and tests: Gaussian values scaled so
// that activations keep their magnitude from layer to layer. A tensor depends on seed and name
// alone. Thread-safe.
class RandomWeights : public WeightSource {
 public:
  explicit RandomWeights(const RandomWeightsOptions& options) : options_(options) {}

  absl::StatusOr<LinearWeights> LoadLinear(const std::string& name, int in, int out,
                                           int heads) const override;
  absl::StatusOr<std::vector<float>> LoadTensor(const std::string& name,
                                                std::vector<int64_t> shape) const override;
  bool Has(const std::string&) const override { return true; }

 private:
  std::vector<float> Gaussian(const std::string& name, int64_t count, double deviation,
                              double mean = 0) const;

  RandomWeightsOptions options_;
};

// "minilm" (6 layers, d 384, H 12, F 1536), "bert-base" (12, 768, 12, 3072), "bert-large"
// (24, 1024, 16, 4096). InvalidArgument lists the names.
absl::StatusOr<ModelConfig> NamedShape(const std::string& name);

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_RANDOM_WEIGHTS_H_
