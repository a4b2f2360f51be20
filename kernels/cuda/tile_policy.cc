#include "kernels/cuda/tile_policy.h"

#include <algorithm>
#include <iterator>
#include <limits>

namespace flashsvd {
namespace {

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct TileShape {
  int rows;
  int cols;
};

// Clocks that a multiprocessor needs for its share of x [rows, k] W' in tiles of this shape, as
// fitted to times on an H100: a step of 64 k is bound by the products, by filling shared memory, or
// by its latency; a tile adds its first loads and its epilogue. Tiles of 192 rows hide neither, so
// they pay in one wave alone.
double HopperGemmClocks(TileShape tile, const DeviceFacts& device, int64_t rows, int n, int k) {
  const int64_t tiles = CeilDiv(rows, tile.rows) * CeilDiv(n, tile.cols);
  const int64_t waves = CeilDiv(tiles, device.num_sms);
  if (tile.rows == 192 && waves > 1) return std::numeric_limits<double>::infinity();
  const double area = double{1} * tile.rows * tile.cols;
  const double step = std::max({area / 25.6, (tile.rows + tile.cols) * 8 / 3.0, 260.0});
  return waves * (CeilDiv(k, 64) * step + 900 + area / 30);
}

GemmTile ChooseHopperGemmTile(const DeviceFacts& device, int64_t rows, int n, int k,
                              bool activation) {
  constexpr TileShape kTiles[] = {{64, 48},   {128, 128}, {64, 128},  {64, 192},
                                  {128, 96},  {128, 104}, {128, 192}, {128, 200},
                                  {128, 240}, {192, 192}, {192, 240}};
  // The first two also apply an activation.
  const auto end = activation ? kTiles + 2 : std::end(kTiles);
  const TileShape best = *std::min_element(std::begin(kTiles), end, [&](TileShape a, TileShape b) {
    return HopperGemmClocks(a, device, rows, n, k) < HopperGemmClocks(b, device, rows, n, k);
  });
  return {.path = KernelPath::kSm90, .rows = best.rows, .cols = best.cols};
}

}  // namespace

GemmTile ChooseGemmTile(const DeviceFacts& device, int64_t rows, int n, int k, bool activation) {
  if (device.path == KernelPath::kSm90) {
    return ChooseHopperGemmTile(device, rows, n, k, activation);
  }
  // Large tiles reuse more; they pay once there are enough of them for every multiprocessor.
  if (CeilDiv(rows, 128) * CeilDiv(n, 128) >= device.num_sms) {
    // Two blocks of the deeper tile want 192 KiB of shared memory, more than an A100 has.
    const bool deep = device.shared_bytes_per_block >= 200 * 1024;
    return {.rows = 128, .cols = 128, .depth = deep ? 64 : 32, .stages = deep ? 3 : 4};
  }
  if (CeilDiv(rows, 64) * CeilDiv(n, 64) >= device.num_sms) {
    return {.rows = 64, .cols = 64, .depth = 64, .stages = 4};
  }
  return {.rows = 32, .cols = 64, .depth = 128, .stages = 3};
}

namespace {

// A kernel that holds W on chip: its columns of a block, and how much of k fits beside them.
struct HeldShape {
  int cols;
  int max_k;
};

// As HopperGemmClocks: W has to come in, then each block has its share of the units of 64 rows.
double HeldGemmClocks(HeldShape shape, const DeviceFacts& device, int64_t rows, int n, int k,
                      int groups) {
  if (k > shape.max_k || (groups > 1 && n % shape.cols != 0)) {
    return std::numeric_limits<double>::infinity();
  }
  const int64_t tiles = groups * CeilDiv(n, shape.cols);
  const int64_t units = CeilDiv(rows, 64);
  const int64_t blocks = std::min(units, std::max<int64_t>(device.num_sms / tiles, 1));
  const double products = static_cast<double>(CeilDiv(k, 16));
  const double load = products * shape.cols * 2 / 3.0;
  const double unit = products * shape.cols / 2 + 500;
  return CeilDiv(tiles * blocks, device.num_sms) * (2500 + load + CeilDiv(units, blocks) * unit);
}

}  // namespace

GemmTile ChooseHeldGemmTile(const DeviceFacts& device, int64_t rows, int n, int k, int groups) {
  constexpr HeldShape kShapes[] = {{192, 400}, {128, 608}};
  constexpr int kMaxGroups = 3;
  constexpr double kLaunchClocks = 2000;  // of every product but the first
  if (device.path != KernelPath::kSm90 || rows == 0 || groups > kMaxGroups) return {};
  const GemmTile apart = ChooseHopperGemmTile(device, rows, n, k, false);
  double least = groups * HopperGemmClocks({apart.rows, apart.cols}, device, rows, n, k) +
                 (groups - 1) * kLaunchClocks;
  GemmTile best;
  for (const HeldShape& shape : kShapes) {
    const double clocks = HeldGemmClocks(shape, device, rows, n, k, groups);
    if (clocks >= least) continue;
    least = clocks;
    best = {.path = KernelPath::kSm90, .rows = 64, .cols = shape.cols};
  }
  return best;
}

bool HasFusedAddNorm(const DeviceFacts& device, int d) {
  return device.path == KernelPath::kSm90 && d % 128 == 0 && d <= 1024;
}

AddNormTile ChooseAddNormTile(const DeviceFacts& device, int64_t rows, int d) {
  // Wide blocks read y fewer times, narrow ones are more: the widest that still makes two blocks
  // for every three multiprocessors.
  constexpr int kColumns[] = {512, 384, 256, 192, 128};
  for (const int cols : kColumns) {
    if (d % cols != 0 || d / cols > 8) continue;
    // A row as one block has no exchange to hide, and too little to do at a time.
    const int64_t blocks = CeilDiv(rows, 64) * (d / cols);
    const int64_t enough = d == cols ? device.num_sms / 2 : device.num_sms * 5 / 9;
    if (blocks > enough || cols == 128) return {.rows = 64, .cols = cols, .cluster = d / cols};
  }
  return {};
}

bool HasStreamedFeedForward(const DeviceFacts& device, int up_rank, int down_rank) {
  return device.path == KernelPath::kSm90 && std::max(up_rank, down_rank) <= 320;
}

namespace {

// Blocks of a cluster must be neighbours, which leaves some multiprocessors unused: an H100's 132
// hold 66 clusters of 2, but 39 of 3, 30 of 4 and 15 of 8.
bool ClustersFit(const DeviceFacts& device, int64_t clusters, int splits) {
  const int percent = splits == 2 ? 100 : splits == 3 ? 89 : 91;
  return clusters * splits * 100 <= int64_t{device.num_sms} * percent;
}

// Few tokens, the norm included: clusters of `splits` blocks with `rows` rows each, for as many
// clusters of an H100's as are the fastest. Measured in a pass, where few clusters start sooner
// behind other kernels than many.
struct FewRowsShape {
  int rows;
  int splits;
  int most_clusters;
  int most_d = 1024;
};
// Narrow sums let clusters of few blocks have many rows.
constexpr FewRowsShape kNarrowShapes[] = {{32, 12, 6},      {24, 8, 11}, {32, 6, 16}, {32, 4, 24},
                                          {32, 3, 32, 384}, {64, 6, 16}, {40, 3, 39}, {48, 3, 39},
                                          {64, 3, 39},      {72, 3, 39}};
constexpr FewRowsShape kMiddleShapes[] = {{24, 12, 4}, {32, 16, 5}, {24, 8, 11}, {32, 8, 15},
                                          {40, 8, 15}, {48, 8, 15}, {64, 8, 15}, {72, 8, 15}};
// Wide sums of more rows do not fit.
constexpr FewRowsShape kWideShapes[] = {{32, 16, 6}, {32, 8, 15}, {40, 8, 15}, {48, 8, 15}};

// rows == 0: too many.
FeedForwardTile ChooseFewRows(const DeviceFacts& device, int64_t rows, int d, int hidden,
                              int rank) {
  constexpr int kSms = 132;  // that the shapes are for
  const std::span<const FewRowsShape> shapes =
      rank <= 128   ? std::span<const FewRowsShape>(kNarrowShapes)
      : rank <= 256 ? std::span<const FewRowsShape>(kMiddleShapes)
                    : std::span<const FewRowsShape>(kWideShapes);
  for (const FewRowsShape& shape : shapes) {
    // Every block gets a tile of F, which is 64 wide, and as many columns of x as it can keep.
    const int64_t cols = CeilDiv(CeilDiv(d, shape.splits), 16) * 16;
    if (hidden / 64 < shape.splits || d > shape.most_d || cols > (shape.rows > 32 ? 128 : 256)) {
      continue;
    }
    if (CeilDiv(rows, shape.rows) * kSms <= int64_t{shape.most_clusters} * device.num_sms) {
      return {.rows = shape.rows, .rank = rank, .splits = shape.splits, .add_norm = true};
    }
  }
  return {};
}

// Whether a block of 128 rows can keep their sums on chip.
bool KeepsSums(int d, int rank) { return d % 64 == 0 && d <= (rank > 256 ? 1024 : 768); }

// The fewest blocks of 128 rows, of as many waves as `blocks` make, to take the norm along: that
// costs a time for each wave, the kernel of its own a time for each row.
int64_t FewestBlocksWithNorm(const DeviceFacts& device, int64_t blocks) {
  return CeilDiv(CeilDiv(blocks, device.num_sms) * device.num_sms * 4, 5);
}

}  // namespace

FeedForwardTile ChooseFeedForwardTile(const DeviceFacts& device, int64_t rows, int d, int hidden,
                                      int rank) {
  if (d % 16 == 0 && d <= 1024) {
    const FeedForwardTile few = ChooseFewRows(device, rows, d, hidden, rank);
    if (few.rows > 0) return few;
  }
  // Every block of a cluster gets at least two tiles of F, which are up to 96 wide.
  const int most = hidden / 192;
  for (const int splits : {4, 3, 2}) {
    if (splits <= most && ClustersFit(device, CeilDiv(rows, 64), splits)) {
      return {.rows = 64, .rank = rank, .splits = splits};
    }
  }
  if (most >= 2 && ClustersFit(device, CeilDiv(rows, 128), 2)) {
    return {.rows = 128, .rank = rank, .splits = 2};
  }
  const int64_t blocks = CeilDiv(rows, 128);
  return {.rows = 128,
          .rank = rank,
          .add_norm = KeepsSums(d, rank) && blocks >= FewestBlocksWithNorm(device, blocks)};
}

int64_t FeedForwardExchangeBytes(const DeviceFacts& device, int64_t rows) {
  if (device.path != KernelPath::kSm90) return 0;
  // P and S of every cluster, whose last may have few of its rows: 2 bytes for each of up to 320
  // ranks, of 1188 rows; 2808 rows have at most 128 ranks.
  return (std::min(rows, int64_t{9} * device.num_sms) + 80) * 1280;
}

int64_t FeedForwardSumRows(const DeviceFacts& device, int64_t rows, int d, int hidden, int rank) {
  const FeedForwardTile tile = ChooseFeedForwardTile(device, rows, d, hidden, rank);
  if (!tile.add_norm) return rows;
  return tile.rows == 128 ? (FewestBlocksWithNorm(device, CeilDiv(rows, 128)) - 1) * 128 : 0;
}

int AttentionTileRows(int num_tokens) { return num_tokens >= 1408 ? 128 : 64; }

AttentionTiling ChooseAttentionTiling(const DeviceFacts& device, int num_tokens, int d_qk,
                                      int d_v) {
  AttentionTiling tile = {.rows = AttentionTileRows(num_tokens)};
  if (device.path == KernelPath::kSm90 && std::max(d_qk, d_v) <= 64) {
    tile.path = KernelPath::kSm90;
  }
  return tile;
}

namespace {

// What LaunchAttentionNormSm90 takes, its shared memory included.
bool FitsAttentionNorm(int num_heads, int d_qk, int d_v, int d) {
  const int widest = std::max(d_qk, d_v);
  return d == 768 && num_heads % 2 == 0 && num_heads <= 24 && d_qk % 8 == 0 && d_v % 8 == 0 &&
         widest <= 48 && num_heads * d_v % 32 == 0 && num_heads * d_v <= (widest <= 40 ? 480 : 576);
}

}  // namespace

bool FusesAttentionNorm(const DeviceFacts& device, std::span<const int32_t> cu_seqlens,
                        int num_heads, int d_qk, int d_v, int d) {
  if (device.path != KernelPath::kSm90 || !FitsAttentionNorm(num_heads, d_qk, d_v, d)) return false;
  constexpr int kRows = 64;
  const int64_t begin = cu_seqlens.front(), end = cu_seqlens.back();
  const int64_t tiles = CeilDiv(end - begin, kRows);
  if (tiles * 2 * 10 < int64_t{device.num_sms} * 7) return false;  // too few to fill the device
  // In turns of 64 queries by 64 keys of a head, and one for beginning and end. A tile of 64 packed
  // rows has the pieces of all its sequences, a unit is of one sequence.
  const auto cost = [](int64_t length) { return CeilDiv(length, kRows) + 1; };
  int64_t units = 0, tile = 0, tile_end = 0, largest = 0;
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
    const int64_t length = cu_seqlens[s + 1] - cu_seqlens[s];
    if (length == 0) continue;
    units += CeilDiv(length, kRows) * cost(length);
    for (int64_t row = cu_seqlens[s] - begin; row < cu_seqlens[s + 1] - begin;) {
      if (row >= tile_end) {
        tile_end = row / kRows * kRows + kRows;
        tile = 0;
      }
      tile += cost(length);
      largest = std::max(largest, tile);
      row = std::min<int64_t>(tile_end, cu_seqlens[s + 1] - begin);
    }
  }
  // A cluster of two blocks, of three warpgroups each, has a tile: with 3 turns at a time on a
  // multiprocessor, a turn of all heads takes half of what it costs there.
  const int64_t waves = CeilDiv(tiles, device.num_sms / 2);
  const double one_kernel = 0.5 * static_cast<double>(largest * waves);
  const double two_kernels = static_cast<double>(units) / device.num_sms + 10.0 / num_heads;
  return one_kernel <= two_kernels;
}

}  // namespace flashsvd
