#ifndef FLASHSVD_KERNELS_CPU_CPU_BACKEND_H_
#define FLASHSVD_KERNELS_CPU_CPU_BACKEND_H_

#include <memory>
#include <string>
#include <string_view>

#include "kernels/backend.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/thread_pool.h"

namespace flashsvd {

// The CPU of this machine. Each operation is one parallel region of the backend's pool; regions of
// concurrent callers take turns. Tasks are blocks of rows, or heads of sequences, and a task's
// result does not depend on the others, so neither does a row's on the batch or the threads.
// Operations are done when they return.
class CpuBackend : public Backend {
 public:
  // InvalidArgument: an instruction set this CPU lacks, a dtype other than f32 and bf16, or
  // num_threads outside [0, ThreadPool::kMaxThreads]; 0 takes AvailableCpus(). isa as in
  // SelectIsa.
  static absl::StatusOr<std::unique_ptr<CpuBackend>> Create(DType dtype, int num_threads,
                                                            std::string_view isa);

  std::string_view name() const override { return name_; }
  DType dtype() const override { return dtype_; }
  int num_threads() const override { return pool_->num_threads(); }

  absl::StatusOr<std::unique_ptr<Linear>> PackLinear(const LinearSource& source) const override;
  absl::StatusOr<Buffer> Upload(const float* values, size_t count, DType as) const override;
  absl::StatusOr<Buffer> Allocate(size_t bytes) const override;

  size_t ScratchBytes(const ProjectArgs& args) const override;
  size_t ScratchBytes(const AttentionArgs& args) const override;
  size_t ScratchBytes(const ProjectAddNormArgs& args) const override;
  size_t ScratchBytes(const FeedForwardArgs& args) const override;

  absl::Status Embed(const EmbedArgs& args, Stream&) const override;
  absl::Status Project(const ProjectArgs& args, Scratch scratch, Stream&) const override;
  absl::Status Attention(const AttentionArgs& args, Scratch scratch, Stream&) const override;
  absl::Status ProjectAddNorm(const ProjectAddNormArgs& args, Scratch scratch,
                              Stream&) const override;
  absl::Status FeedForward(const FeedForwardArgs& args, Scratch scratch, Stream&) const override;
  absl::Status Pool(const PoolArgs& args, Stream&) const override;

  absl::Status Synchronize(Stream&) const override { return absl::OkStatus(); }

 private:
  CpuBackend(DType dtype, int num_threads, const std::string& isa);

  // Pointer to an element of a matrix in this backend's dtype.
  const std::byte* At(const Rows& rows, int64_t row, int64_t col = 0) const;
  std::byte* MutableAt(const Rows& rows, int64_t row, int64_t col = 0) const;

  // Runs run(first row, number of rows, workspace) for blocks that cover `rows`.
  template <class Run>
  void ForRowBlocks(int64_t rows, size_t workspace_bytes, Scratch scratch, const Run& run) const;
  int64_t RowsPerBlock(int64_t rows) const;
  // The largest block that RowsPerBlock gives for up to `rows` rows.
  int MaxBlockRows(int64_t rows) const;
  size_t RowScratchBytes(int64_t rows, size_t workspace_bytes) const;

  const std::string name_;
  const DType dtype_;
  const KernelTable& kernels_;
  const std::unique_ptr<ThreadPool> pool_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CPU_CPU_BACKEND_H_
