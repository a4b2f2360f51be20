#include "tools/compress/rank_plan.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flashsvd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ModelConfig Config(int layers, int d, int heads, int ffn) {
  ModelConfig config;
  config.layers = layers;
  config.hidden = d;
  config.heads = heads;
  config.ffn = ffn;
  return config;
}

const ModelConfig kBertBase = Config(12, 768, 12, 3072);
const ModelConfig kMiniLm = Config(6, 384, 12, 1536);

double Share(const std::vector<RankUnit>& units, const std::vector<int>& ranks) {
  double dense = 0;
  double stored = 0;
  for (size_t i = 0; i < units.size(); ++i) {
    dense += static_cast<double>(units[i].dense_params());
    stored += static_cast<double>(units[i].params(ranks[i]));
  }
  return stored / dense;
}

TEST(RankUnitsTest, NamesEveryLinearModuleOnce) {
  const auto units = RankUnits(Config(1, 8, 2, 16), LinearLayout::kPerHead);
  std::vector<std::string> names;
  for (const RankUnit& unit : units) {
    names.insert(names.end(), unit.modules.begin(), unit.modules.end());
  }
  EXPECT_THAT(
      names,
      ElementsAre("encoder.layer.0.attention.self.query", "encoder.layer.0.attention.self.key",
                  "encoder.layer.0.attention.self.value", "encoder.layer.0.attention.output.dense",
                  "encoder.layer.0.intermediate.dense", "encoder.layer.0.output.dense"));
}

TEST(RankUnitsTest, SharedBasisMakesOneUnitOfQueryKeyAndValue) {
  const auto units = RankUnits(Config(2, 8, 2, 16), LinearLayout::kQkvShared);
  ASSERT_EQ(units.size(), 8U);
  EXPECT_EQ(units[4].modules.size(), 3U);
  EXPECT_EQ(units[4].modules[1], "encoder.layer.1.attention.self.key");
  EXPECT_EQ(units[4].params_per_rank(), 8 + 3 * 8);
  EXPECT_EQ(units[4].dense_params(), 3 * 64);
}

struct FloorCase {
  int in, out, heads;
  double keep;
  int rank;
};

// A single unit has no rest to spend: its rank is floor(keep m n / (m + n)), h for m per head.
TEST(RanksForKeepTest, RoundsEachModuleDown) {
  const FloorCase cases[] = {
      {768, 768, 1, 0.5, 192},    // exact
      {768, 3072, 1, 0.5, 307},   // 307.2
      {3072, 768, 1, 0.5, 307},   // the same turned round
      {768, 768, 12, 0.5, 29},    // 29.54 per head
      {384, 384, 12, 0.5, 14},    // 14.77 per head
      {768, 2304, 1, 0.5, 288},   // shared basis
      {768, 768, 1, 0.35, 134},   // 134.4
      {36, 20, 1, 0.7, 9},        // exact, although 0.7 * 720 is below 504 in binary
      {60, 24, 1, 0.35, 6},       // likewise
      {768, 768, 12, 0.999, 59},  // break-even is 59.08: still smaller than dense
      {768, 768, 1, 1.0, 0},      // all of it: dense
  };
  for (const FloorCase& c : cases) {
    SCOPED_TRACE(testing::Message() << c.in << " x " << c.out << " keep " << c.keep);
    const RankUnit unit{{"m"}, LinearLayout::kFull, RankRole::kFfn, c.in, c.out, c.heads};
    const auto ranks = RanksForKeep({unit}, c.keep);
    ASSERT_TRUE(ranks.ok()) << ranks.status();
    EXPECT_THAT(*ranks, ElementsAre(c.rank));
  }
}

TEST(RanksForKeepTest, NeverExceedsTheShareAndLeavesLessThanOneStep) {
  for (const ModelConfig& config : {kBertBase, kMiniLm, Config(2, 24, 4, 40)}) {
    for (const LinearLayout layout :
         {LinearLayout::kFull, LinearLayout::kPerHead, LinearLayout::kQkvShared}) {
      for (const double keep : {0.25, 0.3, 0.5, 0.61, 0.75, 0.9, 0.99}) {
        SCOPED_TRACE(testing::Message()
                     << config.hidden << " " << LinearLayoutName(layout) << " " << keep);
        const auto units = RankUnits(config, layout);
        const auto ranks = RanksForKeep(units, keep);
        ASSERT_TRUE(ranks.ok()) << ranks.status();
        const double share = Share(units, *ranks);
        EXPECT_LE(share, keep * (1 + 1e-11));
        double dense = 0;
        for (const RankUnit& unit : units) dense += static_cast<double>(unit.dense_params());
        const double rest = (keep - share) * dense;
        for (size_t i = 0; i < units.size(); ++i) {
          const double own = keep * static_cast<double>(units[i].dense_params());
          const auto stored = static_cast<double>(units[i].params((*ranks)[i]));
          // Never larger than dense, and no unit is short by what the rest could still pay for.
          EXPECT_LE(stored, static_cast<double>(units[i].dense_params()));
          const double step = std::min(static_cast<double>(units[i].params_per_rank()),
                                       static_cast<double>(units[i].dense_params()) - stored);
          if (stored < own * (1 - 1e-9)) {
            EXPECT_LT(rest, step + 1e-3) << units[i].modules[0];
          }
          EXPECT_GT(stored, own - static_cast<double>(units[i].params_per_rank()) - 1e-3);
        }
      }
    }
  }
}

// Two units with keep 0.5 of 10 x 10 (2.5 ranks of 20) each: 10 + 10 parameters are left, one rank.
TEST(RanksForKeepTest, SpendsTheRestWhereRoundingLostMost) {
  const RankUnit square{{"square"}, LinearLayout::kFull, RankRole::kFfn, 10, 10};
  EXPECT_THAT(RanksForKeep({square, square}, 0.5).value(), ElementsAre(3, 2));
  // 20 x 20 fits exactly (5 ranks of 40) and must not take the rest, which is too small for itself.
  const RankUnit exact{{"exact"}, LinearLayout::kFull, RankRole::kFfn, 20, 20};
  EXPECT_THAT(RanksForKeep({exact, square, square}, 0.5).value(), ElementsAre(5, 3, 2));
  // 12 x 20 gets 3 of 3.75 ranks of 32 and is short by a tenth of itself, as 10 x 10 is: the 34
  // parameters that are left pay for one rank of either, and the earlier module gets it.
  const RankUnit wide{{"wide"}, LinearLayout::kFull, RankRole::kFfn, 12, 20};
  EXPECT_THAT(RanksForKeep({square, wide}, 0.5).value(), ElementsAre(3, 3));
  EXPECT_THAT(RanksForKeep({wide, square}, 0.5).value(), ElementsAre(4, 2));
  // 10 x 14 is short by 70 - 48 = 22 of 140, more than a tenth.
  const RankUnit oblong{{"oblong"}, LinearLayout::kFull, RankRole::kFfn, 10, 14};
  EXPECT_THAT(RanksForKeep({square, oblong}, 0.5).value(), ElementsAre(2, 3));
}

TEST(RanksForKeepTest, TooSmallAShareNamesTheSmallestThatWorks) {
  const auto units = RankUnits(kMiniLm, LinearLayout::kPerHead);
  const auto refused = RanksForKeep(units, 0.01);
  ASSERT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(refused.status().message());
  EXPECT_THAT(message, HasSubstr("--keep: 0.01"));
  // One rank per head is 12 * (384 + 32) of 384 * 384.
  EXPECT_THAT(message, HasSubstr("0.033855"));
  EXPECT_TRUE(RanksForKeep(units, 0.033855).ok());
}

// Shares computed by hand from the ranks (facts/svd.md section 1).
TEST(RanksFromFlagsTest, CountsParametersOfTheDocumentedBertBaseRanks) {
  const struct {
    ExplicitRanks ranks;
    double share;
  } cases[] = {{{56, 384, 384}, 0.737}, {{48, 336, 336}, 0.641}, {{48, 288, 288}, 0.578},
               {{40, 240, 240}, 0.482}, {{32, 192, 192}, 0.385}, {{60, 480, 480}, 0.879}};
  const auto units = RankUnits(kBertBase, LinearLayout::kPerHead);
  for (const auto& c : cases) {
    const auto ranks = RanksFromFlags(units, c.ranks);
    ASSERT_TRUE(ranks.ok()) << ranks.status();
    EXPECT_NEAR(Share(units, *ranks), c.share, 5e-4) << c.ranks.attention;
  }
}

TEST(RanksFromFlagsTest, EachRankGoesToItsModules) {
  const auto units = RankUnits(Config(1, 24, 4, 40), LinearLayout::kPerHead);
  EXPECT_THAT(RanksFromFlags(units, {2, 5, 7}).value(), ElementsAre(2, 2, 2, 7, 5, 5));
}

TEST(RanksFromFlagsTest, RefusesRanksThatAModuleDoesNotHave) {
  const struct {
    LinearLayout layout;
    ExplicitRanks ranks;
    const char* message;
  } cases[] = {
      {LinearLayout::kPerHead, {7, 1, 1}, "--ranks: R = 7 is not in 1..6"},
      {LinearLayout::kFull, {25, 1, 1}, "--ranks: R = 25 is not in 1..24"},
      {LinearLayout::kQkvShared, {25, 1, 1}, "--ranks: R = 25 is not in 1..24"},
      {LinearLayout::kFull, {1, 25, 1}, "--ranks: r_ffn = 25 is not in 1..24"},
      {LinearLayout::kFull, {1, 1, 25}, "--ranks: r_out = 25 is not in 1..24"},
      {LinearLayout::kFull, {0, 1, 1}, "--ranks: R = 0"},
  };
  for (const auto& c : cases) {
    const auto ranks = RanksFromFlags(RankUnits(Config(1, 24, 4, 40), c.layout), c.ranks);
    EXPECT_EQ(ranks.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(ranks.status().message()), HasSubstr(c.message));
  }
}

}  // namespace
}  // namespace flashsvd
