#include "tools/compress/rank_plan.h"

#include <cmath>
#include <cstddef>

#include "fmt/format.h"

namespace flashsvd {
namespace {

// floor(keep * params), with a nudge so that 0.7 * 20 is 14 although 0.7 is not a binary fraction.
int64_t Budget(double keep, int64_t params) {
  return static_cast<int64_t>(std::floor(keep * static_cast<double>(params) * (1 + 1e-12)));
}

// The unit's next larger form, which is dense (0) as soon as a rank more would save nothing.
int NextRank(const RankUnit& unit, int rank) {
  return unit.params(rank + 1) < unit.dense_params() ? rank + 1 : 0;
}

// A share lost that is no larger comes from the arithmetic on shares itself.
constexpr double kRoundingNoise = 1e-12;

// Hands out `left` parameters, first to the unit that is furthest below its share, never to one
// that has it.
void SpendRest(const std::vector<RankUnit>& units, double keep, int64_t left,
               std::vector<int>& ranks) {
  for (;;) {
    size_t best = units.size();
    double best_loss = kRoundingNoise;
    for (size_t i = 0; i < units.size(); ++i) {
      if (ranks[i] == 0) continue;
      const int64_t now = units[i].params(ranks[i]);
      if (units[i].params(NextRank(units[i], ranks[i])) - now > left) continue;
      const auto dense = static_cast<double>(units[i].dense_params());
      const double loss = keep - static_cast<double>(now) / dense;
      if (loss > best_loss) {
        best = i;
        best_loss = loss;
      }
    }
    if (best == units.size()) return;
    const int next = NextRank(units[best], ranks[best]);
    left -= units[best].params(next) - units[best].params(ranks[best]);
    ranks[best] = next;
  }
}

}  // namespace

std::vector<RankUnit> RankUnits(const ModelConfig& config, LinearLayout layout) {
  const int d = config.hidden;
  const int ffn = config.ffn;
  const int heads = layout == LinearLayout::kPerHead ? config.heads : 1;
  std::vector<RankUnit> units;
  for (int i = 0; i < config.layers; ++i) {
    const std::string layer = fmt::format("encoder.layer.{}.", i);
    const std::string self = layer + "attention.self.";
    if (layout == LinearLayout::kQkvShared) {
      units.push_back(
          {{self + "query", self + "key", self + "value"}, layout, RankRole::kAttention, d, 3 * d});
    } else {
      for (const char* name : {"query", "key", "value"}) {
        units.push_back({{self + name}, layout, RankRole::kAttention, d, d, heads});
      }
    }
    units.push_back(
        {{layer + "attention.output.dense"}, LinearLayout::kFull, RankRole::kOutput, d, d});
    units.push_back({{layer + "intermediate.dense"}, LinearLayout::kFull, RankRole::kFfn, d, ffn});
    units.push_back({{layer + "output.dense"}, LinearLayout::kFull, RankRole::kFfn, ffn, d});
  }
  return units;
}

absl::StatusOr<std::vector<int>> RanksForKeep(const std::vector<RankUnit>& units, double keep) {
  std::vector<int> ranks;
  int64_t dense = 0;
  int64_t used = 0;
  for (const RankUnit& unit : units) {
    const int64_t budget = Budget(keep, unit.dense_params());
    const bool stays_dense = budget >= unit.dense_params();
    const auto rank = static_cast<int>(budget / unit.params_per_rank());
    if (!stays_dense && rank == 0) {
      double smallest = 0;
      for (const RankUnit& u : units) {
        smallest = std::max(smallest, static_cast<double>(u.params_per_rank()) /
                                          static_cast<double>(u.dense_params()));
      }
      return absl::InvalidArgumentError(fmt::format(
          "--keep: {} leaves {} with rank 0; the smallest that works for this model and layout is "
          "{:.6g}",
          keep, unit.modules.front(), std::ceil(smallest * 1e6) / 1e6));
    }
    ranks.push_back(stays_dense ? 0 : rank);
    dense += unit.dense_params();
    used += unit.params(ranks.back());
  }
  SpendRest(units, keep, Budget(keep, dense) - used, ranks);
  return ranks;
}

absl::StatusOr<std::vector<int>> RanksFromFlags(const std::vector<RankUnit>& units,
                                                const ExplicitRanks& ranks) {
  std::vector<int> result;
  for (const RankUnit& unit : units) {
    const bool attention = unit.role == RankRole::kAttention;
    const bool ffn = unit.role == RankRole::kFfn;
    const int rank = attention ? ranks.attention : ffn ? ranks.ffn : ranks.output;
    if (rank < 1 || rank > unit.max_rank()) {
      return absl::InvalidArgumentError(fmt::format(
          "--ranks: {} = {} is not in 1..{}, the ranks of {} [{}, {}]{}",
          attention ? "R" : (ffn ? "r_ffn" : "r_out"), rank, unit.max_rank(), unit.modules.front(),
          unit.out / static_cast<int>(unit.modules.size()), unit.in,
          unit.layout == LinearLayout::kPerHead ? fmt::format(" with {} heads", unit.heads) : ""));
    }
    result.push_back(rank);
  }
  return result;
}

}  // namespace flashsvd
