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
    const auto launch = [&]<int kRows, int kRankTiles>() {
      return LaunchFeedForwardCluster<T, ClusterShape<kRows, kRankTiles>>(params, tile.splits,
                                                                          stream);
    };
    if (tile.rank > 256) {
      return VisitAtLeast<320>(tile.rank, [&]<int>() {
        return VisitAtLeast<32, 40, 48>(
            tile.rows, [&]<int kRows>() { return launch.template operator()<kRows, 5>(); });
      });
    }
    return VisitAtLeast<32, 40, 48, 64, 72>(tile.rows, [&]<int kRows>() {
      return tile.rank <= 128 ? launch.template operator()<kRows, 2>()
                              : launch.template operator()<kRows, 4>();
    });
  });
}

}  // namespace flashsvd
