// Softmax attention within each sequence with mma.sync m16n8k16 and cp.async, for any device from
// 8.0 on, any sequence length, and d_qk and d_v any multiples of 8 up to 256.
//
// A block has one tile of query rows of one head and walks the keys of its sequence through a ring
// of kStages buffers of kKeys keys. A warp has its rows' scores, probabilities and outputs in
// registers: the accumulator of Q K', converted, is the A operand of P V. The softmax is online,
// in powers of two with the scale folded into the exponent.
//
// Tilings: rows 64 or 128; the number of keys at a time follows from the head widths. A
// scale that is not positive is refused, since the maximum is taken before it.

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_config.cuh"
#include "kernels/cuda/mma_operand.cuh"
#include "kernels/cuda/reduce.cuh"

namespace flashsvd {
namespace {

// Blocks that the registers of a multiprocessor are shared out for.
constexpr int MinBlocks(int width, int rows) {
  if (width > 64) return 1;
  return (width > 40 ? 3 : 4) - (rows > 64 ? 1 : 0);
}

// kWidth: both head widths padded to the same multiple of 8.
template <int kWidth, int kRows_>
struct Shape {
  static constexpr int kRows = kRows_;
  // Tiles of 16 query rows, a warp: two halve what is read of K and V, if registers allow.
  static constexpr int kWarpTiles = kRows == 128 && kWidth <= 64 ? 2 : 1;
  static constexpr int kWarpRows = 16 * kWarpTiles;
  static constexpr int kThreads = kRows / kWarpRows * 32;
  static constexpr int kKeys = kWidth > 128 ? 32 : 64;
  static constexpr int kStages = kWidth > 64 ? 2 : 3;
  static constexpr int kMinBlocks = MinBlocks(kWidth, kRows);
  static constexpr int kUnits = kWidth / 8;
  static constexpr int kSteps = (kUnits + 1) / 2;  // of k in Q K'; the last may be half a step
  // Elements of shared memory: Q, then stages of K and V.
  using Layout = RowLayout<kUnits>;
  static constexpr int kElementsQ = kRows * Layout::kRowUnits * 8;
  static constexpr int kElementsK = kKeys * Layout::kRowUnits * 8;
  static constexpr int kStageElements = 2 * kElementsK;
  static constexpr size_t kSharedBytes = size_t{2} * (kElementsQ + kStages * kStageElements);
  // Wider heads leave no registers for Q; it is then loaded for each use.
  static constexpr bool kKeepQ = kWidth <= 64;
};

// Starts copying columns [0, width) of kRows rows; zeros for the rows from `rows` on. A thread
// copies one unit of several rows.
template <class S, int kRows, class T>
__device__ __forceinline__ void CopyHead(T* operand, const T* source, int stride, int rows,
                                         int width) {
  constexpr int kRowsAtOnce = S::kThreads / S::kUnits;
  const int thread_row = threadIdx.x / S::kUnits;
  const int unit = threadIdx.x % S::kUnits;
  const T* thread_source = source + thread_row * stride + unit * 8;
  const auto copy = [&](int end) {
#pragma unroll
    for (int r = 0; r < kRows; r += kRowsAtOnce) {
      if (thread_row < (kRows - r < kRowsAtOnce ? kRows - r : kRowsAtOnce)) {
        const bool inside = r + thread_row < end;
        CopyAsync16(operand + S::Layout::Unit(r / 8 * 8, r % 8 + thread_row, unit) * 8,
                    inside ? thread_source + r * stride : source, inside);
      }
    }
  };
  if (unit * 8 >= width) return;
  if (rows >= kRows) {
    copy(INT32_MAX);
  } else {
    copy(rows);
  }
}

// Clears the units that no copy writes: those past a head's width, up to the padded width.
template <class S, class T>
__device__ __forceinline__ void ClearPadding(T* shared, int d_qk, int d_v) {
  const auto clear = [](T* operand, int rows, int width) {
    for (int u = width / 8; u < S::kUnits; ++u) {
      for (int r = threadIdx.x; r < rows; r += S::kThreads) {
        *reinterpret_cast<uint4*>(operand + S::Layout::Unit(0, r, u) * 8) = make_uint4(0, 0, 0, 0);
      }
    }
  };
  clear(shared, S::kRows, d_qk);
#pragma unroll 1
  for (int s = 0; s < S::kStages; ++s) {
    T* stage = shared + S::kElementsQ + s * S::kStageElements;
    clear(stage, S::kKeys, d_qk);
    clear(stage + S::kElementsK, S::kKeys, d_v);
  }
}

template <class S>
struct WarpState {
  float o[S::kWarpTiles][S::kUnits][4] = {};
  float sum[S::kWarpTiles][4] = {};  // of the probabilities, laid out as a unit of o
  // The raw score whose probability counts as 1; rows lane / 4 and lane / 4 + 8.
  float reference[S::kWarpTiles][2];
};

template <class S>
using Scores = float[S::kWarpTiles][S::kKeys / 8][4];

// scores = Q K'
template <class T, class S>
__device__ __forceinline__ void Score(
    Scores<S>& scores, const uint32_t (&kept_q)[S::kKeepQ ? S::kSteps : 1][S::kWarpTiles][4],
    const T* q, const T* k) {
#pragma unroll
  for (int step = 0; step < S::kSteps; ++step) {
    uint32_t fragments[S::kWarpTiles][4];
    if constexpr (!S::kKeepQ) {
#pragma unroll
      for (int i = 0; i < S::kWarpTiles; ++i) {
        LoadFragmentA<typename S::Layout>(fragments[i], q, 16 * i, 2 * step);
      }
    }
    const auto a = [&](int i) -> const uint32_t* {
      return S::kKeepQ ? kept_q[S::kKeepQ ? step : 0][i] : fragments[i];
    };
    uint32_t b[4];
    if (2 * step + 1 < S::kUnits) {
#pragma unroll
      for (int j = 0; j < S::kKeys / 16; ++j) {
        LoadFragmentsB<typename S::Layout>(b, k, 16 * j, 2 * step);
#pragma unroll
        for (int i = 0; i < S::kWarpTiles; ++i) {
          Mma16x8x16<T>(scores[i][2 * j], a(i), b[0], b[1]);
          Mma16x8x16<T>(scores[i][2 * j + 1], a(i), b[2], b[3]);
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < S::kKeys / 32; ++j) {
        LoadMatrix4(b, k + S::Layout::Unit(32 * j, threadIdx.x % 32, 2 * step) * 8);
#pragma unroll
        for (int i = 0; i < S::kWarpTiles; ++i) {
#pragma unroll
          for (int c = 0; c < 4; ++c) Mma16x8x8<T>(scores[i][4 * j + c], a(i), b[c]);
        }
      }
    }
  }
}

// Scores of keys from `keys` on become minus infinity.
template <class S>
__device__ __forceinline__ void MaskKeys(Scores<S>& scores, int keys) {
#pragma unroll
  for (int j = 0; j < S::kKeys / 8; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const bool valid = 8 * j + static_cast<int>(threadIdx.x) % 4 * 2 + c % 2 < keys;
#pragma unroll
      for (int i = 0; i < S::kWarpTiles; ++i) {
        if (!valid) scores[i][j][c] = -INFINITY;
      }
    }
  }
}

// Turns scores into probabilities relative to a reference that is the first keys' maximum until a
// later maximum exceeds it by a factor of over 2^kMaxGrowth: until then o and sum need no
// correction, and the quotient of the two does not depend on the reference.
template <class S>
__device__ __forceinline__ void OnlineSoftmax(Scores<S>& scores, WarpState<S>& state,
                                              float log2_scale) {
  constexpr float kMaxGrowth = 8;
  float max[S::kWarpTiles][2];
  bool grows = false;
#pragma unroll
  for (int i = 0; i < S::kWarpTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      max[i][half] = scores[i][0][2 * half];
#pragma unroll
      for (int j = 0; j < S::kKeys / 8; ++j) {
        max[i][half] =
            fmaxf(max[i][half], fmaxf(scores[i][j][2 * half], scores[i][j][2 * half + 1]));
      }
      max[i][half] = LaneMax<4>(max[i][half]);
      grows |= (max[i][half] - state.reference[i][half]) * log2_scale > kMaxGrowth;
    }
  }
  if (__any_sync(0xffffffff, grows)) {
#pragma unroll
    for (int i = 0; i < S::kWarpTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float reference = fmaxf(state.reference[i][half], max[i][half]);
        const float correction = Exp2((state.reference[i][half] - reference) * log2_scale);
        state.reference[i][half] = reference;
#pragma unroll
        for (int c = 2 * half; c < 2 * half + 2; ++c) {
          state.sum[i][c] *= correction;
#pragma unroll
          for (int u = 0; u < S::kUnits; ++u) state.o[i][u][c] *= correction;
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < S::kWarpTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float offset = -state.reference[i][half] * log2_scale;
#pragma unroll
      for (int j = 0; j < S::kKeys / 8; ++j) {
#pragma unroll
        for (int c = 2 * half; c < 2 * half + 2; ++c) {
          scores[i][j][c] = Exp2(fmaf(scores[i][j][c], log2_scale, offset));
        }
      }
    }
  }
}

// o += P V and sum += P 1, the probabilities rounded to T.
template <class T, class S>
__device__ __forceinline__ void Accumulate(WarpState<S>& state, const Scores<S>& p, const T* v) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int keys = 0; keys < S::kKeys; keys += 32) {
    uint32_t a[2][S::kWarpTiles][4];
#pragma unroll
    for (int step = 0; step < 2; ++step) {
#pragma unroll
      for (int i = 0; i < S::kWarpTiles; ++i) {
        const float(&low)[4] = p[i][keys / 8 + 2 * step];
        const float(&high)[4] = p[i][keys / 8 + 2 * step + 1];
        a[step][i][0] = Pack2<T>(low[0], low[1]);
        a[step][i][1] = Pack2<T>(low[2], low[3]);
        a[step][i][2] = Pack2<T>(high[0], high[1]);
        a[step][i][3] = Pack2<T>(high[2], high[3]);
      }
    }
    const uint32_t ones = Pack2<T>(1, 1);
#pragma unroll
    for (int i = 0; i < S::kWarpTiles; ++i) {
      Mma16x8x16<T>(state.sum[i], a[0][i], ones, ones);
      Mma16x8x16<T>(state.sum[i], a[1][i], ones, ones);
    }
#pragma unroll
    for (int u = 0; u < S::kUnits; ++u) {
      uint32_t b[4];  // 32 keys of one unit of columns
      LoadMatrix4Transposed(b, v + S::Layout::Unit(keys, lane, u) * 8);
#pragma unroll
      for (int i = 0; i < S::kWarpTiles; ++i) {
        Mma16x8x16<T>(state.o[i][u], a[0][i], b[0], b[1]);
        Mma16x8x16<T>(state.o[i][u], a[1][i], b[2], b[3]);
      }
    }
  }
}

// Writes o / sum to the warp's rows of context, through the warp's rows of Q's buffer.
template <class T, class S>
__device__ __forceinline__ void StoreContext(WarpState<S>& state, T* staging, T* context,
                                             int64_t stride, int rows, int width) {
  const int lane = threadIdx.x % 32;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < S::kWarpTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float scale = Reciprocal(state.sum[i][2 * half]);
      const int row = 16 * i + 8 * half;
#pragma unroll
      for (int u = 0; u < S::kUnits; ++u) {
        *reinterpret_cast<uint32_t*>(staging + S::Layout::Unit(row, lane / 4, u) * 8 +
                                     lane % 4 * 2) =
            Pack2<T>(state.o[i][u][2 * half] * scale, state.o[i][u][2 * half + 1] * scale);
      }
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = lane; i < S::kWarpRows * S::kUnits; i += 32) {
    const int row = i / S::kUnits;
    const int unit = i % S::kUnits;
    if (row < rows && unit * 8 < width) {
      *reinterpret_cast<uint4*>(context + row * stride + unit * 8) =
          *reinterpret_cast<const uint4*>(staging + S::Layout::Unit(0, row, unit) * 8);
    }
  }
}

template <class T, class S>
__device__ __forceinline__ void AttendTile(const AttentionParams& p, const AttentionTile tile,
                                           int head, T* shared) {
  const int warp_row = threadIdx.x / 32 * S::kWarpRows;
  const int stride = static_cast<int>(p.qkv.stride);
  const T* rows = static_cast<const T*>(p.qkv.data) + int64_t{tile.first_row} * stride;
  const T* q_source = rows + int64_t{tile.query} * stride + head * p.d_qk;
  const T* k_source = rows + (p.num_heads + head) * p.d_qk;  // of the next keys to copy
  const T* v_source = rows + 2 * p.num_heads * p.d_qk + head * p.d_v;
  int keys_to_copy = tile.seqlen;
  int keys = tile.seqlen;  // to attend to
  T* const q = shared;
  T* const ring = shared + S::kElementsQ;
  T* const ring_end = ring + S::kStages * S::kStageElements;
  T* write = ring;
  const T* read = ring;

  const auto copy_step = [&] {
    if (keys_to_copy > 0) {
      CopyHead<S, S::kKeys>(write, k_source, stride, keys_to_copy, p.d_qk);
      CopyHead<S, S::kKeys>(write + S::kElementsK, v_source, stride, keys_to_copy, p.d_v);
      k_source += S::kKeys * stride;
      v_source += S::kKeys * stride;
      keys_to_copy -= S::kKeys;
      write += S::kStageElements;
      if (write == ring_end) write = ring;
    }
    CopyAsyncCommit();
  };
  CopyHead<S, S::kRows>(q, q_source, stride, tile.seqlen - tile.query, p.d_qk);
#pragma unroll
  for (int s = 0; s < S::kStages - 1; ++s) copy_step();

  WarpState<S> state;
#pragma unroll
  for (int i = 0; i < S::kWarpTiles; ++i) {
    state.reference[i][0] = state.reference[i][1] = -INFINITY;
  }
  const float log2_scale = p.scale * 1.4426950408889634f;
  uint32_t kept_q[S::kKeepQ ? S::kSteps : 1][S::kWarpTiles][4];
  if constexpr (S::kKeepQ) {
    CopyAsyncWait<S::kStages - 2>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < S::kSteps; ++k) {
#pragma unroll
      for (int i = 0; i < S::kWarpTiles; ++i) {
        LoadFragmentA<typename S::Layout>(kept_q[k][i], q, warp_row + 16 * i, 2 * k);
      }
    }
  }
  for (; keys > 0; keys -= S::kKeys) {
    CopyAsyncWait<S::kStages - 2>();
    __syncthreads();
    copy_step();
    Scores<S> scores = {};
    Score<T, S>(scores, kept_q, q + warp_row * S::Layout::kRowUnits * 8, read);
    if (keys < S::kKeys) MaskKeys<S>(scores, keys);
    OnlineSoftmax<S>(scores, state, log2_scale);
    Accumulate<T, S>(state, scores, read + S::kElementsK);
    read += S::kStageElements;
    if (read == ring_end) read = ring;
  }
  const int64_t first_row = int64_t{tile.first_row} + tile.query + warp_row;
  StoreContext<T, S>(state, q + warp_row * S::Layout::kRowUnits * 8,
                     static_cast<T*>(p.context.data) + first_row * p.context.stride + head * p.d_v,
                     p.context.stride, tile.seqlen - tile.query - warp_row, p.d_v);
}

template <class T, class S>
__global__ void __launch_bounds__(S::kThreads, S::kMinBlocks) AttentionKernel(AttentionParams p) {
  extern __shared__ __align__(16) unsigned char shared[];
  ClearPadding<S>(reinterpret_cast<T*>(shared), p.d_qk, p.d_v);
  WaitForPredecessor();
  AllowSuccessor();
  const auto* schedule = static_cast<const AttentionSchedule*>(p.schedule);
  const auto* tiles = reinterpret_cast<const AttentionTile*>(schedule + 1);
  const int tile = blockIdx.x / p.num_heads;
  if (tile >= schedule->num_tiles) return;
  AttendTile<T, S>(p, tiles[tile], blockIdx.x % p.num_heads, reinterpret_cast<T*>(shared));
}

}  // namespace

cudaError_t LaunchAttentionSm80(const AttentionParams& params, DType dtype,
                                const AttentionTiling& tile, cudaStream_t stream) {
  const int width = params.d_qk > params.d_v ? params.d_qk : params.d_v;
  if (params.d_qk <= 0 || params.d_v <= 0 || params.d_qk % 8 != 0 || params.d_v % 8 != 0 ||
      !(params.scale > 0)) {
    return cudaErrorInvalidValue;
  }
  const int64_t blocks = int64_t{params.max_tiles} * params.num_heads;
  if (blocks <= 0) return cudaSuccess;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  const auto launch = [&]<class S>() {
    LaunchShape shape;
    shape.grid = static_cast<unsigned>(blocks);
    shape.block = S::kThreads;
    shape.shared_bytes = S::kSharedBytes;
    return VisitFloat(dtype, [&]<typename T>() {
      return LaunchKernel(AttentionKernel<T, S>, shape, stream, params);
    });
  };
  return VisitAtLeast<24, 32, 40, 64, 128, 256>(width, [&]<int kWidth>() {
    if (tile.rows == 64) return launch.template operator()<Shape<kWidth, 64>>();
    if (tile.rows == 128) return launch.template operator()<Shape<kWidth, 128>>();
    return cudaErrorInvalidValue;
  });
}

}  // namespace flashsvd
