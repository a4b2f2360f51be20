#ifndef FLASHSVD_KERNELS_CUDA_CUDA_BACKEND_H_
#define FLASHSVD_KERNELS_CUDA_CUDA_BACKEND_H_

#include <memory>
#include <string>
#include <string_view>

#include "kernels/backend.h"
#include "kernels/cuda/tile_policy.h"

namespace flashsvd {

// One NVIDIA device of compute capability 8.0 or newer. Operations are enqueued on the slot's
// stream and run later; kernels are chosen by tile_policy from shapes and the device alone, so the
// same batch always runs the same kernels. Errors of kernels surface in Synchronize.
class CudaBackend : public Backend {
 public:
  // dtype kF16 or kBF16. path: "" (the best for this device; environment FLASHSVD_CUDA_PATH
  // overrides), "sm80" or "sm90". InvalidArgument: another dtype or path, a path or a device that
  // is not there. num_sms: BackendOptions::cuda_num_sms.
  static absl::StatusOr<std::unique_ptr<CudaBackend>> Create(DType dtype, int device,
                                                             std::string_view path, int num_sms);

  std::string_view name() const override { return name_; }
  DType dtype() const override { return dtype_; }
  int num_threads() const override { return 1; }
  int width_multiple() const override { return 8; }
  int64_t RowStride(int64_t cols) const override;
  // Enough blocks for three rounds on 132 multiprocessors, with 12 heads; 32 x 512 tokens of
  // BERT-base then stay within 36 MiB.
  int chunk_tokens() const override { return 4096; }
  bool shares_host_memory() const override { return false; }
  bool context_may_replace_query() const override { return true; }

  absl::StatusOr<std::unique_ptr<Linear>> PackLinear(const LinearSource& source) const override;
  absl::StatusOr<Buffer> Upload(const float* values, size_t count, DType as) const override;
  absl::StatusOr<Buffer> Allocate(size_t bytes) const override;
  absl::StatusOr<Staging> AllocateStaging(size_t bytes) const override;
  absl::StatusOr<Staging> AllocateOutput(size_t bytes) const override;
  absl::StatusOr<std::unique_ptr<Stream>> MakeStream() const override;

  size_t ScratchBytes(const ProjectArgs& args) const override;
  size_t ScratchBytes(const AttentionArgs& args) const override;
  size_t ScratchBytes(const ProjectAddNormArgs& args) const override;
  size_t ScratchBytes(const FeedForwardArgs& args) const override;

  size_t AttentionScheduleBytes(int num_tokens, int num_sequences) const override;
  void WriteAttentionSchedule(const int32_t* cu_seqlens, int num_sequences, int num_tokens,
                              void* host) const override;

  absl::Status CopyToDevice(const Staging& staging, size_t offset, size_t bytes,
                            Stream& stream) const override;
  absl::Status CopyToHost(const Staging& staging, size_t offset, size_t bytes,
                          Stream& stream) const override;

  absl::Status Embed(const EmbedArgs& args, Stream& stream) const override;
  absl::Status Project(const ProjectArgs& args, Scratch scratch, Stream& stream) const override;
  absl::Status Attention(const AttentionArgs& args, Scratch scratch, Stream& stream) const override;
  absl::Status ProjectAddNorm(const ProjectAddNormArgs& args, Scratch scratch,
                              Stream& stream) const override;
  absl::Status AttentionAddNorm(const AttentionArgs& attention, const ProjectAddNormArgs& output,
                                Scratch scratch, Stream& stream) const override;
  absl::Status FeedForward(const FeedForwardArgs& args, Scratch scratch,
                           Stream& stream) const override;
  absl::Status Pool(const PoolArgs& args, Stream& stream) const override;

  absl::Status Synchronize(Stream& stream) const override;
  bool can_record() const override { return true; }
  absl::StatusOr<std::unique_ptr<Graph>> Record(
      Stream& stream, const std::function<absl::Status()>& enqueue) const override;
  absl::Status Replay(const Graph& graph, Stream& stream) const override;

 private:
  CudaBackend(DType dtype, int device, DeviceFacts facts);

  // Makes this backend's device the calling thread's.
  absl::Status UseDevice() const;
  absl::StatusOr<Buffer> AllocateHost(size_t bytes) const;
  // Copies at load; the source may go.
  absl::StatusOr<Buffer> CopyOf(const void* host, size_t bytes, const char* what) const;

  const DType dtype_;
  const int device_;
  const DeviceFacts facts_;
  const std::string name_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_CUDA_BACKEND_H_
