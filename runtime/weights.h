#ifndef FLASHSVD_RUNTIME_WEIGHTS_H_
#define FLASHSVD_RUNTIME_WEIGHTS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/safetensors.h"

namespace flashsvd {

// How a linear module is stored (design.md section 7).
enum class LinearLayout : uint8_t {
  kDense,
  kFull,       // A [r, in], B [out, r]
  kPerHead,    // A [H, R, in], B [H, h, R]
  kQkvShared,  // A [r, in] shared by query, key and value, B [out, r]
};
// "dense", "full", "per_head", "qkv_shared".
std::string_view LinearLayoutName(LinearLayout layout);

// What the checkpoint says about a compressed module.
struct LowRankModule {
  LinearLayout layout = LinearLayout::kFull;
  int rank = 0;  // R for per_head, else r
  std::string method;
};

// One linear module in float32, its layout kept.
struct LinearWeights {
  std::string name;
  LinearLayout layout = LinearLayout::kDense;
  int in = 0;
  int out = 0;
  int heads = 1;              // H for per_head, else 1
  int rank = 0;               // R or r; 0 when dense
  std::vector<float> weight;  // [out, in]; dense only
  std::vector<float> a;       // [r, in] or [H, R, in]
  std::vector<float> b;       // [out, r] or [H, h, R]
  std::vector<float> bias;    // [out]

  // Elements as stored (biases left out), and of the dense module it stands for.
  int64_t parameters() const { return static_cast<int64_t>(weight.size() + a.size() + b.size()); }
  int64_t dense_parameters() const { return static_cast<int64_t>(in) * out; }
};

// Where an encoder's parameters come from, by Hugging Face name without the model prefix
// ("encoder.layer.0.attention.self.query").
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // The module `name`: y = W x + bias with W [out, in]. heads is the encoder's H and is used for
  // per_head factors alone.
  virtual absl::StatusOr<LinearWeights> LoadLinear(const std::string& name, int in, int out,
                                                   int heads) const = 0;
  virtual absl::StatusOr<std::vector<float>> LoadTensor(const std::string& name,
                                                        std::vector<int64_t> shape) const = 0;
  virtual bool Has(const std::string& name) const = 0;
};

// The checkpoint of a model directory: model.safetensors, or its sharded index. Immutable;
// thread-safe.
class Checkpoint : public WeightSource {
 public:
  // Reads headers and metadata, not the weights. Errors name file and field: an unknown
  // lowrank.format, lowrank.modules that is not the object of design.md section 7, a module whose
  // tensors are missing.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& model_dir);

  // Errors name file, tensor and the two shapes. A module may have dense or low-rank tensors, not
  // both.
  absl::StatusOr<LinearWeights> LoadLinear(const std::string& name, int in, int out,
                                           int heads) const override;
  absl::StatusOr<std::vector<float>> LoadTensor(const std::string& name,
                                                std::vector<int64_t> shape) const override;
  bool Has(const std::string& name) const override;

  // Keyed by module name without the model prefix.
  const std::map<std::string, LowRankModule>& lowrank_modules() const { return modules_; }
  // One line for each low-rank module (qkv_shared: each group) that has more parameters than the
  // dense one it replaces; from the shapes in the file.
  std::vector<std::string> Warnings() const;
  const SafetensorsFile& file() const { return *file_; }
  // "", "bert." or another prefix that the file puts before every encoder name.
  const std::string& prefix() const { return prefix_; }

 private:
  Checkpoint() = default;

  std::unique_ptr<SafetensorsFile> file_;
  std::string prefix_;
  std::map<std::string, LowRankModule> modules_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_WEIGHTS_H_
