#include "runtime/embedding_output.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "fmt/format.h"
#include "kernels/float_convert.h"
#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

static_assert(std::endian::native == std::endian::little, "rows are written as they lie in memory");

float LoadFloat(const std::byte* at) {
  float value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

// Eight partial sums, so that the additions need not wait for each other.
double SumOfSquares(const std::byte* row, int count) {
  constexpr int kLanes = 8;
  double partial[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double value = LoadFloat(row + sizeof(float) * (i + lane));
      partial[lane] += value * value;
    }
  }
  for (; i < count; ++i) {
    const double value = LoadFloat(row + sizeof(float) * i);
    partial[i % kLanes] += value * value;
  }
  double sum = 0;
  for (double lane : partial) sum += lane;
  return sum;
}

// Element i is read from `row` before anything at or after its place is written: out <= row, and an
// output element is no wider than a float.
template <typename T, typename Convert>
void WriteRow(const std::byte* row, int count, double scale, std::byte* out, Convert convert) {
  for (int i = 0; i < count; ++i) {
    const float value = static_cast<float>(LoadFloat(row + sizeof(float) * i) * scale);
    const T converted = convert(value);
    std::memcpy(out + sizeof(T) * i, &converted, sizeof(T));
  }
}

}  // namespace

absl::StatusOr<size_t> FormatEmbeddings(std::byte* data, int num_rows, int width,
                                        const EmbeddingFormat& format) {
  FSVD_CHECK(format.dimensions >= 1 && format.dimensions <= width, "%d dimensions of %d",
             format.dimensions, width);
  const size_t row_bytes = format.dimensions * DTypeBytes(format.dtype);
  for (int s = 0; s < num_rows; ++s) {
    const std::byte* row = data + sizeof(float) * width * s;
    const double sum = SumOfSquares(row, format.dimensions);
    // The squares of finite floats do not overflow a double.
    if (!std::isfinite(sum)) {
      return absl::InternalError(
          fmt::format("the embedding of input {} has a value that is not finite", s));
    }
    const double scale = format.normalize && sum > 0 ? 1 / std::sqrt(sum) : 1;
    std::byte* out = data + row_bytes * s;
    switch (format.dtype) {
      case DType::kF32:
        WriteRow<float>(row, format.dimensions, scale, out, [](float v) { return v; });
        break;
      case DType::kF16:
        WriteRow<uint16_t>(row, format.dimensions, scale, out, F16FromFloat);
        break;
      case DType::kBF16:
        WriteRow<uint16_t>(row, format.dimensions, scale, out, Bf16FromFloat);
        break;
    }
  }
  return row_bytes * num_rows;
}

}  // namespace flashsvd
