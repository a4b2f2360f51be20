#include "kernels/cuda/cuda_linear.h"

#include <cstring>

#include "kernels/arena.h"
#include "kernels/float_convert.h"

namespace flashsvd {
namespace {

bool WorthMultiplyingOut(const LinearSource& source) {
  const double pair = double{1} * source.rank * (source.in + source.out);
  return source.rank > 0 && source.groups == 1 && double{1} * source.in * source.out <= 1.25 * pair;
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

// `rows` rows of `values`, to those from `first_row` on.
void PackRows(const float* values, int first_row, int rows, const PackedMatrix& shape, DType dtype,
              std::byte* image) {
  auto* out = reinterpret_cast<uint16_t*>(image);
  const size_t n_padded = shape.n_padded;
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < shape.k; ++j) {
      const float value = values[static_cast<size_t>(i) * shape.k + j];
      out[(j / 8 * n_padded + first_row + i) * 8 + j % 8] =
          dtype == DType::kF16 ? F16FromFloat(value) : Bf16FromFloat(value);
    }
  }
}
void Pack(const float* values, const PackedMatrix& shape, DType dtype, std::byte* image) {
  PackRows(values, 0, shape.n, shape, dtype, image);
}

}  // namespace

LinearImage PackLinearImage(const LinearSource& source, DType dtype) {
  const bool multiply_out = WorthMultiplyingOut(source);
  LinearImage image;
  image.rank = multiply_out ? 0 : source.rank;
  image.groups = source.groups;
  const bool pair = image.rank > 0;
  const int group_out = source.out / source.groups;
  const int group_rows = source.groups == 1 ? source.rank : PaddedRows(source.rank);
  image.first = ShapeOf(pair ? source.groups * group_rows : source.out, source.in);
  image.second_offset = ArenaAlign(BytesOf(image.first));
  if (pair) {
    image.second = ShapeOf(group_out, source.rank);
    image.second_bytes = ArenaAlign(BytesOf(image.second));
  }
  image.bias_offset = image.second_offset + source.groups * image.second_bytes;
  image.has_bias = source.bias != nullptr;
  if (image.has_bias) image.bias_bytes = ArenaAlign(sizeof(float) * PaddedRows(group_out));
  image.bytes.resize(image.bias_offset + source.groups * image.bias_bytes);

  std::byte* bytes = image.bytes.data();
  if (multiply_out) {
    Pack(Product(source).data(), image.first, dtype, bytes);
  } else if (!pair) {
    Pack(source.weight, image.first, dtype, bytes);
  }
  for (int group = 0; group < source.groups; ++group) {
    const size_t first_output = static_cast<size_t>(group) * group_out;
    if (pair) {
      PackRows(source.a + static_cast<size_t>(group) * source.rank * source.in, group * group_rows,
               source.rank, image.first, dtype, bytes);
      Pack(source.b + first_output * source.rank, image.second, dtype,
           bytes + image.second_offset + group * image.second_bytes);
    }
    if (image.has_bias) {
      std::memcpy(bytes + image.bias_offset + group * image.bias_bytes, source.bias + first_output,
                  sizeof(float) * group_out);
    }
  }
  return image;
}

}  // namespace flashsvd
