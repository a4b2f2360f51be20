// out[s] = pool of the rows of sequence s, optionally divided by max(its L2 norm, 1e-12).
//
// Blocks share the columns of a sequence, so that one long sequence keeps several multiprocessors
// busy; the norm, which needs all columns, is a second launch over the small [S, d] result.

#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_config.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/row_unit.cuh"

namespace flashsvd {
namespace {

constexpr int kUnitsPerBlock = 4;  // of columns: 64 bytes of a row
constexpr int kRowsAtOnce = 64;
constexpr int kColumnsPerBlock = kUnitsPerBlock * kUnit;
constexpr int kPoolThreads = kUnitsPerBlock * kRowsAtOnce;
constexpr int kNormThreads = 256;

// Grid: (blocks of columns, sequences). Thread t sums unit t % 4 of every 64th row.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kPoolThreads) PoolKernel(PoolParams p) {
  __shared__ float sums[kRowsAtOnce][kColumnsPerBlock];
  WaitForPredecessor();
  AllowSuccessor();
  const int d = static_cast<int>(p.x.cols);
  const int num_sequences =
      p.num_present == nullptr ? p.num_sequences : min(*p.num_present, p.num_sequences);
  const int first_column = blockIdx.x * kColumnsPerBlock;
  for (int s = blockIdx.y; s < num_sequences; s += gridDim.y) {
    int begin = p.cu_seqlens[s];
    int end = p.cu_seqlens[s + 1];
    if (p.pooling == Pooling::kCls) end = min(end, begin + 1);
    if (p.pooling == Pooling::kLast) begin = max(begin, end - 1);

    const int column = first_column + threadIdx.x % kUnitsPerBlock * kUnit;
    float sum[kUnit] = {};
    if (column < d) {
#pragma unroll 4
      for (int t = begin + threadIdx.x / kUnitsPerBlock; t < end; t += kRowsAtOnce) {
        float v[kUnit];
        const T* row = static_cast<const T*>(p.x.data) + t * p.x.stride;
        UnpackUnit<T>(v, LoadUnit<kWhole>(row, column, d));
#pragma unroll
        for (int j = 0; j < kUnit; ++j) sum[j] += v[j];
      }
    }
    __syncthreads();  // the sums of the sequence before have been read
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      sums[threadIdx.x / kUnitsPerBlock][threadIdx.x % kUnitsPerBlock * kUnit + j] = sum[j];
    }
    __syncthreads();
    const int c = first_column + threadIdx.x;
    if (threadIdx.x < kColumnsPerBlock && c < d) {
      float total = 0;
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) total += sums[i][threadIdx.x];
      p.out[int64_t{s} * d + c] = total / max(end - begin, 1);
    }
  }
}

// A block to a sequence.
__global__ void __launch_bounds__(kNormThreads) NormalizeKernel(float* out, int d) {
  WaitForPredecessor();
  AllowSuccessor();
  float* row = out + int64_t{blockIdx.x} * d;
  float squares = 0;
  for (int c = threadIdx.x; c < d; c += kNormThreads) squares += row[c] * row[c];
  const float norm = fmaxf(sqrtf(GroupSum<kNormThreads>(squares)), 1e-12f);
  for (int c = threadIdx.x; c < d; c += kNormThreads) row[c] /= norm;
}

}  // namespace

cudaError_t LaunchPool(const PoolParams& params, DType dtype, cudaStream_t stream) {
  const int d = static_cast<int>(params.x.cols);
  if (params.num_sequences <= 0 || d <= 0) return cudaSuccess;
  LaunchShape shape;
  shape.grid = dim3((d + kColumnsPerBlock - 1) / kColumnsPerBlock,
                    params.num_sequences < 65535 ? params.num_sequences : 65535);
  shape.block = kPoolThreads;
  const cudaError_t error = VisitFloat(dtype, [&]<typename T>() {
    return d % kUnit == 0 ? LaunchKernel(PoolKernel<T, true>, shape, stream, params)
                          : LaunchKernel(PoolKernel<T, false>, shape, stream, params);
  });
  if (error != cudaSuccess || !params.normalize) return error;
  shape.grid = params.num_sequences;
  shape.block = kNormThreads;
  return LaunchKernel(NormalizeKernel, shape, stream, params.out, d);
}

}  // namespace flashsvd
