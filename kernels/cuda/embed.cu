// x[t] = LayerNorm(word[id_t] + position[p_t] + type[type_t]), a warp or a block to a row.
// d: 1 to 8192.

#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/layer_norm.cuh"

namespace flashsvd {
namespace {

template <class T, class Group>
__global__ void __launch_bounds__(Group::kMaxThreads, Group::kMinBlocks)
    EmbedKernel(EmbedParams p) {
  const int d = static_cast<int>(p.x.cols);
  const NormWeights<Group> weights(p.norm, d);
  WaitForPredecessor();
  AllowSuccessor();
  const int64_t t = Group::Row();
  if (t >= p.x.rows) return;
  uint4 word[Group::kUnits], position[Group::kUnits], type[Group::kUnits];
  // The tables are contiguous, so that their rows are aligned only if d is whole units.
  const auto load = [&](uint4(&units)[Group::kUnits], const void* table, int32_t row) {
    Group::Load(units, static_cast<const T*>(table) + int64_t{row} * d, d, Group::kWhole);
  };
  load(word, p.word, p.ids[t]);
  load(position, p.position, p.positions[t]);
  load(type, p.type, p.type_ids[t]);
  float v[Group::kUnits][kUnit];
#pragma unroll
  for (int i = 0; i < Group::kUnits; ++i) {
    float position_unit[kUnit], type_unit[kUnit];
    UnpackUnit<T>(v[i], word[i]);
    UnpackUnit<T>(position_unit, position[i]);
    UnpackUnit<T>(type_unit, type[i]);
#pragma unroll
    for (int j = 0; j < kUnit; ++j) v[i][j] += position_unit[j] + type_unit[j];
  }
  StoreNormalized<Group>(static_cast<T*>(p.x.data) + t * p.x.stride, d, v, weights, p.norm.epsilon);
}

}  // namespace

cudaError_t LaunchEmbed(const EmbedParams& params, DType dtype, cudaStream_t stream) {
  return VisitRowGroup(params.x.rows, params.x.cols, [&]<class Group>(const LaunchShape& shape) {
    return VisitFloat(dtype, [&]<typename T>() {
      return LaunchKernel(EmbedKernel<T, Group>, shape, stream, params);
    });
  });
}

}  // namespace flashsvd
