// Memory, streams and graphs of the CUDA backend; its operations are in cuda_operations.cc.

#include "kernels/cuda/cuda_backend.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels/check_args.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_linear.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/launch.h"
#include "kernels/float_convert.h"
#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

std::string DeviceName(int device) { return "cuda:" + std::to_string(device); }

class CudaGraph : public Graph {
 public:
  explicit CudaGraph(cudaGraphExec_t exec) : exec_(exec) {}
  ~CudaGraph() override { cudaGraphExecDestroy(exec_); }
  cudaGraphExec_t exec() const { return exec_; }

 private:
  cudaGraphExec_t exec_;
};

// Filling memory and copying to it may still be under way when the call returns, in the default
// stream, which the streams of slots do not wait for.
absl::Status FinishLoading(const std::string& what) {
  return CudaStatus(cudaStreamSynchronize(cudaStreamLegacy), what);
}

// Values as `as`, on the host.
std::vector<std::byte> Convert(const float* values, size_t count, DType as) {
  std::vector<std::byte> image(count * DTypeBytes(as));
  if (as == DType::kF32) {
    if (count > 0) std::memcpy(image.data(), values, image.size());
    return image;
  }
  auto* out = reinterpret_cast<uint16_t*>(image.data());
  for (size_t i = 0; i < count; ++i) {
    out[i] = as == DType::kF16 ? F16FromFloat(values[i]) : Bf16FromFloat(values[i]);
  }
  return image;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaBackend>> CudaBackend::Create(DType dtype, int device,
                                                                 std::string_view path,
                                                                 int num_sms) {
  if (dtype == DType::kF32) {
    return absl::InvalidArgumentError("CUDA devices compute in f16 and bf16, not f32");
  }
  std::string chosen(path);
  if (const char* forced = std::getenv("FLASHSVD_CUDA_PATH"); chosen.empty() && forced != nullptr) {
    chosen = forced;
  }
  if (!chosen.empty() && chosen != "sm80" && chosen != "sm90") {
    return absl::InvalidArgumentError("CUDA path is \"" + chosen + "\"; there are sm80 and sm90");
  }
  FSVD_ASSIGN_OR_RETURN(DeviceFacts facts, ReadDeviceFacts(device));
  // Hopper's kernels use instructions that neither older nor newer architectures have.
  const bool hopper = facts.compute_capability == 90;
  if (chosen == "sm90" && !hopper) {
    return absl::InvalidArgumentError("CUDA path is sm90, " + DeviceName(device) +
                                      " has compute capability " +
                                      std::to_string(facts.compute_capability));
  }
  facts.path = hopper && chosen != "sm80" ? KernelPath::kSm90 : KernelPath::kSm80;
  if (num_sms > 0) facts.num_sms = num_sms;
  auto backend = std::unique_ptr<CudaBackend>(new CudaBackend(dtype, device, facts));
  FSVD_RETURN_IF_ERROR(backend->UseDevice());
  // Touches the device, so that a broken one is an error here and not of the first batch.
  FSVD_RETURN_IF_ERROR(CudaStatus(cudaFree(nullptr), "starting " + DeviceName(device)));
  return backend;
}

CudaBackend::CudaBackend(DType dtype, int device, DeviceFacts facts)
    : dtype_(dtype),
      device_(device),
      facts_(facts),
      name_(DeviceName(device) + (facts.path == KernelPath::kSm90 ? "/sm90" : "/sm80")) {}

absl::Status CudaBackend::UseDevice() const {
  return CudaStatus(cudaSetDevice(device_), "selecting " + DeviceName(device_));
}

absl::StatusOr<Buffer> CudaBackend::Allocate(size_t bytes) const {
  FSVD_RETURN_IF_ERROR(UseDevice());
  const std::string what = DeviceName(device_) + ": an allocation";
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes == 0 ? 1 : bytes);
  if (error == cudaErrorMemoryAllocation) return OutOfDeviceMemory(bytes, what);
  FSVD_RETURN_IF_ERROR(CudaStatus(error, what));
  CountAllocation();
  Buffer buffer(data, bytes, [](void* p) { cudaFree(p); });
  FSVD_RETURN_IF_ERROR(CudaStatus(cudaMemset(data, 0, bytes == 0 ? 1 : bytes), what));
  FSVD_RETURN_IF_ERROR(FinishLoading(what));
  return buffer;
}

absl::StatusOr<Buffer> CudaBackend::CopyOf(const void* host, size_t bytes, const char* what) const {
  FSVD_ASSIGN_OR_RETURN(Buffer buffer, Allocate(bytes));
  const std::string copying = DeviceName(device_) + ": copying " + what;
  FSVD_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpy(buffer.data(), host, bytes, cudaMemcpyHostToDevice), copying));
  FSVD_RETURN_IF_ERROR(FinishLoading(copying));
  return buffer;
}

absl::StatusOr<std::unique_ptr<Linear>> CudaBackend::PackLinear(const LinearSource& source) const {
  FSVD_RETURN_IF_ERROR(ValidateLinearSource(source));
  LinearImage image = PackLinearImage(source, dtype_);
  FSVD_ASSIGN_OR_RETURN(Buffer memory, CopyOf(image.bytes.data(), image.bytes.size(), "weights"));
  const auto* base = static_cast<const std::byte*>(memory.data());
  image.first.data = base;
  std::vector<OutputMatrix> outputs;
  for (int group = 0; group < image.groups; ++group) {
    OutputMatrix output = {image.rank > 0 ? image.second : image.first};
    if (image.rank > 0) output.w.data = base + image.second_offset + group * image.second_bytes;
    if (image.has_bias) {
      output.bias =
          reinterpret_cast<const float*>(base + image.bias_offset + group * image.bias_bytes);
    }
    outputs.push_back(output);
  }
  return std::make_unique<CudaLinear>(source.in, source.out, image.rank, std::move(memory),
                                      image.first, std::move(outputs));
}

absl::StatusOr<Buffer> CudaBackend::Upload(const float* values, size_t count, DType as) const {
  const std::vector<std::byte> image = Convert(values, count, as);
  return CopyOf(image.data(), image.size(), "a table");
}

absl::StatusOr<Staging> CudaBackend::AllocateStaging(size_t bytes) const {
  FSVD_ASSIGN_OR_RETURN(Buffer device, Allocate(bytes));
  FSVD_ASSIGN_OR_RETURN(Buffer host, AllocateHost(bytes));
  return Staging(std::move(host), std::move(device));
}

absl::StatusOr<Staging> CudaBackend::AllocateOutput(size_t bytes) const {
  FSVD_ASSIGN_OR_RETURN(Buffer host, AllocateHost(bytes));
  return Staging(std::move(host), Buffer());
}

// Page-locked, and at the same address for the device.
absl::StatusOr<Buffer> CudaBackend::AllocateHost(size_t bytes) const {
  FSVD_RETURN_IF_ERROR(UseDevice());
  void* data = nullptr;
  const cudaError_t error = cudaHostAlloc(&data, bytes == 0 ? 1 : bytes, cudaHostAllocMapped);
  if (error == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    return absl::ResourceExhaustedError("cannot allocate " + std::to_string(bytes) +
                                        " bytes of page-locked host memory");
  }
  FSVD_RETURN_IF_ERROR(CudaStatus(error, "allocating page-locked host memory"));
  CountAllocation();
  std::memset(data, 0, bytes);
  return Buffer(data, bytes, [](void* p) { cudaFreeHost(p); });
}

absl::StatusOr<std::unique_ptr<Stream>> CudaBackend::MakeStream() const {
  FSVD_RETURN_IF_ERROR(UseDevice());
  cudaStream_t stream = nullptr;
  FSVD_RETURN_IF_ERROR(CudaStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                                  DeviceName(device_) + ": making a stream"));
  return std::make_unique<CudaStream>(stream);
}

absl::Status CudaBackend::CopyToDevice(const Staging& staging, size_t offset, size_t bytes,
                                       Stream& stream) const {
  FSVD_CHECK(offset + bytes <= staging.bytes(), "bytes [%zu, %zu) of %zu", offset, offset + bytes,
             staging.bytes());
  FSVD_RETURN_IF_ERROR(UseDevice());
  std::byte* to = static_cast<std::byte*>(staging.device()) + offset;
  const std::byte* from = static_cast<const std::byte*>(staging.host()) + offset;
  constexpr size_t kUnit = 16;
  const cudaError_t error =
      offset % kUnit == 0 && bytes % kUnit == 0
          ? LaunchCopy(to, from, bytes, StreamOf(stream))
          : cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, StreamOf(stream));
  return CudaStatus(error, name_ + ": copying " + std::to_string(bytes) + " bytes to the device");
}

absl::Status CudaBackend::CopyToHost(const Staging& staging, size_t offset, size_t bytes,
                                     Stream& stream) const {
  FSVD_CHECK(offset + bytes <= staging.bytes(), "bytes [%zu, %zu) of %zu", offset, offset + bytes,
             staging.bytes());
  if (staging.device() == staging.host()) return absl::OkStatus();
  FSVD_RETURN_IF_ERROR(UseDevice());
  return CudaStatus(cudaMemcpyAsync(static_cast<std::byte*>(staging.host()) + offset,
                                    static_cast<const std::byte*>(staging.device()) + offset, bytes,
                                    cudaMemcpyDeviceToHost, StreamOf(stream)),
                    name_ + ": copying " + std::to_string(bytes) + " bytes to the host");
}

absl::Status CudaBackend::Synchronize(Stream& stream) const {
  FSVD_RETURN_IF_ERROR(UseDevice());
  return CudaStatus(cudaStreamSynchronize(StreamOf(stream)), name_);
}

absl::StatusOr<std::unique_ptr<Graph>> CudaBackend::Record(
    Stream& stream, const std::function<absl::Status()>& enqueue) const {
  const std::string what = name_ + ": recording a graph";
  FSVD_RETURN_IF_ERROR(UseDevice());
  FSVD_RETURN_IF_ERROR(
      CudaStatus(cudaStreamBeginCapture(StreamOf(stream), cudaStreamCaptureModeThreadLocal), what));
  const absl::Status enqueued = enqueue();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(StreamOf(stream), &graph);
  const auto drop = [&graph] {
    if (graph != nullptr) cudaGraphDestroy(graph);
  };
  if (!enqueued.ok() || ended != cudaSuccess) {
    drop();
    return enqueued.ok() ? CudaStatus(ended, what) : enqueued;
  }
  cudaGraphExec_t exec = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&exec, graph, 0);
  drop();
  FSVD_RETURN_IF_ERROR(CudaStatus(made, what));
  auto recorded = std::make_unique<CudaGraph>(exec);
  // The device's part of the graph is set up now, not at the first replay.
  FSVD_RETURN_IF_ERROR(CudaStatus(cudaGraphUpload(exec, StreamOf(stream)), what));
  FSVD_RETURN_IF_ERROR(Synchronize(stream));
  return recorded;
}

absl::Status CudaBackend::Replay(const Graph& graph, Stream& stream) const {
  FSVD_RETURN_IF_ERROR(UseDevice());
  return CudaStatus(cudaGraphLaunch(static_cast<const CudaGraph&>(graph).exec(), StreamOf(stream)),
                    name_ + ": replaying a graph");
}

}  // namespace flashsvd
