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

// Bytes of one packed matrix, or of a factor pair, and its bias.
size_t PartBytes(int in, int out, int rank, DType dtype) {
  const int first_out = rank == 0 ? out : rank;
  return ArenaAlign(PanelBytes(in, first_out, dtype)) +
         (rank == 0 ? 0 : ArenaAlign(PanelBytes(rank, out, dtype))) +
         ArenaAlign(RoundUp(out, kPanel) * sizeof(float));
}

// Of group `group`, into PartBytes of zeros at `base`.
PackedLinear PackPart(const LinearSource& source, int group, DType dtype, std::byte* base) {
  const int in = source.in, rank = source.rank, out = source.out / source.groups;
  const int64_t first_output = int64_t{group} * out;
  const int first_out = rank == 0 ? out : rank;
  PackedLinear packed = {};
  packed.in = in;
  packed.out = out;
  packed.rank = rank;
  packed.first = PackMatrix(rank == 0 ? source.weight : source.a + int64_t{group} * rank * in, in,
                            first_out, dtype, base);
  base += ArenaAlign(PanelBytes(in, first_out, dtype));
  if (rank > 0) {
    packed.second = PackMatrix(source.b + first_output * rank, rank, out, dtype, base);
    base += ArenaAlign(PanelBytes(rank, out, dtype));
  }
  auto* bias = reinterpret_cast<float*>(base);
  if (source.bias != nullptr) std::memcpy(bias, source.bias + first_output, out * sizeof(float));
  packed.bias = bias;
  return packed;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CpuLinear>> CpuLinear::Pack(const LinearSource& source,
                                                           DType dtype) {
  FSVD_RETURN_IF_ERROR(ValidateLinearSource(source));
  const size_t part_bytes = PartBytes(source.in, source.out / source.groups, source.rank, dtype);
  FSVD_ASSIGN_OR_RETURN(Buffer memory, AllocateHostBuffer(source.groups * part_bytes));
  std::vector<PackedLinear> parts;
  for (int group = 0; group < source.groups; ++group) {
    parts.push_back(PackPart(source, group, dtype,
                             static_cast<std::byte*>(memory.data()) + group * part_bytes));
  }
  return std::unique_ptr<CpuLinear>(new CpuLinear(source, std::move(memory), std::move(parts)));
}

CpuLinear::CpuLinear(const LinearSource& source, Buffer memory, std::vector<PackedLinear> parts)
    : Linear(source.in, source.out, source.rank, source.groups, memory.bytes()),
      memory_(std::move(memory)),
      parts_(std::move(parts)) {}

}  // namespace flashsvd
