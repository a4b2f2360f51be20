// x[t] = LayerNorm(word[id_t] + position[p_t] + type[type_t]), a warp or a block to a row.
// d: 1 to 8192.

#include <algorithm>

#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/layer_norm.cuh"

namespace flashsvd {
namespace {

// The rows of the tables that make row t of x.
struct TableRows {
  int word = 0;
  int position = 0;
  int type = 0;

  __device__ __forceinline__ TableRows(const EmbedParams& p, int64_t t) {
    if (t >= p.x.rows) return;
    word = p.ids[t];
    position = p.positions[t];
    type = p.type_ids[t];
  }
};

// This thread's units of row `row` of a table. Tables are contiguous, so that their rows are
// aligned only if d is whole units.
template <class T, class Group>
__device__ __forceinline__ void LoadRow(uint4 (&units)[Group::kUnits], const void* table, int row,
                                        int d) {
  Group::Load(units, static_cast<const T*>(table) + int64_t{row} * d, d, Group::kWhole);
}

// Blocks of a multiprocessor, as many as their registers allow: what is under way hides latency.
template <class Group>
constexpr int kMinBlocks = Group::kThreads > 128 ? 1
                           : Group::kWhole       ? 7 - Group::kUnits
                                                 : 2;

// A group walks over rows. While it normalises one, the tables' rows for the next one are under
// way, but for those of types: they are few and stay in the L1 cache.
template <class T, class Group>
__global__ void __launch_bounds__(Group::kMaxThreads, kMinBlocks<Group>)
    EmbedKernel(EmbedParams p) {
  const int d = static_cast<int>(p.x.cols);
  const NormWeights<Group> weights(p.norm, d);
  WaitForPredecessor();
  AllowSuccessor();
  const int64_t step = int64_t{gridDim.x} * (blockDim.x / Group::kThreads);
  int64_t t = Group::Row();
  if (t >= p.x.rows) return;
  TableRows rows(p, t);
  uint4 word[Group::kUnits], position[Group::kUnits];
  LoadRow<T, Group>(word, p.word, rows.word, d);
  LoadRow<T, Group>(position, p.position, rows.position, d);
  int type_row = rows.type;
  rows = TableRows(p, t + step);
  for (; t < p.x.rows; t += step) {
    uint4 type[Group::kUnits];
    LoadRow<T, Group>(type, p.type, type_row, d);
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
    if (t + step < p.x.rows) {
      LoadRow<T, Group>(word, p.word, rows.word, d);
      LoadRow<T, Group>(position, p.position, rows.position, d);
      type_row = rows.type;
      rows = TableRows(p, t + 2 * step);
    }
    StoreNormalized<Group>(static_cast<T*>(p.x.data) + t * p.x.stride, d, v, weights,
                           p.norm.epsilon);
  }
}

}  // namespace

cudaError_t LaunchEmbed(const EmbedParams& params, DType dtype, cudaStream_t stream) {
  int device = 0;
  int num_sms = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
  }
  if (error != cudaSuccess) return error;
  return VisitRowGroup(params.x.rows, params.x.cols, [&]<class Group>(LaunchShape shape) {
    shape.grid.x = std::min(shape.grid.x, static_cast<unsigned>(num_sms * kMinBlocks<Group>));
    return VisitFloat(dtype, [&]<typename T>() {
      return LaunchKernel(EmbedKernel<T, Group>, shape, stream, params);
    });
  });
}

}  // namespace flashsvd
