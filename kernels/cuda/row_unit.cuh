#ifndef FLASHSVD_KERNELS_CUDA_ROW_UNIT_CUH_
#define FLASHSVD_KERNELS_CUDA_ROW_UNIT_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/ptx.cuh"

namespace flashsvd {

// A unit is eight neighbouring elements of a row, 16 bytes. Elements past the row's end are neither
// read nor written, and read as zero.
constexpr int kUnit = 8;

// Columns column to column + 7 of a row of `cols`. kWhole: cols is a multiple of 8 and the row
// aligned to 16 bytes; otherwise `aligned` says whether it is.
template <bool kWhole, class T>
__device__ __forceinline__ uint4 LoadUnit(const T* row, int column, int cols, bool aligned = true) {
  uint4 unit = make_uint4(0, 0, 0, 0);
  if (kWhole || (aligned && column + kUnit <= cols)) {
    if (column < cols) unit = *reinterpret_cast<const uint4*>(row + column);
  } else {
    auto* elements = reinterpret_cast<uint16_t*>(&unit);
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      if (column + i < cols) elements[i] = reinterpret_cast<const uint16_t*>(row)[column + i];
    }
  }
  return unit;
}

template <class T>
__device__ __forceinline__ void UnpackUnit(float (&v)[kUnit], const uint4& unit) {
  const uint32_t words[4] = {unit.x, unit.y, unit.z, unit.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = Unpack2<T>(words[i]);
    v[2 * i] = pair.x;
    v[2 * i + 1] = pair.y;
  }
}

// The same of float32 values; `row` is aligned to 16 bytes.
template <bool kWhole>
__device__ __forceinline__ void LoadFloatUnit(float (&v)[kUnit], const float* row, int column,
                                              int cols) {
  if (kWhole || column + kUnit <= cols) {
    float4 low = {}, high = {};
    if (column < cols) {
      low = *reinterpret_cast<const float4*>(row + column);
      high = *reinterpret_cast<const float4*>(row + column + 4);
    }
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
  } else {
#pragma unroll
    for (int i = 0; i < kUnit; ++i) v[i] = column + i < cols ? row[column + i] : 0.0f;
  }
}

template <bool kWhole, class T>
__device__ __forceinline__ void StoreUnit(T* row, int column, int cols, const float (&v)[kUnit],
                                          bool aligned = true) {
  if (kWhole || (aligned && column + kUnit <= cols)) {
    if (column < cols) {
      *reinterpret_cast<uint4*>(row + column) = make_uint4(
          Pack2<T>(v[0], v[1]), Pack2<T>(v[2], v[3]), Pack2<T>(v[4], v[5]), Pack2<T>(v[6], v[7]));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      if (column + i < cols) row[column + i] = static_cast<T>(v[i]);
    }
  }
}

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_ROW_UNIT_CUH_
