// x = LayerNorm(x + y), a warp or a block to a row; the sum stays in float32. d: 1 to 8192.

#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/layer_norm.cuh"

namespace flashsvd {
namespace {

template <class T, class Group>
__global__ void __launch_bounds__(Group::kMaxThreads, Group::kMinBlocks)
    AddNormKernel(AddNormParams p) {
  const int d = static_cast<int>(p.x.cols);
  const NormWeights<Group> weights(p.norm, d);
  WaitForPredecessor();
  AllowSuccessor();
  const int64_t t = Group::Row();
  if (t >= p.x.rows) return;
  T* row = static_cast<T*>(p.x.data) + t * p.x.stride;
  uint4 x[Group::kUnits], y[Group::kUnits];
  Group::Load(x, row, d);
  Group::Load(y, static_cast<const T*>(p.y.data) + t * p.y.stride, d);
  float v[Group::kUnits][kUnit];
#pragma unroll
  for (int i = 0; i < Group::kUnits; ++i) {
    float y_unit[kUnit];
    UnpackUnit<T>(v[i], x[i]);
    UnpackUnit<T>(y_unit, y[i]);
#pragma unroll
    for (int j = 0; j < kUnit; ++j) v[i][j] += y_unit[j];
  }
  StoreNormalized<Group>(row, d, v, weights, p.norm.epsilon);
}

}  // namespace

cudaError_t LaunchAddNorm(const AddNormParams& params, DType dtype, cudaStream_t stream) {
  return VisitRowGroup(params.x.rows, params.x.cols, [&]<class Group>(const LaunchShape& shape) {
    return VisitFloat(dtype, [&]<typename T>() {
      return LaunchKernel(AddNormKernel<T, Group>, shape, stream, params);
    });
  });
}

}  // namespace flashsvd
