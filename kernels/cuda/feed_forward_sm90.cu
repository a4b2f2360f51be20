#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/feed_forward_cluster.h"
#include "kernels/cuda/feed_forward_split.cuh"
#include "kernels/cuda/feed_forward_stream.cuh"
#include "kernels/cuda/launch.h"

// The streamed feed-forward on Hopper. Which tiles there are:
//   rank    at most 320: the kernels pad both ranks to 64, 128, 192, 240, 256 or 320
//   rows    128 with splits 1 or 2; 64 with splits 2 to 4; others: feed_forward_cluster.h
// With b2: rows 128 with splits 1, d a multiple of 64 and at most 768, or at most 1024 for ranks
// over 256; rows below 128 as in feed_forward_cluster.h.
// cudaErrorInvalidValue for any other, and for an empty x.

namespace flashsvd {
namespace {

// Rows128 has as much of P in registers as leaves wgmma's accumulators undisturbed; Rows128Norm,
// with the tail, less where that would spill.
template <int kRank>
struct Shapes;
template <>
struct Shapes<64> {
  using Rows128 = FeedForwardShape<64, 128, 4, true>;
  using Rows128Norm = Rows128;
  using Rows64 = FeedForwardShape<64, 64, 0, false>;
};
template <>
struct Shapes<128> {
  using Rows128 = FeedForwardShape<128, 128, 8, true>;
  using Rows128Norm = Rows128;
  using Rows64 = FeedForwardShape<128, 64, 0, false>;
};
template <>
struct Shapes<192> {
  using Rows128 = FeedForwardShape<192, 96, 6, true>;
  using Rows128Norm = FeedForwardShape<192, 96, 4, true>;
  using Rows64 = FeedForwardShape<192, 96, 0, false>;
};
template <>
struct Shapes<240> {
  using Rows128 = FeedForwardShape<240, 96, 3, true>;
  using Rows128Norm = FeedForwardShape<240, 96, 2, true>;
  using Rows64 = FeedForwardShape<240, 96, 0, false>;
};
template <>
struct Shapes<256> {
  using Rows128 = FeedForwardShape<256, 64, 6, true>;
  using Rows128Norm = FeedForwardShape<256, 64, 4, true>;
  using Rows64 = FeedForwardShape<256, 64, 0, false>;
};
template <>
struct Shapes<320> {
  using Rows128 = FeedForwardShape<320, 64, 0, false>;
  using Rows128Norm = Rows128;
  using Rows64 = FeedForwardShape<320, 64, 0, false>;
};

template <class T, int kRank>
cudaError_t Launch(const FeedForwardParams& params, const FeedForwardTile& tile,
                   cudaStream_t stream) {
  using Rows128 = typename Shapes<kRank>::Rows128;
  using Rows64 = typename Shapes<kRank>::Rows64;
  if (tile.rows == 64) return LaunchFeedForwardSplit<T, Rows64, 1>(params, tile.splits, stream);
  if (tile.splits > 1) return LaunchFeedForwardSplit<T, Rows128, 2>(params, tile.splits, stream);
  if (params.b2.data != nullptr) {
    return LaunchFeedForwardStreamNorm<T, typename Shapes<kRank>::Rows128Norm>(params, stream);
  }
  return LaunchFeedForwardStream<T, Rows128>(params, stream);
}

}  // namespace

cudaError_t LaunchFeedForwardSm90(const FeedForwardParams& params, DType dtype,
                                  const FeedForwardTile& tile, cudaStream_t stream) {
  const bool norm = params.b2.data != nullptr;
  if (tile.rows < 128 && (norm || tile.rows != 64 || tile.splits > 4)) {
    return LaunchFeedForwardClusterSm90(params, dtype, tile, stream);
  }
  if (params.x.rows < 1 || (tile.rows != 64 && tile.rows != 128)) return cudaErrorInvalidValue;
  if (params.a1.n > tile.rank || params.a2.n > tile.rank) return cudaErrorInvalidValue;
  if (norm && tile.splits > 1) return cudaErrorInvalidValue;
  return VisitFloat(dtype, [&]<class T>() {
    return VisitAtLeast<64, 128, 192, 240, 256, 320>(
        tile.rank, [&]<int kRank>() { return Launch<T, kRank>(params, tile, stream); });
  });
}

}  // namespace flashsvd
