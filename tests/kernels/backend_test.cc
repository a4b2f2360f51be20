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

// A GPU runs other kernels for other numbers of rows: clusters that share them, blocks of 128, full
// waves of those. Rows repeat, so that the oracle needs to compute but a few.
TEST_P(BackendTest, FeedForwardOfManyRowsMatchesOracle) {
  constexpr int kDistinct = 61;
  const FeedForwardCase cases[] = {
      {150, 64, 1100, 40, 30},     {1000, 128, 520, 140, 130},   {1500, 128, 800, 100, 72},
      {8300, 64, 400, 40, 24},     {16400, 192, 320, 40, 64},    {16700, 128, 200, 130, 250},
      {16400, 768, 400, 240, 230}, {16384, 1024, 200, 300, 320}, {16384, 384, 400, 120, 120}};
  for (FeedForwardCase c : cases) {
    if (!cuda()) c.rows = std::min(c.rows, 200);
    SCOPED_TRACE(::testing::Message() << c.rows << " x " << c.d << " -> " << c.hidden << " ranks "
                                      << c.up_rank << " " << c.down_rank);
    const auto x = Activations(size_t(kDistinct) * c.d);
    const auto repeat = [&](const std::vector<float>& rows) {
      std::vector<float> all(size_t(c.rows) * c.d);
      for (size_t i = 0; i < all.size(); ++i) all[i] = rows[i % rows.size()];
      return all;
    };
    const auto run = [&](const Backend& b) {
      if (&b == backend_.get()) return RunOp(b, c, repeat(x));
      FeedForwardCase few = c;
      few.rows = kDistinct;
      return repeat(RunOp(b, few, x));
    };
    EXPECT_TRUE(Matches(run, c.d + c.hidden + c.up_rank + c.down_rank, true));
  }
}

// A GPU does this in one kernel when there are many rows in sequences of like lengths. Sequences
// repeat, so that the oracle needs to compute but a few.
TEST_P(BackendTest, AttentionAddNormMatchesOracle) {
  struct Case {
    std::vector<int> lengths;
    int repeats, heads, d_qk, d_v, out;
  };
  const Case cases[] = {
      {{70}, 1, 2, 16, 8, 48},          {{33, 1, 0, 64}, 3, 3, 8, 8, 128},
      {{128}, 40, 12, 40, 40, 768},     {{129, 100, 77}, 17, 12, 40, 40, 768},
      {{600}, 8, 12, 40, 40, 768},      {{90, 64, 83}, 21, 12, 24, 24, 384},
      {{65, 61}, 36, 16, 40, 40, 1024}, {{90}, 50, 12, 48, 40, 768},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(::testing::Message()
                 << c.repeats << " x " << c.lengths[0] << "..., " << c.heads << " heads of "
                 << c.d_qk << " " << c.d_v << ", out " << c.out);
    if (!cuda() && c.out > 128) continue;
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

FSVD_INSTANTIATE_BACKEND_TESTS();

}  // namespace
}  // namespace flashsvd::testing
