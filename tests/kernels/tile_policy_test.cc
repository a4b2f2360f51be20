#include "kernels/cuda/tile_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <tuple>
#include <vector>

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
const std::set<std::pair<int, int>> kSm90Gemm = {{64, 48},   {64, 128},  {64, 192},  {128, 96},
                                                 {128, 104}, {128, 128}, {128, 192}, {128, 200},
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
  EXPECT_EQ(tile(4096, 792, 768), std::pair(128, 200));
  EXPECT_EQ(tile(4096, 390, 768), std::pair(128, 104));
}

TEST(TilePolicyTest, HoldsWeightsOnlyWhereTheirKernelCan) {
  for (const int64_t rows : {1, 128, 4096, 100000}) {
    for (const int n : {40, 128, 500, 768, 1024, 2304}) {
      for (const int k : {1, 260, 400, 401, 608, 609}) {
        for (const int groups : {1, 2, 3, 4}) {
          EXPECT_EQ(ChooseHeldGemmTile(kA100, rows, n, k, groups).rows, 0);
          const GemmTile tile = ChooseHeldGemmTile(kH100, rows, n, k, groups);
          if (tile.rows == 0) continue;
          EXPECT_EQ(tile.path, KernelPath::kSm90);
          EXPECT_EQ(tile.rows, 64);
          EXPECT_TRUE((tile.cols == 192 && k <= 400) || (tile.cols == 128 && k <= 608)) << k;
          EXPECT_TRUE(groups == 1 || n % tile.cols == 0) << n;
          EXPECT_LE(groups, 3);
        }
      }
    }
  }
  EXPECT_EQ(ChooseHeldGemmTile(kH100, 0, 768, 260, 3).rows, 0);
}

// As measured on an H200: Q, K and V of factor pairs always, one product of many rows.
TEST(TilePolicyTest, HoldsWeightsOfGroupsAndOfManyRows) {
  for (const int64_t rows : {1, 128, 1024, 4096, 16384}) {
    EXPECT_GT(ChooseHeldGemmTile(kH100, rows, 768, 260, 3).rows, 0) << rows;
  }
  EXPECT_EQ(ChooseHeldGemmTile(kH100, 1024, 2304, 390, 1).rows, 0);
  EXPECT_EQ(ChooseHeldGemmTile(kH100, 4096, 2304, 390, 1).cols, 192);
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

// As measured on an H100 (docs/kernels.md).
TEST(TilePolicyTest, FeedForwardIsSplitWhileItsClustersFitTheDevice) {
  using Tile = std::tuple<int, int, bool>;
  const auto tile = [](int64_t rows, int d = 768, int hidden = 3072, int rank = 240) {
    const FeedForwardTile t = ChooseFeedForwardTile(kH100, rows, d, hidden, rank);
    return Tile(t.rows, t.splits, t.add_norm);
  };
  EXPECT_EQ(tile(1), Tile(24, 12, true));
  EXPECT_EQ(tile(96), Tile(24, 12, true));
  EXPECT_EQ(tile(97), Tile(32, 16, true));
  EXPECT_EQ(tile(160), Tile(32, 16, true));
  EXPECT_EQ(tile(192), Tile(24, 8, true));
  EXPECT_EQ(tile(256), Tile(24, 8, true));
  EXPECT_EQ(tile(384), Tile(32, 8, true));
  EXPECT_EQ(tile(512), Tile(40, 8, true));
  EXPECT_EQ(tile(1024), Tile(72, 8, true));
  EXPECT_EQ(tile(1536), Tile(64, 4, false));
  EXPECT_EQ(tile(2048), Tile(64, 3, false));
  EXPECT_EQ(tile(2496), Tile(64, 3, false));
  EXPECT_EQ(tile(2497), Tile(64, 2, false));  // 40 clusters of 3 are two waves
  EXPECT_EQ(tile(4096), Tile(64, 2, false));
  EXPECT_EQ(tile(8192), Tile(128, 2, false));
  EXPECT_EQ(tile(12288), Tile(128, 1, false));
  EXPECT_EQ(tile(16384), Tile(128, 1, true));
  EXPECT_EQ(tile(20000), Tile(128, 1, false));
  EXPECT_EQ(tile(32768), Tile(128, 1, true));
  EXPECT_EQ(tile(128, 384, 1536, 120), Tile(32, 12, true));
  EXPECT_EQ(tile(512, 384, 1536, 120), Tile(32, 6, true));
  EXPECT_EQ(tile(1024, 384, 1536, 120), Tile(32, 3, true));
  EXPECT_EQ(tile(1536, 384, 1536, 120), Tile(40, 3, true));
  EXPECT_EQ(tile(2048, 384, 1536, 120), Tile(64, 3, true));
  EXPECT_EQ(tile(2560, 384, 1536, 120), Tile(72, 3, true));
  EXPECT_EQ(tile(3072, 384, 1536, 120), Tile(64, 2, false));
  EXPECT_EQ(tile(1024, 768, 3072, 120), Tile(64, 6, true));
  EXPECT_EQ(tile(1536, 768, 3072, 120), Tile(64, 4, false));
  EXPECT_EQ(tile(720, 1024, 4096, 320), Tile(48, 8, true));
  EXPECT_EQ(tile(1024, 1024, 4096, 320), Tile(64, 4, false));
  EXPECT_EQ(tile(16384, 1024, 4096, 240), Tile(128, 1, false));
  EXPECT_EQ(tile(128, 1032), Tile(64, 4, false));
}

TEST(TilePolicyTest, EveryFeedForwardTileIsOneThatItsKernelTakes) {
  for (const DeviceFacts& device : {kH100, kSlice}) {
    for (int64_t rows = 1; rows < 20000; rows += 61) {
      for (const int d : {16, 96, 384, 768, 1000, 1024, 2048}) {
        for (const int hidden : {1, 9, 191, 192, 384, 1536, 3072}) {
          for (const int rank : {1, 100, 240, 256, 320}) {
            SCOPED_TRACE(::testing::Message()
                         << rows << " x " << d << ", " << hidden << ", " << rank);
            const FeedForwardTile t = ChooseFeedForwardTile(device, rows, d, hidden, rank);
            if (t.rows == 128) {
              EXPECT_LE(t.splits, 2);
              EXPECT_TRUE(!t.add_norm ||
                          (t.splits == 1 && d % 64 == 0 && d <= (rank > 256 ? 1024 : 768)));
            } else if (t.add_norm) {  // feed_forward_cluster.h
              EXPECT_TRUE((std::set{24, 32, 40, 48, 64, 72}.contains(t.rows)));
              EXPECT_LE(t.rows, rank > 256 ? 48 : 72);
              EXPECT_GE(t.splits, rank > 256 ? 3 : 2);
              EXPECT_LE(t.splits, std::min(16, hidden / 64));
              EXPECT_TRUE(d % 16 == 0 && d <= 1024);
              EXPECT_LE((d / 16 + t.splits - 1) / t.splits * 16, t.rows > 32 ? 128 : 256);
              const int bytes = rank <= 128 ? 512 : rank <= 256 ? 1024 : 1280;  // of a row
              EXPECT_LE((rows + t.rows - 1) / t.rows * t.rows * bytes,
                        FeedForwardExchangeBytes(device, rows));
            } else {
              EXPECT_TRUE(t.rows == 64 && t.splits >= 2 && t.splits <= 4);
              EXPECT_LE(t.splits, hidden / 192);
            }
            EXPECT_EQ(t.rank, rank);
          }
        }
      }
    }
  }
}

// Scratch is planned for the largest batch and must do for every smaller one.
TEST(TilePolicyTest, FeedForwardSumRowsCoverEverySmallerBatch) {
  for (const DeviceFacts& device : {kH100, kSlice}) {
    for (const int d : {384, 768, 1024}) {
      for (const int hidden : {64, 1536, 4096}) {
        for (const int rank : {100, 240, 320}) {
          int64_t last = 0;
          for (int64_t rows = 1; rows < 60000; rows += 13) {
            const int64_t sums = FeedForwardSumRows(device, rows, d, hidden, rank);
            EXPECT_GE(sums, last) << rows;
            if (!ChooseFeedForwardTile(device, rows, d, hidden, rank).add_norm) {
              EXPECT_EQ(sums, rows);
            }
            last = sums;
          }
        }
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

std::vector<int32_t> Offsets(const std::vector<int>& lengths) {
  std::vector<int32_t> cu = {0};
  for (const int length : lengths) cu.push_back(cu.back() + length);
  return cu;
}

TEST(TilePolicyTest, AttentionTakesTheNormAlongWhereRowTilesAreAlikeAndMany) {
  const auto fuses = [](const std::vector<int>& lengths) {
    return FusesAttentionNorm(kH100, Offsets(lengths), 12, 40, 40, 768);
  };
  EXPECT_TRUE(fuses(std::vector<int>(8, 512)));
  EXPECT_TRUE(fuses(std::vector<int>(16, 256)));
  EXPECT_TRUE(fuses(std::vector<int>(32, 128)));
  EXPECT_TRUE(fuses({2048, 2048}));
  EXPECT_FALSE(fuses({512, 512}));
  EXPECT_FALSE(fuses(std::vector<int>(4, 128)));
  EXPECT_FALSE(fuses({1}));
  EXPECT_FALSE(fuses({0}));
  std::vector<int> mixed;
  for (int i = 0; i < 16; ++i) mixed.insert(mixed.end(), {512 - 31 * i, 16 + i});
  EXPECT_FALSE(fuses(mixed));
  std::vector<int> one_long(32, 64);
  one_long[7] = 2048;
  EXPECT_FALSE(fuses(one_long));
}

TEST(TilePolicyTest, AttentionTakesTheNormAlongOnlyOfWidthsThatItsKernelTakes) {
  const std::vector<int32_t> cu = Offsets(std::vector<int>(8, 512));
  const auto fuses = [&](const DeviceFacts& device, int heads, int d_qk, int d_v, int d) {
    return FusesAttentionNorm(device, cu, heads, d_qk, d_v, d);
  };
  EXPECT_TRUE(fuses(kH100, 12, 48, 48, 768));
  EXPECT_TRUE(fuses(kH100, 12, 24, 32, 768));
  EXPECT_FALSE(fuses(kA100, 12, 40, 40, 768));
  EXPECT_FALSE(fuses(kH100, 12, 64, 64, 768));
  EXPECT_FALSE(fuses(kH100, 11, 40, 40, 768));
  EXPECT_FALSE(fuses(kH100, 26, 16, 16, 768));
  EXPECT_FALSE(fuses(kH100, 16, 40, 40, 768));
  EXPECT_FALSE(fuses(kH100, 12, 40, 40, 384));
  EXPECT_FALSE(fuses(kH100, 16, 40, 40, 1024));
}

}  // namespace
}  // namespace flashsvd
