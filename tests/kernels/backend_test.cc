// Every operation of every backend, dtype and CPU instruction set against the float64 oracle.

#include "kernels/backend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "tests/kernels/backend_fixture.h"
#include "tests/kernels/op_runner.h"
#include "tests/testing/random_tensor.h"
#include "tests/testing/tensor_matchers.h"

namespace flashsvd::testing {
namespace {

TEST_P(BackendTest, ProjectMatchesOracle) {
  const ProjectCase cases[] = {
      {1, 1, 1, 0},    {1, 1, 1, 1},      {1, 384, 100, 0}, {3, 5, 7, 0},      {7, 33, 50, 1},
      {13, 31, 17, 9}, {65, 48, 96, 24},  {130, 64, 72, 0}, {200, 96, 49, 33}, {8, 2, 300, 3},
      {5, 1000, 3, 0}, {67, 129, 64, 16}, {0, 8, 8, 0},     {9, 32, 33, 40},
  };
  for (const ProjectCase& c : cases) {
    SCOPED_TRACE(::testing::Message()
                 << c.rows << " x " << c.in << " -> " << c.out << " rank " << c.rank);
    const auto x = Activations(size_t(c.rows) * c.in);
    EXPECT_TRUE(Matches([&](const Backend& b) { return RunOp(b, c, x); }, c.in + c.rank));
  }
}

TEST_P(BackendTest, ProjectMatchesOracleWithSeveralFactorPairs) {
  const ProjectCase cases[] = {
      {1, 5, 4, 1, Activation::kNone, 2},
      {70, 96, 3 * 56, 24, Activation::kNone, 3},
      {33, 40, 2 * 19, 11, Activation::kGelu, 2},
  };
  for (const ProjectCase& c : cases) {
    SCOPED_TRACE(::testing::Message() << c.groups << " groups, " << c.rows << " x " << c.in
                                      << " -> " << c.out << " rank " << c.rank);
    const auto x = Activations(size_t(c.rows) * c.in);
    EXPECT_TRUE(Matches([&](const Backend& b) { return RunOp(b, c, x); }, c.in + c.rank,
                        c.activation != Activation::kNone));
  }
}

TEST_P(BackendTest, ProjectAppliesEveryActivation) {
  for (Activation activation : {Activation::kNone, Activation::kGelu, Activation::kGeluTanh,
                                Activation::kRelu, Activation::kSilu}) {
    const ProjectCase c = {17, 24, 37, 0, activation};
    SCOPED_TRACE(static_cast<int>(activation));
    const auto x = Activations(size_t(c.rows) * c.in);
    EXPECT_TRUE(Matches([&](const Backend& b) { return RunOp(b, c, x); }, c.in, true));
  }
}

TEST_P(BackendTest, ProjectAddNormMatchesOracle) {
  const ProjectAddNormCase cases[] = {
      {1, 1, 1, 0},    {1, 16, 48, 0},  {3, 5, 7, 0},    {9, 33, 50, 1}, {65, 40, 96, 24},
      {130, 7, 72, 5}, {11, 50, 17, 0}, {70, 64, 33, 9}, {0, 8, 8, 0},
  };
  for (const ProjectAddNormCase& c : cases) {
    SCOPED_TRACE(::testing::Message()
                 << c.rows << " x " << c.in << " -> " << c.out << " rank " << c.rank);
    const auto y = Activations(size_t(c.rows) * c.in, 2);
    const auto x = Activations(size_t(c.rows) * c.out, 3);
    EXPECT_TRUE(
        Matches([&](const Backend& b) { return RunOp(b, c, y, x); }, c.in + c.rank + c.out));
  }
}

TEST_P(BackendTest, FeedForwardMatchesOracleForEveryMixOfDenseAndLowRank) {
  const FeedForwardCase cases[] = {
      {1, 1, 1, 0, 0},       {5, 7, 9, 0, 0},       {9, 17, 1000, 5, 0},   {70, 48, 400, 0, 13},
      {33, 40, 770, 11, 17}, {8, 64, 385, 1, 1},    {129, 32, 128, 16, 8}, {3, 96, 384, 0, 0},
      {0, 8, 16, 0, 0},      {17, 50, 383, 33, 31},
  };
  for (const FeedForwardCase& c : cases) {
    SCOPED_TRACE(::testing::Message() << c.rows << " x " << c.d << ", F " << c.hidden << ", ranks "
                                      << c.up_rank << " " << c.down_rank);
    const auto x = Activations(size_t(c.rows) * c.d);
    EXPECT_TRUE(Matches([&](const Backend& b) { return RunOp(b, c, x); },
                        c.d + c.up_rank + c.hidden + c.down_rank, true));
  }
}

// `rows`, each of `width` values, again and again until there are `count`.
std::vector<float> RepeatRows(const std::vector<float>& rows, size_t width, size_t count) {
  std::vector<float> all;
  all.reserve(count * width);
  while (all.size() < count * width) {
    all.insert(all.end(), rows.begin(),
               rows.begin() + std::min(rows.size(), count * width - all.size()));
  }
  return all;
}

// Of a GPU's kernels which one runs depends on how many multiprocessors there are for the rows: so
// few rows on a device that counts as small reach all of them.
TEST_P(BackendTest, FeedForwardOfEveryKernelMatchesOracle) {
  const struct {
    FeedForwardCase c;
    int num_sms;
  } cases[] = {
      // Clusters that take the norm along, by rows x blocks. Small ranks: 32 x 12, 24 x 8, 32 x 6,
      // 32 x 4, 32 x 3, 40 x 3, 48 x 3, 64 x 3, 72 x 3.
      {{61, 128, 788, 100, 72}, 44},
      {{45, 128, 532, 40, 100}, 24},
      {{61, 128, 404, 100, 128}, 17},
      {{61, 128, 276, 100, 72}, 11},
      {{61, 128, 212, 30, 20}, 9},
      {{77, 128, 212, 100, 72}, 7},
      {{93, 128, 212, 128, 72}, 7},
      {{125, 64, 212, 100, 72}, 7},
      {{141, 128, 212, 100, 72}, 7},
      // Up to 256: 24 x 12, 32 x 16, 24 x 8, 32 x 8, 40 x 8, 48 x 8, 64 x 8, 72 x 8.
      {{45, 128, 788, 240, 130}, 66},
      {{61, 128, 1044, 200, 240}, 53},
      {{45, 128, 532, 200, 140}, 24},
      {{61, 128, 532, 100, 250}, 18},
      {{77, 128, 532, 240, 240}, 18},
      {{93, 128, 532, 200, 140}, 18},
      {{125, 64, 532, 150, 140}, 18},
      {{141, 128, 532, 140, 130}, 18},
      // Above: 32 x 16, 32 x 8, 40 x 8, 48 x 8.
      {{61, 256, 1044, 300, 320}, 44},
      {{61, 128, 532, 300, 100}, 18},
      {{77, 128, 532, 257, 300}, 18},
      {{93, 128, 532, 310, 320}, 18},
      // Clusters of 4, 3 and 2 blocks with 64 rows, of 2 with 128, then a kernel for the norm.
      {{150, 128, 800, 200, 72}, 14},
      {{150, 64, 800, 200, 140}, 11},
      {{150, 64, 600, 40, 24}, 6},
      {{300, 64, 400, 140, 24}, 6},
      // Blocks of 128 rows, then a kernel for the norm.
      {{300, 72, 320, 40, 64}, 4},
      {{200, 1024, 200, 200, 250}, 8},
      // The same with the norm.
      {{300, 192, 320, 40, 64}, 3},
      {{257, 128, 200, 130, 250}, 3},
      {{300, 768, 400, 240, 230}, 3},
      {{256, 1024, 200, 300, 320}, 2},
      {{129, 384, 400, 120, 120}, 2},
  };
  for (auto [c, num_sms] : cases) {
    if (!cuda()) {  // some are enough for other backends
      if (num_sms > 3) continue;
      c.rows = std::min(c.rows, 80);
    }
    SCOPED_TRACE(::testing::Message() << c.rows << " x " << c.d << " -> " << c.hidden << " ranks "
                                      << c.up_rank << " " << c.down_rank << ", " << num_sms);
    UseMultiprocessors(num_sms);
    const auto x = Activations(size_t(c.rows) * c.d);
    EXPECT_TRUE(Matches([&, &c = c](const Backend& b) { return RunOp(b, c, x); },
                        c.d + c.hidden + c.up_rank + c.down_rank, true));
  }
}

// Full waves. Rows repeat, so that the oracle needs to compute but a few.
TEST_P(BackendTest, FeedForwardOfManyRowsMatchesOracle) {
  if (!cuda()) GTEST_SKIP() << "other backends have no kernels of their own for many rows";
  constexpr int kDistinct = 61;
  const FeedForwardCase cases[] = {{1500, 128, 800, 100, 72},
                                   {8300, 64, 400, 40, 24},
                                   {16700, 128, 200, 130, 250},
                                   {16400, 768, 400, 240, 230}};
  for (const FeedForwardCase& c : cases) {
    SCOPED_TRACE(::testing::Message() << c.rows << " x " << c.d << " -> " << c.hidden << " ranks "
                                      << c.up_rank << " " << c.down_rank);
    const auto x = Activations(size_t(kDistinct) * c.d);
    const auto run = [&](const Backend& b) {
      if (&b == backend_.get()) return RunOp(b, c, RepeatRows(x, c.d, c.rows));
      FeedForwardCase few = c;
      few.rows = kDistinct;
      return RepeatRows(RunOp(b, few, x), c.d, c.rows);
    };
    EXPECT_TRUE(Matches(run, c.d + c.hidden + c.up_rank + c.down_rank, true));
  }
}

struct AttentionAddNormCase {
  std::vector<int> lengths;  // of `repeats` runs of such sequences
  int repeats, heads, d_qk, d_v, out;
  int num_sms = 0;
};

class AttentionAddNormTest : public BackendTest {
 protected:
  // Sequences repeat, so that the oracle needs to compute but a few.
  void ExpectMatch(const AttentionAddNormCase& c) {
    SCOPED_TRACE(::testing::Message()
                 << c.repeats << " x " << c.lengths[0] << "..., " << c.heads << " heads of "
                 << c.d_qk << " " << c.d_v << ", out " << c.out << ", " << c.num_sms);
    UseMultiprocessors(c.num_sms);
    const AttentionCase few = {c.lengths, c.heads, c.d_qk, c.d_v};
    const auto qkv = Activations(size_t(few.tokens()) * few.columns(), 4);
    const auto x = Activations(size_t(few.tokens()) * c.out, 5);
    const auto repeat = [&](const auto& values) {
      auto all = values;
      for (int i = 1; i < c.repeats; ++i) all.insert(all.end(), values.begin(), values.end());
      return all;
    };
    const auto run = [&](const Backend& b) {
      if (&b != backend_.get()) return repeat(RunAttentionAddNorm(b, few, c.out, qkv, x));
      const AttentionCase many = {repeat(c.lengths), c.heads, c.d_qk, c.d_v};
      return RunAttentionAddNorm(b, many, c.out, repeat(qkv), repeat(x));
    };
    EXPECT_TRUE(Matches(run, MaxLength(c.lengths) + c.d_qk + c.heads * c.d_v + c.out, true));
  }
};

// A GPU does this in one kernel when its row tiles are many for the device and alike: the first
// ones not, the others on a device that counts as small.
TEST_P(AttentionAddNormTest, MatchesOracle) {
  const AttentionAddNormCase cases[] = {
      {{70}, 1, 2, 16, 8, 48},
      {{33, 1, 0, 64}, 3, 3, 8, 8, 128},
      {{90, 64, 83}, 1, 12, 24, 24, 384},
      {{128}, 2, 12, 40, 40, 768, 8},
      {{64, 0, 50}, 1, 12, 40, 40, 768, 4},
      {{150}, 1, 12, 48, 40, 768, 6},
      {{129, 100, 77}, 1, 4, 40, 40, 768, 14},
      {{1, 30, 90, 2}, 1, 2, 48, 48, 768, 4},
      {{16}, 8, 24, 16, 16, 768, 2},
  };
  for (const AttentionAddNormCase& c : cases) {
    if (!cuda() && c.out > 128) continue;  // the others are enough for other backends
    ExpectMatch(c);
  }
}

TEST_P(AttentionAddNormTest, OfManyRowsMatchesOracle) {
  if (!cuda()) GTEST_SKIP() << "other backends have no kernels of their own for many rows";
  const AttentionAddNormCase cases[] = {
      {{128}, 32, 12, 40, 40, 768},          {{512}, 8, 12, 40, 40, 768},
      {{129, 100, 77}, 17, 12, 40, 40, 768}, {{300}, 15, 12, 40, 40, 768},
      {{90, 64, 83}, 21, 12, 24, 24, 384},   {{65, 61}, 36, 16, 40, 40, 1024},
      {{90, 128, 38}, 16, 2, 48, 48, 768},   {{64}, 70, 4, 40, 40, 768},
  };
  for (const AttentionAddNormCase& c : cases) ExpectMatch(c);
}

TEST_P(BackendTest, FeedForwardAppliesEveryActivation) {
  for (Activation activation : {Activation::kNone, Activation::kGelu, Activation::kGeluTanh,
                                Activation::kRelu, Activation::kSilu}) {
    SCOPED_TRACE(static_cast<int>(activation));
    const FeedForwardCase c = {10, 32, 64, 8, 8, activation};
    const auto x = Activations(size_t(c.rows) * c.d);
    EXPECT_TRUE(Matches([&](const Backend& b) { return RunOp(b, c, x); }, 112, true));
  }
}

TEST_P(BackendTest, AttentionMatchesOracle) {
  const AttentionCase cases[] = {
      {{1}, 1, 1, 1},           {{0, 3, 0}, 2, 2, 3}, {{5, 17, 1}, 3, 20, 20},
      {{384}, 1, 16, 16},       {{385}, 1, 33, 50},   {{400, 31}, 2, 32, 32},
      {{16, 15, 8}, 2, 40, 24}, {{577}, 1, 64, 64},   {{7}, 1, 256, 256},
      {{64, 0, 65}, 2, 7, 1},   {{}, 1, 8, 8},        {{130}, 1, 1, 17},
  };
  for (const AttentionCase& c : cases) {
    SCOPED_TRACE(::testing::Message() << c.lengths.size() << " sequences, " << c.tokens()
                                      << " tokens, d " << c.d_qk << " " << c.d_v);
    const auto qkv = Activations(size_t(c.tokens()) * c.columns());
    EXPECT_TRUE(Matches([&](const Backend& b) { return RunOp(b, c, qkv); }, c.d_qk + 20));
  }
}

// Scores far apart: the running maximum rises in every key block, or the first holds it.
TEST_P(BackendTest, AttentionSurvivesLargeScores) {
  for (float slope : {1.0f, -1.0f}) {
    SCOPED_TRACE(slope);
    const AttentionCase c = {{600}, 1, 4, 4, 1.0f};
    auto qkv = Activations(size_t(c.tokens()) * c.columns());
    for (int t = 0; t < c.tokens(); ++t) {
      float* row = qkv.data() + t * c.columns();
      std::fill(row, row + 4, 4.0f);                                         // q
      std::fill(row + 4, row + 8, slope * static_cast<float>(t / 100) * 8);  // k
    }
    const auto run = [&](const Backend& b) { return RunOp(b, c, qkv); };
    EXPECT_TRUE(Matches(run, 600));
  }
}

// The places between the last key and a whole vector hold score 0: it must neither be the maximum,
// when all true scores are far below, nor count, when all are equal.
TEST_P(BackendTest, AttentionIgnoresThePlacesAfterTheLastKey) {
  for (int length : {3, 5, 21, 389}) {
    for (float query : {16.0f, 0.0f}) {
      SCOPED_TRACE(::testing::Message() << length << " tokens, query " << query);
      const AttentionCase c = {{length}, 1, 2, 3, 1.0f};
      auto qkv = Activations(size_t(c.tokens()) * c.columns());
      for (int t = 0; t < length; ++t) {
        float* row = qkv.data() + t * c.columns();
        std::fill(row, row + 2, query);                                  // q
        std::fill(row + 2, row + 4, -8.0f - static_cast<float>(t % 3));  // k: scores below -255
      }
      EXPECT_TRUE(Matches([&](const Backend& b) { return RunOp(b, c, qkv); }, length));
    }
  }
}

TEST_P(BackendTest, AttentionOfLongSequence) {
  const AttentionCase c = {{1500}, 1, 8, 8, 0.35f};
  const auto qkv = Activations(size_t(c.tokens()) * c.columns());
  EXPECT_TRUE(Matches([&](const Backend& b) { return RunOp(b, c, qkv); }, 600));
}

std::vector<float> RunEmbed(const Backend& backend, const std::vector<int>& lengths, int d) {
  Session session(backend);
  const TestBatch batch(lengths);
  const auto upload = [&](int rows, uint32_t seed) {
    const std::vector<float> values = RandomNormal(size_t(rows) * d, seed);
    return backend.Upload(values.data(), values.size(), backend.dtype()).value();
  };
  const Buffer word = upload(11, 61), position = upload(MaxLength(lengths) + 1, 62),
               type = upload(2, 63);
  const RandomNorm norm(d);
  const GuardedRows x(session, batch.cu.back(), d);
  EXPECT_TRUE(backend
                  .Embed({.batch = batch.view(session),
                          .word = word.data(),
                          .position = position.data(),
                          .type = type.data(),
                          .norm = norm.params(session),
                          .x = x.view()},
                         session.stream())
                  .ok());
  EXPECT_TRUE(x.Intact());
  return x.Values();
}

TEST_P(BackendTest, EmbedMatchesOracle) {
  for (int d : {1, 2, 15, 16, 48, 100}) {
    SCOPED_TRACE(d);
    for (const std::vector<int>& lengths :
         {std::vector<int>{1}, {0, 3, 0, 0, 9, 1, 0}, {70, 65, 2}, {}}) {
      EXPECT_TRUE(Matches([&](const Backend& b) { return RunEmbed(b, lengths, d); }, d));
    }
  }
}

std::vector<float> RunPool(const Backend& backend, const std::vector<int>& lengths, int d,
                           Pooling pooling, bool normalize) {
  Session session(backend);
  const TestBatch batch(lengths);
  const auto values = RandomActivations(backend.dtype(), size_t(batch.cu.back()) * d, 71);
  const GuardedRows x(session, batch.cu.back(), d, values);
  const GuardedRows out(session, DType::kF32, lengths.size(), d, d);
  EXPECT_TRUE(backend
                  .Pool({.batch = batch.view(session),
                         .x = x.view(),
                         .pooling = pooling,
                         .normalize = normalize,
                         .out = static_cast<float*>(out.view().data)},
                        session.stream())
                  .ok());
  EXPECT_TRUE(x.Intact() && out.Intact());
  return out.Values();
}

TEST_P(BackendTest, PoolMatchesOracleOnTheSameRows) {
  // Its output is float32 whatever the dtype: the float32 bound holds for all, against an oracle
  // of the same dtype (Pool of the bf16 reference rounds nothing).
  const std::unique_ptr<Backend> reference = Make("reference", GetParam().dtype);
  for (int d : {1, 15, 48, 100}) {
    for (Pooling pooling : {Pooling::kMean, Pooling::kCls, Pooling::kLast}) {
      for (bool normalize : {false, true}) {
        SCOPED_TRACE(::testing::Message() << d << " " << int(pooling) << " " << normalize);
        const std::vector<int> lengths = {1, 0, 7, 300};
        EXPECT_TRUE(NearOracleF32(RunPool(*backend_, lengths, d, pooling, normalize),
                                  RunPool(*reference, lengths, d, pooling, normalize), 300 + d));
      }
    }
  }
}

FSVD_INSTANTIATE_BACKEND_TESTS(BackendTest);
FSVD_INSTANTIATE_BACKEND_TESTS(AttentionAddNormTest);

}  // namespace
}  // namespace flashsvd::testing
