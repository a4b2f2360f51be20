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
// The residual is added as a product with the identity. A warpgroup takes its rows' moments from a
// tile's sums in float32 and keeps the sums, rounded to T, until the moments are complete.
//
// Sums are kept in blocks of 64 columns, where the products need shared memory no longer:
//   the first in that of P,
//   the others in the ring's slots, from the first slot on, as chunks have been used; those that
//   still come go round in fewer and fewer slots (Laps).
// The residual is copied to where its sum will be. There is not enough room for d = 768: the sums
// of the first tiles, kKept of them, stay in registers, and their residual passes through the
// places of the tiles that follow them.
//
// The tail is short of instructions, not of products: its code runs through once a tile and is
// larger than the first instruction caches. And the ends of all blocks coincide, so that the result
// is written at the rate at which a multiprocessor can write, with nothing else to do.

namespace flashsvd {

// A pair of T as floats, in one instruction each.
template <class T>
__device__ __forceinline__ float2 Widen(uint32_t pair) {
  if constexpr (std::is_same_v<T, __half>) return Unpack2<T>(pair);
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000)};
}

// Of a thread's values of a row: sums about a value among them, close enough to their mean for the
// variance to come out of a difference.
struct ShiftedSums {
  float pivot = 0;
  float sum = 0;
  float squares = 0;
};

template <class T, class Shape, class Storage>
struct TailConsumer {
  using Tail = TailShape<Shape>;
  using Ring = ShrinkingRing<Storage::kSlots>;
  Storage& storage;
  const WeightRing<Shape, Storage::kSlots>& weights;
  const NormTail& tail;
  const CUtensorMap* x_map;
  const int warpgroup;
  const int row;  // the warpgroup's first

  // Brings blocks of the residual to places of P; by the whole warpgroup, when it is done with P or
  // with the blocks that were there.
  __device__ __forceinline__ void RefillRows(int first, int last, int first_place) {
    NamedBarrierSync(4 + warpgroup, 128);
    if (threadIdx.x % 128 != 0) return;
    for (int i = first; i < min(last, tail.plan.d / 64); ++i) {
      BringResidual<Shape>(storage, x_map, warpgroup, row, i, first_place + i - first);
    }
  }

  // Where StoreMatrix4 puts the warp's rows of a tile, as offsets into the storage.
  // A tile of 96 columns begins or ends in the middle of a block.
  struct Units {
    uint8_t* base;
    uint32_t first;  // block, with this lane's row and its place in columns 0 to 15
    uint32_t second;
    uint32_t middle;
    __device__ __forceinline__ Units(const TailConsumer& tail, int tile) {
      const uint32_t lane = threadIdx.x % 32;
      const uint32_t own =
          (threadIdx.x % 128 / 32 * 16 + lane % 16) * 128 + (lane / 16 ^ lane % 8) * 16;
      const uint32_t col = Place(tile);
      base = reinterpret_cast<uint8_t*>(&tail.storage);
      first = Offset(tail, col / 64) + own;
      second = Offset(tail, col / 64 + 1) + own;
      middle = col % 64;
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

  // Where a tile's sums begin, as a column.
  __device__ __forceinline__ static int Place(int tile) {
    return (tile < Tail::kKept ? tile : tile - Tail::kKept) * Tail::kCols;
  }
  __device__ __forceinline__ void WaitResidual(int tile) {
    // A tile has columns in at most two blocks.
    const int first = tile * Tail::kCols / 64;
    const int last = min((tile * Tail::kCols + Tail::kCols - 1) / 64, tail.plan.d / 64 - 1);
    BarrierWait(&storage.tail.residual[warpgroup][first], 0);
    BarrierWait(&storage.tail.residual[warpgroup][last], 0);
  }
  // Issues h += x as a product with the identity, which is exact: the tensor cores have time,
  // instructions are what the tail is short of.
  __device__ __forceinline__ void IssueResidual(float (&h)[Tail::kCols / 2], int tile, int units) {
    const uint64_t identity =
        CoreMatrixDescriptor(storage.tail.identity, TailStorage<T, Shape>::kIdentityRows * 16, 128);
    const int place = Place(tile) / 16;
    WgmmaFence();
#pragma unroll
    for (int p = 0; p < Tail::kCols / 16; ++p) {
      // Past d, where there may be NaN, other columns that are past d get a residual they have not.
      const int unit = place + min(p, units - 1);
      const uint64_t a = Swizzle128Descriptor(SumBlock<Shape>(storage, warpgroup, unit / 4));
      Wgmma<T, Tail::kCols>::Shared(h, Advance(a, unit % 4 * 32),
                                    Advance(identity, (Tail::kCols - 16 - 16 * p) * 16));
    }
    WgmmaCommit();
  }
  // Blocks that are in registers by now, and that no tile to come reads, make room for others.
  __device__ __forceinline__ void Refill(int tile) {
    const int first = tile * Tail::kCols / 64;
    const int last = min((tile + 1) * Tail::kCols / 64, Tail::kKeptBlocks);
    RefillRows(Tail::kKeptBlocks + first, Tail::kKeptBlocks + last, first);
  }
  // Adds this thread's values of its two rows. kWhole: all units of 16 columns exist, not just
  // `units`.
  template <bool kWhole>
  __device__ __forceinline__ void AddMoments(ShiftedSums (&m)[2], const float (&h)[Tail::kCols / 2],
                                             bool first, int units) {
    const auto each = [&](const auto& visit) {
#pragma unroll
      for (int j = 0; j < Tail::kCols / 8; ++j) {
        if (!kWhole && j / 2 >= units) break;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          visit(i, h[4 * j + 2 * i], h[4 * j + 2 * i + 1]);
        }
      }
    };
    if (first) {
      float sum[2] = {};
      each([&](int i, float a, float b) { sum[i] += a + b; });
      const float share = 1.0f / static_cast<float>(4 * (kWhole ? Tail::kCols / 16 : units));
      m[0].pivot = sum[0] * share;
      m[1].pivot = sum[1] * share;
    }
    float sums[2][2] = {}, squares[2][2] = {};
    each([&](int i, float a, float b) {
      a -= m[i].pivot;
      b -= m[i].pivot;
      sums[i][0] += a;
      sums[i][1] += b;
      squares[i][0] = fmaf(a, a, squares[i][0]);
      squares[i][1] = fmaf(b, b, squares[i][1]);
    });
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      m[i].sum += sums[i][0] + sums[i][1];
      m[i].squares += squares[i][0] + squares[i][1];
    }
  }

  __device__ __forceinline__ void Keep(const uint32_t* sums, int tile) {
    const Units units(*this, tile);
    const int cols = tail.plan.d - tile * Tail::kCols;
#pragma unroll
    for (int p = 0; p < Tail::kCols / 16; ++p) {
      if (16 * p < cols) {
        StoreMatrix4(units.At(p), sums[4 * p], sums[4 * p + 1], sums[4 * p + 2], sums[4 * p + 3]);
      }
    }
  }

  // s: the A operand. The buffers of bias continue with number `bias_tile`.
  __device__ __forceinline__ void Run(const uint32_t* s, int bias_tile, const Rows& out) {
    const int d = tail.plan.d;
    constexpr int kUnits = Tail::kCols / 16;
    Ring ring{storage.weights};
    typename Ring::Position at(tail);
    typename Ring::Position done = at;
    const uint64_t slots = CoreMatrixDescriptor(weights.slots, Tail::kCols * 16, 128);
    RefillRows(0, Tail::kKeptBlocks, 0);
    uint32_t kept[Tail::kKept][Tail::kWords];
    ShiftedSums moments[2];
#pragma unroll 1
    for (int tile = 0; tile < tail.plan.tiles; ++tile) {
      float h[Tail::kCols / 2];
      const int units = min(kUnits, (d - tile * Tail::kCols) / 16);
      StartTile(h, weights, bias_tile + tile);
      WaitResidual(tile);
      NamedBarrierSync(1 + warpgroup, 256);  // the turn, as Stream has left it
      IssueUp<T, typename Tail::Product>(h, s, 0, slots, ring, at);
      IssueResidual(h, tile, units);
      NamedBarrierArrive(2 - warpgroup, 256);
      ReleaseChunks<Shape::kUpChunks, 1>(ring, done);
      WgmmaWait<0>();
      PinRegisters(h);
      if (tile < Tail::kKept) Refill(tile);
      if (units == kUnits) {
        AddMoments<true>(moments, h, tile == 0, units);
      } else {
        AddMoments<false>(moments, h, tile == 0, units);
      }
      uint32_t sums[Tail::kWords];
#pragma unroll
      for (int m = 0; m < Tail::kWords; ++m) sums[m] = Pack2<T>(h[2 * m], h[2 * m + 1]);
      if (tile < Tail::kKept) {
#pragma unroll
        for (int k = 0; k < Tail::kKept; ++k) {
          if (tile != k) continue;
#pragma unroll
          for (int m = 0; m < Tail::kWords; ++m) kept[k][m] = sums[m];
        }
      } else {
        Keep(sums, tile);
      }
    }
    ring.WaitFull(at);
    Finish(moments, kept, reinterpret_cast<const float*>(storage.slots[at.slot]), out);
  }

  // What the normalisation of this thread's two rows is to multiply with and to add, to norms[0]
  // and norms[8].
  __device__ __forceinline__ void StoreNorms(const ShiftedSums (&moments)[2], float2* norms) const {
    const float d = static_cast<float>(tail.plan.d);
    const float inverse_d = 1.0f / d;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // A quarter of the columns each.
      const float shift = moments[i].sum * 4 * inverse_d;
      const float own_mean = moments[i].pivot + shift;
      const float mean = QuadSum(own_mean) * 0.25f;
      const float difference = own_mean - mean;
      const float squares = QuadSum(fmaf(
          -shift, moments[i].sum, fmaf(difference * difference, 0.25f * d, moments[i].squares)));
      const float scale = rsqrtf(squares * inverse_d + tail.norm.epsilon);
      if (threadIdx.x % 4 == 0) norms[8 * i] = {scale, -mean * scale};
    }
  }

  // Normalises the rows and writes them. norm: gamma, and behind it beta.
  __device__ __forceinline__ void Finish(const ShiftedSums (&moments)[2],
                                         const uint32_t (&kept)[Tail::kKept][Tail::kWords],
                                         const float* norm, const Rows& x) {
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x % 128 / 32;
    StoreNorms(moments, storage.tail.norms[warpgroup] + warp * 16 + lane / 4);
    NamedBarrierSync(4 + warpgroup, 128);
    // A warp has one half of the rows of every second block.
    const int first_row = warp % 2 * 32 + lane / 8;
    float2 norms[8];
#pragma unroll
    for (int r = 0; r < 8; ++r) norms[r] = storage.tail.norms[warpgroup][first_row + 4 * r];
    const int first = row + first_row;
    T* out = static_cast<T*>(x.data) + first * x.stride + lane % 8 * 8;
    const auto normalize = [&](int block, int place) {
      const uint8_t* in = SumBlock<Shape>(storage, warpgroup, place) + first_row * 128;
      Affine affine;
      affine.Load(norm + block * 64 + lane % 8 * 8, tail.plan.d);
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        const int swizzle = r % 2 * 4 + lane / 8;
        uint4 words = *reinterpret_cast<const uint4*>(in + r * 512 + (lane % 8 ^ swizzle) * 16);
        affine.Apply(words.x, norms[r], 0);
        affine.Apply(words.y, norms[r], 2);
        affine.Apply(words.z, norms[r], 4);
        affine.Apply(words.w, norms[r], 6);
        if (first + r * 4 < x.rows) {
          *reinterpret_cast<uint4*>(out + r * 4 * x.stride + block * 64) = words;
        }
      }
    };
    const int blocks = tail.plan.d / 64;
#pragma unroll 1
    for (int i = Tail::kKeptBlocks + warp / 2; i < blocks; i += 2) {
      normalize(i, i - Tail::kKeptBlocks);
    }
    NamedBarrierSync(4 + warpgroup, 128);  // all that lay in shared memory is done with
#pragma unroll
    for (int k = 0; k < Tail::kKept; ++k) Keep(kept[k], k);
    NamedBarrierSync(4 + warpgroup, 128);
#pragma unroll 1
    for (int i = warp / 2; i < min(blocks, Tail::kKeptBlocks); i += 2) normalize(i, i);
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
