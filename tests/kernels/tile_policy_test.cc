#include "kernels/cuda/tile_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <tuple>

namespace flashsvd {
namespace {

constexpr DeviceFacts kH100 = {.num_sms = 132,
                               .compute_capability = 90,
                               .shared_bytes_per_block = 227 * 1024,
                               .path = KernelPath::kSm90};
constexpr DeviceFacts kA100 = {
    .num_sms = 108, .compute_capability = 80, .shared_bytes_per_block = 163 * 1024};
// Half of an H100's quarter, as MIG gives it.
constexpr DeviceFacts kSlice = {.num_sms = 16,
                                .compute_capability = 90,
                                .shared_bytes_per_block = 227 * 1024,
                                .path = KernelPath::kSm90};

// What the kernels take (the list in each .cu file).
const std::set<std::tuple<int, int, int, int>> kSm80Gemm = {
    {128, 128, 64, 3}, {128, 128, 32, 4}, {64, 64, 64, 4}, {32, 64, 128, 3}};
const std::set<std::pair<int, int>> kSm90Gemm = {{64, 48},   {64, 128},  {64, 192},
                                                 {128, 96},  {128, 128}, {128, 192},
                                                 {128, 240}, {192, 192}, {192, 240}};
const std::set<std::pair<int, int>> kSm90GemmWithActivation = {{64, 48}, {128, 128}};

TEST(TilePolicyTest, EveryGemmTileIsOneThatItsKernelTakes) {
  for (const int64_t rows : {1, 16, 127, 128, 1000, 4096, 16384, 100000}) {
    for (const int n : {1, 40, 240, 768, 1440, 3072}) {
      for (const int k : {1, 120, 768, 3072}) {
        for (const bool activation : {false, true}) {
          const GemmTile old = ChooseGemmTile(kA100, rows, n, k, activation);
          EXPECT_EQ(old.path, KernelPath::kSm80);
          EXPECT_TRUE(kSm80Gemm.contains({old.rows, old.cols, old.depth, old.stages}));
          for (const DeviceFacts& device : {kH100, kSlice}) {
            const GemmTile tile = ChooseGemmTile(device, rows, n, k, activation);
            EXPECT_EQ(tile.path, KernelPath::kSm90);
            const auto& tiles = activation ? kSm90GemmWithActivation : kSm90Gemm;
            EXPECT_TRUE(tiles.contains({tile.rows, tile.cols})) << rows << " " << n << " " << k;
            const int64_t blocks =
                ((rows - 1) / tile.rows + 1) * ((n - 1) / std::max(tile.cols, 1) + 1);
            EXPECT_TRUE(tile.rows < 192 || blocks <= device.num_sms);
          }
        }
      }
    }
  }
}

// The fastest tiles as measured on an H100 (docs/kernels.md).
TEST(TilePolicyTest, TakesTheMeasuredBestGemmTiles) {
  const auto tile = [](int64_t rows, int n, int k) {
    const GemmTile t = ChooseGemmTile(kH100, rows, n, k, false);
    return std::pair(t.rows, t.cols);
  };
  EXPECT_EQ(tile(16384, 1440, 768), std::pair(128, 240));
  EXPECT_EQ(tile(4096, 1440, 768), std::pair(192, 240));
  EXPECT_EQ(tile(2048, 1440, 768), std::pair(128, 192));
  EXPECT_EQ(tile(4096, 864, 384), std::pair(128, 240));
  EXPECT_EQ(tile(4096, 1152, 384), std::pair(192, 192));
  EXPECT_EQ(tile(1024, 1440, 768), std::pair(128, 96));
  EXPECT_EQ(tile(128, 1440, 768), std::pair(64, 48));
  EXPECT_EQ(tile(4096, 2304, 768), std::pair(128, 192));
  EXPECT_EQ(tile(4096, 240, 768), std::pair(64, 128));
}

TEST(TilePolicyTest, AddNormTilesCoverTheWholeRow) {
  for (int d = 1; d <= 1200; ++d) {
    EXPECT_FALSE(HasFusedAddNorm(kA100, d));
    if (!HasFusedAddNorm(kH100, d)) continue;
    for (const int64_t rows : {1, 128, 1024, 4096, 16384}) {
      for (const DeviceFacts& device : {kH100, kSlice}) {
        const AddNormTile tile = ChooseAddNormTile(device, rows, d);
        EXPECT_EQ(tile.rows, 64);
        EXPECT_EQ(tile.cols * tile.cluster, d) << d << ", " << rows;
        EXPECT_LE(tile.cluster, 8);
        EXPECT_TRUE((std::set{128, 192, 256, 384, 512}.contains(tile.cols)));
      }
    }
  }
  EXPECT_TRUE(HasFusedAddNorm(kH100, 384) && HasFusedAddNorm(kH100, 768) &&
              HasFusedAddNorm(kH100, 1024));
}

TEST(TilePolicyTest, AddNormBlocksGetWiderAsRowsGetMore) {
  EXPECT_EQ(ChooseAddNormTile(kH100, 128, 768).cols, 128);
  EXPECT_EQ(ChooseAddNormTile(kH100, 2048, 768).cols, 256);
  EXPECT_EQ(ChooseAddNormTile(kH100, 4096, 768).cols, 384);
  EXPECT_EQ(ChooseAddNormTile(kH100, 16384, 1024).cols, 512);
}

TEST(TilePolicyTest, FeedForwardIsSplitWhileItsClustersFitTheDevice) {
  const auto tile = [](int64_t rows) {
    const FeedForwardTile t = ChooseFeedForwardTile(kH100, rows, 3072, 240);
    return std::pair(t.rows, t.splits);
  };
  EXPECT_EQ(tile(1), std::pair(64, 8));
  EXPECT_EQ(tile(512), std::pair(64, 8));
  EXPECT_EQ(tile(1024), std::pair(64, 4));
  EXPECT_EQ(tile(2048), std::pair(64, 3));
  EXPECT_EQ(tile(4096), std::pair(64, 2));
  EXPECT_EQ(tile(8192), std::pair(128, 2));
  EXPECT_EQ(tile(16384), std::pair(128, 1));
  for (const DeviceFacts& device : {kH100, kSlice}) {
    for (int64_t rows = 1; rows < 20000; rows += 61) {
      for (const int hidden : {1, 9, 191, 192, 384, 1536, 3072}) {
        const FeedForwardTile t = ChooseFeedForwardTile(device, rows, hidden, 100);
        EXPECT_LE(t.splits, std::max(1, hidden / 192));
        EXPECT_TRUE(t.rows == 128 ? t.splits <= 2 : t.rows == 64 && t.splits >= 2);
      }
    }
  }
}

TEST(TilePolicyTest, StreamsFactorPairsUpToTheLargestRank) {
  EXPECT_TRUE(HasStreamedFeedForward(kH100, 320, 1));
  EXPECT_FALSE(HasStreamedFeedForward(kH100, 240, 321));
  EXPECT_FALSE(HasStreamedFeedForward(kA100, 240, 240));
}

TEST(TilePolicyTest, AttentionRowsDependOnTokensAlone) {
  for (const int tokens : {1, 1000, 2000, 16384}) {
    for (const DeviceFacts& device : {kA100, kH100}) {
      for (const int d : {8, 40, 64, 72, 256}) {
        const AttentionTiling tile = ChooseAttentionTiling(device, tokens, d, 8);
        EXPECT_EQ(tile.rows, AttentionTileRows(tokens));
        EXPECT_EQ(tile.path == KernelPath::kSm90, device.num_sms == 132 && d <= 64);
      }
    }
  }
}

}  // namespace
}  // namespace flashsvd
