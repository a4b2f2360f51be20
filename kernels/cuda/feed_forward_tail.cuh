#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_TAIL_CUH_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_TAIL_CUH_

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/feed_forward_products.cuh"
#include "kernels/cuda/feed_forward_shape.cuh"
#include "kernels/cuda/feed_forward_tail_plan.cuh"
#include "kernels/cuda/feed_forward_tiles.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

// What follows the streamed feed-forward of 128 rows: x = LayerNorm(x + s B2' + bias).
//
// s stays in registers, in T, as A operand. The columns of x come in tiles as F did: a tile's
// chunks of B2 are as large as those of B1 and follow the stream's through the same ring of slots.
// A tile's accumulator starts as x; the bias is added as a product. The warpgroups go on taking
// turns at the tensor cores: one takes a tile's moments and keeps its sums while the other
// multiplies.
//
// Sums are less the mean of their row's first tile, the row's pivot: their moments then need no
// further shift for the variance to come out of a difference. LayerNorm does not see it.
//
// Sums are kept, rounded to T, until the rows' moments are complete: in blocks of 64 columns where
// the products need shared memory no longer, first in that of P, then in the ring's slots, from the
// first slot on, as chunks have been used; those that still come go round in fewer and fewer slots
// (Laps). The last two tiles stay in the accumulators. Where that is not room enough, the first
// tiles stay in registers too.
// The residual of a tile whose sums will be in shared memory is copied to their place ahead of
// them; that of the others is loaded by the threads that need it. Either is in registers before the
// turn of the tile ahead: nothing but products is to happen in a turn.
//
// A warp keeps, normalises and writes its own 16 rows, without a barrier.

namespace flashsvd {

// A pair of T as floats, in one instruction each.
template <class T>
__device__ __forceinline__ float2 Widen(uint32_t pair) {
  if constexpr (std::is_same_v<T, __half>) return Unpack2<T>(pair);
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000)};
}

// Of a thread's values of a row.
struct RowMoments {
  float sum = 0;
  float squares = 0;
};

template <class T, class Shape, class Storage>
struct TailConsumer {
  using Tail = TailShape<Shape>;
  using Ring = ShrinkingRing<Storage::kSlots>;
  using Position = typename Ring::Position;
  using Bias = BiasOperand<T, Shape>;
  using Tile = float[Tail::kCols / 2];
  // Tiles that stay in registers, rounded: the first ones, and the last but one.
  static constexpr int kKept = Tail::kKept + 1;
  Storage& storage;
  const WeightRing<Shape, Storage::kSlots>& weights;
  const NormTail& tail;
  const CUtensorMap* x_map;
  const Rows& x;
  const int bias_tile;  // the number of the first tile's buffer of bias
  const int warpgroup;
  const int row;  // the warpgroup's first

  // Brings the residual of the sums that replace P; by the whole warpgroup, when it is done with P.
  __device__ __forceinline__ void BringRows() {
    NamedBarrierSync(4 + warpgroup, 128);
    if (threadIdx.x % 128 != 0) return;
    const int shared = (tail.plan.first_held - tail.plan.first_shared) * Tail::kCols;
    for (int i = 0; i < Storage::kRowBlocks && i * 64 < shared; ++i) {
      BringResidual<Shape>(storage, tail.plan, x_map, warpgroup, row, i);
    }
  }

  // Where ldmatrix and stmatrix find the warp's rows of the sums that begin at column `col` of
  // those in shared memory. A tile of 96 columns begins or ends in the middle of a block.
  struct Units {
    uint8_t* base;
    uint32_t first;  // block, with this lane's row and its place in columns 0 to 15
    uint32_t second;
    uint32_t middle;
    __device__ __forceinline__ Units(const TailConsumer& tail, int col) {
      const uint32_t lane = threadIdx.x % 32;
      const uint32_t own =
          (threadIdx.x % 128 / 32 * 16 + lane % 16) * 128 + (lane / 16 ^ lane % 8) * 16;
      base = reinterpret_cast<uint8_t*>(&tail.storage);
      first = Offset(tail, col / 64) + own;
      second = Offset(tail, col / 64 + 1) + own;
      middle = col % 64;
    }
    // Computes them here, not where they are first used.
    __device__ __forceinline__ void Pin() {
      asm volatile("" : "+r"(first), "+r"(second), "+r"(middle));
    }
    // Columns 16 p to 16 p + 15 of the tile.
    __device__ __forceinline__ uint8_t* At(int p) const {
      if (Tail::kCols % 64 == 0) return base + ((p < 4 ? first : second) ^ (p % 4 * 32));
      const bool in_first = p < 2 || (p < 4 && middle == 0);
      return base + ((in_first ? first : second) ^ (p % 4 * 32) ^ (middle * 2));
    }
    __device__ __forceinline__ static uint32_t Offset(const TailConsumer& tail, int block) {
      return static_cast<uint32_t>(SumBlock<Shape>(tail.storage, tail.warpgroup, block) -
                                   reinterpret_cast<uint8_t*>(&tail.storage));
    }
  };

  __device__ __forceinline__ bool InShared(int tile) const {
    return tile >= tail.plan.first_shared && tile < tail.plan.first_held;
  }
  // Where the sums of a tile in shared memory begin, as a column.
  __device__ __forceinline__ int Place(int tile) const {
    return (tile - tail.plan.first_shared) * Tail::kCols;
  }

  // The residual of a tile, from where it was copied to.
  __device__ __forceinline__ void FetchResidual(uint32_t (&words)[Tail::kWords], int tile) const {
    // A tile has columns in at most two blocks.
    const int place = Place(tile);
    BarrierWait(&storage.tail.residual[warpgroup][place / 64], 0);
    BarrierWait(&storage.tail.residual[warpgroup][(place + Tail::kCols - 1) / 64], 0);
    const Units units(*this, place);
#pragma unroll
    for (int p = 0; p < Tail::kUnits; ++p) {
      LoadMatrix4(*reinterpret_cast<uint32_t(*)[4]>(words + 4 * p), units.At(p));
    }
  }
  // The same from x.
  __device__ __forceinline__ void LoadResidual(uint32_t (&words)[Tail::kWords], int tile) const {
    const int lane = threadIdx.x % 32;
    const int first = row + threadIdx.x % 128 / 32 * 16 + lane / 4;
    const int last = static_cast<int>(x.rows) - 1;
    const int col = tile * Tail::kCols;
    const T* from[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      from[i] =
          static_cast<const T*>(x.data) + min(first + 8 * i, last) * x.stride + col + lane % 4 * 2;
    }
#pragma unroll
    for (int j = 0; j < Tail::kCols / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        words[2 * j + i] =
            col + 8 * j < tail.plan.d ? *reinterpret_cast<const uint32_t*>(from[i] + 8 * j) : 0;
      }
    }
  }

  // h = residual.
  __device__ __forceinline__ void Start(Tile& h, const uint32_t (&residual)[Tail::kWords]) {
#pragma unroll
    for (int m = 0; m < Tail::kWords; ++m) {
      const float2 r = Widen<T>(residual[m]);
      h[2 * m] = r.x;
      h[2 * m + 1] = r.y;
    }
    PinRegisters(h);
  }

  // Issues h += s times the chunk of B2 at `at`, as a group.
  __device__ __forceinline__ void IssueChunk(Tile& h, const uint32_t* s, int chunk, Ring& ring,
                                             Position& at) {
    const uint64_t slots = CoreMatrixDescriptor(weights.slots, Tail::kCols * 16, 128);
    ring.WaitFull(at);
    WgmmaFence();
    const uint64_t slot = Advance(slots, at.slot * Shape::kSlotBytes);
#pragma unroll
    for (int i = 0; i < Shape::kUpSteps; ++i) {
      const int step = chunk * Shape::kUpSteps + i;
      if (step < Shape::kRankSteps) {
        Wgmma<T, Tail::kCols>::Registers(h, s + 4 * step, Advance(slot, i * Tail::kCols * 32));
      }
    }
    WgmmaCommit();
    at.Next();
  }

  // Adds this thread's values of its two rows.
  __device__ __forceinline__ static void AddMoments(RowMoments (&m)[2], const Tile& h) {
    float sums[2][2] = {}, squares[2][2] = {};
#pragma unroll
    for (int j = 0; j < Tail::kCols / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float v = h[4 * j + i];
        sums[i / 2][i % 2] += v;
        squares[i / 2][i % 2] = fmaf(v, v, squares[i / 2][i % 2]);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      m[i].sum += sums[i][0] + sums[i][1];
      m[i].squares += squares[i][0] + squares[i][1];
    }
  }
  // Of a tile's units of 16 columns only `units` exist: the others are not to count.
  __device__ __forceinline__ static void Mask(Tile& h, int units) {
#pragma unroll
    for (int j = 0; j < Tail::kCols / 8; ++j) {
      if (j / 2 < units) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) h[4 * j + i] = 0;
    }
  }

  // Finds the pivots of this thread's rows, the means of their first tile, and takes them off it.
  // From then on, first[] takes them off too.
  __device__ __forceinline__ static void Shift(Tile& h, uint32_t (&first)[4]) {
    float sums[2][2] = {};
#pragma unroll
    for (int j = 0; j < Tail::kCols / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i / 2][i % 2] += h[4 * j + i];
    }
    float pivot[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float mean = QuadSum(sums[i][0] + sums[i][1]) * (1.0f / Tail::kCols);
      pivot[i] = Bias::TakeOff(first[i], mean);
    }
#pragma unroll
    for (int j = 0; j < Tail::kCols / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) h[4 * j + i] -= pivot[i / 2];
    }
  }

  __device__ __forceinline__ static void Pack(uint32_t (&words)[Tail::kWords], const Tile& h) {
#pragma unroll
    for (int m = 0; m < Tail::kWords; ++m) words[m] = Pack2<T>(h[2 * m], h[2 * m + 1]);
  }
  // Sums to shared memory.
  __device__ __forceinline__ static void Keep(const uint32_t (&sums)[Tail::kWords],
                                              const Units& units) {
#pragma unroll
    for (int p = 0; p < Tail::kUnits; ++p) {
      StoreMatrix4(units.At(p), sums[4 * p], sums[4 * p + 1], sums[4 * p + 2], sums[4 * p + 3]);
    }
  }

  // s: the A operand.
  __device__ __forceinline__ void Run(const uint32_t* s) {
    const TailPlan& plan = tail.plan;
    Ring ring{storage.weights};
    Position at(tail);
    Position done = at;
    uint32_t kept[kKept][Tail::kWords];
    uint32_t words[Tail::kWords];  // of residual
    uint32_t first[4];
    RowMoments moments[2];
    Tile h;
    Turn turn(warpgroup, Turn::Continued{});
    BringRows();
    Bias::Rows(first);
    const auto fetch = [&](int tile) {
      if (tile >= plan.tiles) return;
      if (InShared(tile)) {
        FetchResidual(words, tile);
      } else {
        LoadResidual(words, tile);
      }
    };
    fetch(0);
    Start(h, words);
    fetch(1);
#pragma unroll 1
    for (int tile = 0; tile < plan.tiles; ++tile) {
      turn.Wait();
#pragma unroll
      for (int chunk = 0; chunk < Shape::kUpChunks; ++chunk) {
        if (chunk == Shape::kUpChunks - 1) storage.bias.AddRows(h, first, bias_tile + tile);
        IssueChunk(h, s, chunk, ring, at);
      }
      turn.Pass();
      Units to(*this, InShared(tile) ? Place(tile) : 0);
      to.Pin();
      ReleaseChunks<Shape::kUpChunks, 0>(ring, done);
      storage.bias.Release(bias_tile + tile);
      PinRegisters(h);
      if (tile == 0) Shift(h, first);
      const int units = (plan.d - tile * Tail::kCols) / 16;
      if (units < Tail::kUnits) Mask(h, units);
      AddMoments(moments, h);
      if (tile == plan.tiles - 1) break;
      uint32_t sums[Tail::kWords];
      Pack(sums, h);
      if (InShared(tile)) {
        Keep(sums, to);
      } else {
        const int number = tile < plan.first_shared ? tile : kKept - 1;
#pragma unroll
        for (int k = 0; k < kKept; ++k) {
          if (number != k) continue;
#pragma unroll
          for (int m = 0; m < Tail::kWords; ++m) kept[k][m] = sums[m];
        }
      }
      Start(h, words);
      fetch(tile + 2);
    }
    ring.WaitFull(at);
    Finish(moments, kept, h, reinterpret_cast<const float*>(storage.slots[at.slot]));
  }

  // What the normalisation of this thread's two rows is to multiply with, and then to add.
  __device__ __forceinline__ void FindNorms(const RowMoments (&moments)[2],
                                            float2 (&norms)[2]) const {
    const float inverse_d = 1.0f / static_cast<float>(tail.plan.d);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float mean = QuadSum(moments[i].sum) * inverse_d;
      const float squares = QuadSum(moments[i].squares);
      const float variance = fmaxf(fmaf(squares, inverse_d, -mean * mean), 0.0f);
      const float scale = rsqrtf(variance + tail.norm.epsilon);
      norms[i] = {scale, -mean * scale};
    }
  }

  // Normalises the rows and writes them. norm: gamma, and behind it beta.
  __device__ __forceinline__ void Finish(const RowMoments (&moments)[2],
                                         const uint32_t (&kept)[kKept][Tail::kWords],
                                         const Tile& last, const float* norm) {
    const TailPlan& plan = tail.plan;
    float2 own[2];
    FindNorms(moments, own);
    // From here on a lane has 8 columns of every fourth row.
    const int lane = threadIdx.x % 32;
    float2 norms[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int from = (r % 2 * 4 + lane / 8) * 4;
      norms[r] = {__shfl_sync(0xffffffff, own[r / 2].x, from),
                  __shfl_sync(0xffffffff, own[r / 2].y, from)};
    }
    __syncwarp();
    const int shared = plan.first_shared * Tail::kCols;
    const int held = plan.first_held * Tail::kCols;
    Normalize(norms, norm, shared, held);
    __syncwarp();
    uint32_t words[Tail::kWords];
    Pack(words, last);
    Keep(words, Units(*this, plan.tiles > 1 ? Tail::kCols : 0));
    if (plan.tiles > 1) Keep(kept[kKept - 1], Units(*this, 0));
    __syncwarp();
    Normalize(norms, norm, held, plan.d);
    if constexpr (Tail::kKept > 0) {
      __syncwarp();
#pragma unroll
      for (int k = 0; k < Tail::kKept; ++k) Keep(kept[k], Units(*this, k * Tail::kCols));
      __syncwarp();
      Normalize(norms, norm, 0, shared);
    }
  }

  // Columns `col` to `end` - 1, whose sums are in shared memory from the first block on.
  __device__ __forceinline__ void Normalize(const float2 (&norms)[4], const float* norm, int col,
                                            int end) {
    const int lane = threadIdx.x % 32;
    const int first_row = threadIdx.x % 128 / 32 * 16 + lane / 8;
    const int first = row + first_row;
    col += lane % 8 * 8;
    T* out = static_cast<T*>(x.data) + first * x.stride + col;
#pragma unroll 1
    for (int block = 0; col < end; ++block) {
      const uint8_t* in = SumBlock<Shape>(storage, warpgroup, block) + first_row * 128;
      uint4 words[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int swizzle = r % 2 * 4 + lane / 8;
        words[r] = *reinterpret_cast<const uint4*>(in + r * 512 + (lane % 8 ^ swizzle) * 16);
      }
      Affine affine;
      affine.Load(norm + col, tail.plan.d);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        affine.Apply(words[r].x, norms[r], 0);
        affine.Apply(words[r].y, norms[r], 2);
        affine.Apply(words[r].z, norms[r], 4);
        affine.Apply(words[r].w, norms[r], 6);
        if (first + r * 4 < x.rows) *reinterpret_cast<uint4*>(out + r * 4 * x.stride) = words[r];
      }
      col += 64;
      out += 64;
    }
  }

  // gamma and beta of 8 columns.
  struct Affine {
    float gamma[8];
    float beta[8];
    __device__ __forceinline__ void Load(const float* from, int d) {
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        *reinterpret_cast<float4*>(gamma + i) = *reinterpret_cast<const float4*>(from + i);
        *reinterpret_cast<float4*>(beta + i) = *reinterpret_cast<const float4*>(from + d + i);
      }
    }
    __device__ __forceinline__ void Apply(uint32_t& sums, const float2& norm, int i) const {
      const float2 v = Widen<T>(sums);
      sums = Pack2<T>(fmaf(fmaf(v.x, norm.x, norm.y), gamma[i], beta[i]),
                      fmaf(fmaf(v.y, norm.x, norm.y), gamma[i + 1], beta[i + 1]));
    }
  };
  __device__ __forceinline__ static float QuadSum(float v) {
    v += __shfl_xor_sync(0xffffffff, v, 1);
    return v + __shfl_xor_sync(0xffffffff, v, 2);
  }
};

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_TAIL_CUH_
