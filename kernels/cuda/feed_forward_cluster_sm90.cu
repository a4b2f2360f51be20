#include <type_traits>

#include "kernels/cuda/dispatch.cuh"
#include "kernels/cuda/feed_forward_cluster.cuh"
#include "kernels/cuda/feed_forward_cluster.h"

namespace flashsvd {

cudaError_t LaunchFeedForwardClusterSm90(const FeedForwardParams& params, DType dtype,
                                         const FeedForwardTile& tile, cudaStream_t stream) {
  if (params.x.rows < 1 || params.a1.n > tile.rank || params.a2.n > tile.rank) {
    return cudaErrorInvalidValue;
  }
  return VisitFloat(dtype, [&]<class T>() {
    constexpr bool kHalfSums = std::is_same_v<T, __nv_bfloat16>;
    const auto launch = [&]<int kRows, int kRankTiles>() {
      return params.activation == Activation::kGelu
                 ? LaunchFeedForwardCluster<T, ClusterShape<kRows, kRankTiles, kHalfSums, true>>(
                       params, tile.splits, stream)
                 : LaunchFeedForwardCluster<T, ClusterShape<kRows, kRankTiles, kHalfSums, false>>(
                       params, tile.splits, stream);
    };
    if (tile.rank > 256) {
      return VisitAtLeast<320>(tile.rank, [&]<int>() {
        return VisitAtLeast<32, 40, 48>(
            tile.rows, [&]<int kRows>() { return launch.template operator()<kRows, 5>(); });
      });
    }
    return VisitAtLeast<24, 32, 40, 48, 64, 72>(tile.rows, [&]<int kRows>() {
      return tile.rank <= 128 ? launch.template operator()<kRows, 2>()
                              : launch.template operator()<kRows, 4>();
    });
  });
}

}  // namespace flashsvd
