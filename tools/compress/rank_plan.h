#ifndef FLASHSVD_TOOLS_COMPRESS_RANK_PLAN_H_
#define FLASHSVD_TOOLS_COMPRESS_RANK_PLAN_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/model_config.h"
#include "runtime/weights.h"

namespace flashsvd {

// Which of the explicit ranks a unit takes.
enum class RankRole : uint8_t { kAttention, kFfn, kOutput };

// Modules that are factorised together and have one rank: a single module or, with a shared basis,
// query, key and value of a layer.
struct RankUnit {
  std::vector<std::string> modules;  // Hugging Face names without the model prefix
  LinearLayout layout = LinearLayout::kFull;
  RankRole role = RankRole::kFfn;
  int in = 0;
  int out = 0;    // of all modules together
  int heads = 1;  // H for per_head, else 1

  // Parameters that one more rank stores: r (in + out), or per head H R (in + h) = R (H in + out).
  int64_t params_per_rank() const { return static_cast<int64_t>(heads) * in + out; }
  int64_t dense_params() const { return static_cast<int64_t>(in) * out; }
  int max_rank() const { return std::min(in, out / heads); }
  // Rank 0 stands for dense.
  int64_t params(int rank) const { return rank == 0 ? dense_params() : rank * params_per_rank(); }
};

// The encoder's linear modules, layer by layer. layout is that of query, key and value; every other
// module is full.
// REQUIRES: layout is not kDense.
std::vector<RankUnit> RankUnits(const ModelConfig& config, LinearLayout layout);

// The rank of each unit (0: left dense), so that at most the share `keep` of the units' dense
// parameters is stored. A unit gets floor(keep * dense / params_per_rank); what the rounding left
// over goes, rank by rank, to the units that it cost the largest share of their parameters. A unit
// whose next rank would store no less than the dense module becomes dense if that still fits.
// InvalidArgument: keep is so small that a unit would get rank 0; names the smallest that works.
// REQUIRES: 0 < keep <= 1.
absl::StatusOr<std::vector<int>> RanksForKeep(const std::vector<RankUnit>& units, double keep);

struct ExplicitRanks {
  int attention = 0;  // R of query, key and value (per_head), else their r
  int ffn = 0;        // r of intermediate.dense and output.dense
  int output = 0;     // r of attention.output.dense
};

// InvalidArgument: a rank is below 1 or above what a module has.
absl::StatusOr<std::vector<int>> RanksFromFlags(const std::vector<RankUnit>& units,
                                                const ExplicitRanks& ranks);

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_COMPRESS_RANK_PLAN_H_
