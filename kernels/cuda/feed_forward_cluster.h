#ifndef FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_H_
#define FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_H_

#include <cuda_runtime_api.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/tile_policy.h"
#include "kernels/tensor.h"

namespace flashsvd {

// LaunchFeedForwardSm90 for few tokens, with b2 and params.exchange.
//   tile.rows    24, 32, 40, 48, 64 or 72 (others are rounded up); for ranks over 256 at most 48
//   tile.rank    at most 320: the kernels pad both ranks to 128, 256 or 320
//   tile.splits  2 to 16; for ranks over 256 from 3 on
// d is a multiple of 16 and at most 1024, of which a block gets at most 128 columns, or 256 with up
// to 32 rows. cudaErrorInvalidValue for anything else, for an empty x, and for what does not fit
// shared memory, as do most wide ranks with more than 128 columns. Of clusters of more than 8
// blocks only a few fit on a device at a time; the launch fails where none does.
cudaError_t LaunchFeedForwardClusterSm90(const FeedForwardParams& params, DType dtype,
                                         const FeedForwardTile& tile, cudaStream_t stream);

}  // namespace flashsvd

#endif  // FLASHSVD_KERNELS_CUDA_FEED_FORWARD_CLUSTER_H_
