#include "kernels/cuda/tensor_map.h"

namespace flashsvd {
namespace {

// The driver's encoder, looked up so that the program also starts where there is no driver.
using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

EncodeTiled FindEncoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess
             ? reinterpret_cast<EncodeTiled>(function)
             : nullptr;
}

template <int kRank>
cudaError_t Encode(const void* data, const cuuint64_t (&dims)[kRank],
                   const cuuint64_t (&strides)[kRank - 1], const cuuint32_t (&box)[kRank],
                   CUtensorMapSwizzle swizzle, CUtensorMap* map) {
  static const EncodeTiled encode = FindEncoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint32_t element_strides[kRank];
  for (cuuint32_t& stride : element_strides) stride = 1;
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT16, kRank, const_cast<void*>(data), dims, strides,
             box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

cuuint64_t U64(int64_t v) { return static_cast<cuuint64_t>(v); }
cuuint32_t U32(int64_t v) { return static_cast<cuuint32_t>(v); }

}  // namespace

cudaError_t SwizzledRowsMap(const Rows& x, int rows, CUtensorMap* map) {
  return Encode<2>(x.data, {U64(x.cols), U64(x.rows)}, {U64(2 * x.stride)}, {64, U32(rows)},
                   CU_TENSOR_MAP_SWIZZLE_128B, map);
}

cudaError_t SwizzledColumnsMap(const Rows& x, int rows, int cols, CUtensorMap* map) {
  return Encode<2>(x.data, {U64(x.cols), U64(x.rows)}, {U64(2 * x.stride)}, {U32(cols), U32(rows)},
                   CU_TENSOR_MAP_SWIZZLE_128B, map);
}

cudaError_t CoreMatrixRowsMap(const Rows& x, int rows, int cols, CUtensorMap* map) {
  return Encode<3>(x.data, {8, U64(x.rows), U64((x.cols + 7) / 8)}, {U64(2 * x.stride), 16},
                   {8, U32(rows), U32(cols / 8)}, CU_TENSOR_MAP_SWIZZLE_NONE, map);
}

cudaError_t PackedMatrixMap(const PackedMatrix& w, int rows, int depth, CUtensorMap* map) {
  return Encode<3>(w.data, {64, U64(w.n_padded / 8), U64(w.k_padded / 8)},
                   {128, U64(16 * int64_t{w.n_padded})}, {64, U32(rows / 8), U32(depth / 8)},
                   CU_TENSOR_MAP_SWIZZLE_NONE, map);
}

}  // namespace flashsvd
