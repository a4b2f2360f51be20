#include "kernels/cuda/cuda_linear.h"

#include <cstring>

#include "kernels/arena.h"
#include "kernels/float_convert.h"

namespace flashsvd {
namespace {

bool WorthMultiplyingOut(const LinearSource& source) {
  const double pair = double{1} * source.rank * (source.in + source.out);
  return source.rank > 0 && double{1} * source.in * source.out <= 1.25 * pair;
}

// [out, in] = B A.
std::vector<float> Product(const LinearSource& source) {
  const size_t in = source.in, out = source.out, rank = source.rank;
  std::vector<float> product(out * in, 0.0f);
  for (size_t i = 0; i < out; ++i) {
    float* row = product.data() + i * in;
    for (size_t r = 0; r < rank; ++r) {
      const float scale = source.b[i * rank + r];
      const float* a = source.a + r * in;
      for (size_t j = 0; j < in; ++j) row[j] += scale * a[j];
    }
  }
  return product;
}

PackedMatrix ShapeOf(int n, int k) {
  return {.n = n, .k = k, .n_padded = PaddedRows(n), .k_padded = PaddedDepth(k)};
}

size_t BytesOf(const PackedMatrix& shape) {
  return PackedElements(shape.n, shape.k) * sizeof(uint16_t);
}

void Pack(const float* values, const PackedMatrix& shape, DType dtype, std::byte* image) {
  auto* out = reinterpret_cast<uint16_t*>(image);
  const size_t n_padded = shape.n_padded;
  for (int i = 0; i < shape.n; ++i) {
    for (int j = 0; j < shape.k; ++j) {
      const float value = values[static_cast<size_t>(i) * shape.k + j];
      out[(j / 8 * n_padded + i) * 8 + j % 8] =
          dtype == DType::kF16 ? F16FromFloat(value) : Bf16FromFloat(value);
    }
  }
}

}  // namespace

LinearImage PackLinearImage(const LinearSource& source, DType dtype) {
  const bool multiply_out = WorthMultiplyingOut(source);
  LinearImage image;
  image.rank = multiply_out ? 0 : source.rank;
  const bool pair = image.rank > 0;
  image.first = pair ? ShapeOf(source.rank, source.in) : ShapeOf(source.out, source.in);
  if (pair) image.second = ShapeOf(source.out, source.rank);
  image.second_offset = ArenaAlign(BytesOf(image.first));
  image.bias_offset = image.second_offset + (pair ? ArenaAlign(BytesOf(image.second)) : 0);
  image.has_bias = source.bias != nullptr;
  const size_t bias_bytes = image.has_bias ? sizeof(float) * PaddedRows(source.out) : 0;
  image.bytes.resize(image.bias_offset + bias_bytes);

  if (multiply_out) {
    const std::vector<float> product = Product(source);
    Pack(product.data(), image.first, dtype, image.bytes.data());
  } else {
    Pack(pair ? source.a : source.weight, image.first, dtype, image.bytes.data());
    if (pair) Pack(source.b, image.second, dtype, image.bytes.data() + image.second_offset);
  }
  if (image.has_bias) {
    std::memcpy(image.bytes.data() + image.bias_offset, source.bias, sizeof(float) * source.out);
  }
  return image;
}

}  // namespace flashsvd
