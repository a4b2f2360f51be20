#ifndef FLASHSVD_KERNELS_REFERENCE_REFERENCE_H_
#define FLASHSVD_KERNELS_REFERENCE_REFERENCE_H_

#include <memory>
#include <string_view>
#include <vector>

#include "kernels/backend.h"

namespace flashsvd {

// Every operation as its formula reads: one row at a time, double accumulation, nothing fused.
//   f32   the oracle: every intermediate is double, only the result is rounded to float.
//   bf16, f16  the error yardstick: what a library that runs one operation at a time gives. Weights
//         and each array it would write are rounded to the dtype: the rank middle, projection
//         outputs, activations, residual sums, attention scores and probabilities, LayerNorm
//         outputs. A fused kernel in that dtype may err at most twice as much against the oracle.
// Single-threaded. Unlike other backends its operations allocate; it needs no scratch.
class ReferenceBackend : public Backend {
 public:
  static absl::StatusOr<std::unique_ptr<ReferenceBackend>> Create(DType dtype);

  std::string_view name() const override { return "reference"; }
  DType dtype() const override { return dtype_; }
  int num_threads() const override { return 1; }

  absl::StatusOr<std::unique_ptr<Linear>> PackLinear(const LinearSource& source) const override;
  absl::StatusOr<Buffer> Upload(const float* values, size_t count, DType as) const override;
  absl::StatusOr<Buffer> Allocate(size_t bytes) const override;

  size_t ScratchBytes(const ProjectArgs&) const override { return 0; }
  size_t ScratchBytes(const AttentionArgs&) const override { return 0; }
  size_t ScratchBytes(const ProjectAddNormArgs&) const override { return 0; }
  size_t ScratchBytes(const FeedForwardArgs&) const override { return 0; }

  absl::Status Embed(const EmbedArgs& args, Stream&) const override;
  absl::Status Project(const ProjectArgs& args, Scratch scratch, Stream&) const override;
  absl::Status Attention(const AttentionArgs& args, Scratch scratch, Stream&) const override;
  absl::Status ProjectAddNorm(const ProjectAddNormArgs& args, Scratch scratch,
                              Stream&) const override;
  absl::Status FeedForward(const FeedForwardArgs& args, Scratch scratch, Stream&) const override;
  absl::Status Pool(const PoolArgs& args, Stream&) const override;

  absl::Status Synchronize(Stream&) const override { return absl::OkStatus(); }

 private:
  using Row = std::vector<double>;

  explicit ReferenceBackend(DType dtype) : dtype_(dtype) {}

  // An intermediate as this dtype keeps it.
  double Round(double value) const;
  double Element(const void* data, int64_t index) const;
  Row Load(const Rows& rows, int64_t row) const;
  void Store(const Row& values, const Rows& rows, int64_t row) const;

  Row Apply(const Linear& linear, const Row& x) const;
  Row Activate(Activation activation, Row x) const;
  Row Norm(const Row& x, const LayerNormParams& norm) const;
  Row AddNorm(const Row& x, const Row& y, const LayerNormParams& norm) const;
  // One query of a head over its sequence. key_columns: [d_qk][tokens]   values: [tokens][d_v]
  Row Attend(const Row& q, const std::vector<Row>& key_columns, const std::vector<Row>& values,
             float scale) const;

  const DType dtype_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_REFERENCE_REFERENCE_H_
