#include "kernels/cpu/pack.h"

#include <cstddef>
#include <cstring>
#include <memory>
#include <utility>

#include "kernels/check_args.h"
#include "kernels/float_convert.h"
#include "kernels/host_buffer.h"
#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

constexpr int kPanel = 16;
constexpr int kBf16InputMultiple = 32;

int64_t RoundUp(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

int64_t PanelStride(int in, DType dtype) {
  return (dtype == DType::kBF16 ? RoundUp(in, kBf16InputMultiple) : int64_t{in}) * kPanel;
}

size_t PanelBytes(int in, int out, DType dtype) {
  return RoundUp(out, kPanel) / kPanel * PanelStride(in, dtype) * DTypeBytes(dtype);
}

// `panels` is zero-filled. Matrix is row-major [out, in].
PackedMatrix PackMatrix(const float* matrix, int in, int out, DType dtype, void* panels) {
  const int64_t stride = PanelStride(in, dtype);
  for (int64_t o = 0; o < out; ++o) {
    const float* row = matrix + o * in;
    const int64_t panel = o / kPanel * stride;
    const int64_t column = o % kPanel;
    if (dtype == DType::kF32) {
      float* to = static_cast<float*>(panels) + panel + column;
      for (int64_t i = 0; i < in; ++i) to[i * kPanel] = row[i];
    } else {
      uint16_t* to = static_cast<uint16_t*>(panels) + panel + 2 * column;
      for (int64_t i = 0; i < in; ++i) {
        to[i / 2 * (2 * kPanel) + i % 2] = Bf16FromFloat(row[i]);
      }
    }
  }
  return {panels, stride, in, out};
}

}  // namespace

absl::StatusOr<std::unique_ptr<CpuLinear>> CpuLinear::Pack(const LinearSource& source,
                                                           DType dtype) {
  FSVD_RETURN_IF_ERROR(ValidateLinearSource(source));
  const bool dense = source.rank == 0;
  const int first_out = dense ? source.out : source.rank;
  const size_t first_bytes = ArenaAlign(PanelBytes(source.in, first_out, dtype));
  const size_t second_bytes = dense ? 0 : ArenaAlign(PanelBytes(source.rank, source.out, dtype));
  const size_t bias_bytes = RoundUp(source.out, kPanel) * sizeof(float);
  FSVD_ASSIGN_OR_RETURN(Buffer memory, AllocateHostBuffer(first_bytes + second_bytes + bias_bytes));
  auto* base = static_cast<std::byte*>(memory.data());
  PackedLinear packed = {};
  packed.in = source.in;
  packed.out = source.out;
  packed.rank = source.rank;
  packed.first = PackMatrix(dense ? source.weight : source.a, source.in, first_out, dtype, base);
  if (!dense) {
    packed.second = PackMatrix(source.b, source.rank, source.out, dtype, base + first_bytes);
  }
  auto* bias = reinterpret_cast<float*>(base + first_bytes + second_bytes);
  if (source.bias != nullptr) std::memcpy(bias, source.bias, source.out * sizeof(float));
  packed.bias = bias;
  return std::unique_ptr<CpuLinear>(new CpuLinear(source, std::move(memory), packed));
}

CpuLinear::CpuLinear(const LinearSource& source, Buffer memory, const PackedLinear& packed)
    : Linear(source.in, source.out, source.rank, memory.bytes()),
      memory_(std::move(memory)),
      packed_(packed) {}

}  // namespace flashsvd
