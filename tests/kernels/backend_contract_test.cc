// What backend.h promises beside the numbers: independence of batch and threads, bounds, scratch.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "tests/kernels/backend_fixture.h"
#include "tests/kernels/op_runner.h"
#include "tests/testing/random_tensor.h"
#include "tests/testing/tensor_matchers.h"

namespace flashsvd::testing {
namespace {

TEST_P(BackendTest, ProjectWritesOnlyItsColumnsOfAWiderMatrix) {
  Session session(*backend_);
  const RandomLinear weights(20, 18, 0, 5);
  const auto linear = PackOrDie(*backend_, weights);
  const auto x = Activations(9 * 20);
  const GuardedRows in(session, 9, 20, x);
  const std::vector<float> filler(9 * 64, 2.0f);
  const GuardedRows wide(session, 9, 64, filler);
  Rows slice = wide.view();
  slice.data = static_cast<std::byte*>(slice.data) + 23 * DTypeBytes(GetParam().dtype);
  slice.cols = 18;
  const ProjectArgs args = {.linear = linear.get(), .x = in.view(), .y = slice};
  const GuardedScratch scratch(session, backend_->ScratchBytes(args));
  ASSERT_TRUE(backend_->Project(args, scratch.view(), session.stream()).ok());
  const GuardedRows alone(session, 9, 18);
  const ProjectArgs same = {.linear = linear.get(), .x = in.view(), .y = alone.view()};
  ASSERT_TRUE(backend_->Project(same, scratch.view(), session.stream()).ok());
  const std::vector<float> expected = alone.Values(), actual = wide.Values();
  for (int r = 0; r < 9; ++r) {
    for (int c = 0; c < 64; ++c) {
      const bool inside = c >= 23 && c < 23 + 18;
      ASSERT_EQ(actual[r * 64 + c], inside ? expected[r * 18 + c - 23] : 2.0f) << r << ", " << c;
    }
  }
}

TEST_P(BackendTest, AttentionOfAChunkCountsRowsFromItsFirstSequence) {
  const AttentionCase whole = {{9, 4}, 2, 8, 8};
  AttentionCase chunk = whole;
  chunk.first_token = 1000;
  const auto qkv = Activations(size_t(whole.tokens()) * whole.columns());
  EXPECT_TRUE(BitEqual(RunOp(*backend_, chunk, qkv), RunOp(*backend_, whole, qkv)));
}

// What overflows in one request stays there: a sequence's neighbours hold infinities and NaNs, and
// its own rows come out as if they did not.
TEST_P(BackendTest, AttentionIsNotReachedByInfinitiesOfOtherSequences) {
  const AttentionCase c = {{70, 33, 129, 64, 1}, 3, 40, 24};
  const auto clean = Activations(size_t(c.tokens()) * c.columns());
  const auto expected = RunOp(*backend_, c, clean);
  const std::vector<int> cu = CuSeqlens(c.lengths);
  for (const int broken : {1, 3}) {
    for (const float value : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
      auto qkv = clean;
      std::fill(qkv.begin() + size_t(cu[broken]) * c.columns(),
                qkv.begin() + size_t(cu[broken + 1]) * c.columns(), value);
      const auto actual = RunOp(*backend_, c, qkv);
      const size_t width = size_t(c.heads) * c.d_v;
      for (size_t s = 0; s < c.lengths.size(); ++s) {
        if (static_cast<int>(s) == broken) continue;
        SCOPED_TRACE(::testing::Message() << "sequence " << s << " beside " << broken);
        EXPECT_TRUE(
            BitEqual({actual.begin() + cu[s] * width, actual.begin() + cu[s + 1] * width},
                     {expected.begin() + cu[s] * width, expected.begin() + cu[s + 1] * width}));
      }
    }
  }
}

TEST_P(BackendTest, AttentionAddNormIsNotReachedByInfinitiesOfOtherSequences) {
  // Enough rows for the one kernel that a GPU has for both.
  const int out = cuda() ? 768 : 48;
  AttentionCase c = {std::vector<int>(cuda() ? 40 : 4, 90), cuda() ? 12 : 2, 40, 40};
  c.lengths.back() = 77;
  const auto clean = Activations(size_t(c.tokens()) * c.columns());
  const auto x = Activations(size_t(c.tokens()) * out, 9);
  const auto expected = RunAttentionAddNorm(*backend_, c, out, clean, x);
  const std::vector<int> cu = CuSeqlens(c.lengths);
  for (const float value : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    auto qkv = clean;
    std::fill(qkv.begin() + size_t(cu[1]) * c.columns(), qkv.begin() + size_t(cu[2]) * c.columns(),
              value);
    const auto actual = RunAttentionAddNorm(*backend_, c, out, qkv, x);
    for (size_t s = 0; s < c.lengths.size(); ++s) {
      if (s == 1) continue;
      SCOPED_TRACE(::testing::Message() << "sequence " << s);
      EXPECT_TRUE(BitEqual({actual.begin() + cu[s] * out, actual.begin() + cu[s + 1] * out},
                           {expected.begin() + cu[s] * out, expected.begin() + cu[s + 1] * out}));
    }
  }
}

// The rows of one sequence alone equal those rows in a batch.
TEST_P(BackendTest, ResultsDoNotDependOnBatchComposition) {
  const int d = 40;
  const std::vector<int> lengths = {1, 13, 0, 200, 7, 64};
  const int tokens = CuSeqlens(lengths).back();
  const AttentionCase attention = {lengths, 2, 20, 18};
  const auto x = Activations(size_t(tokens) * d);
  const auto qkv = Activations(size_t(tokens) * attention.columns());
  const auto rows_of = [&](const std::vector<float>& all, int s, int columns) {
    const auto cu = CuSeqlens(lengths);
    return std::vector<float>(all.begin() + cu[s] * columns, all.begin() + cu[s + 1] * columns);
  };
  const auto project = [&](const std::vector<float>& in) {
    return RunOp(*backend_, ProjectCase{int(in.size()) / d, d, 50, 9, Activation::kGelu}, in);
  };
  const auto add_norm = [&](const std::vector<float>& in) {
    return RunOp(*backend_, ProjectAddNormCase{int(in.size()) / d, d, d, 0}, in, in);
  };
  const auto feed_forward = [&](const std::vector<float>& in) {
    return RunOp(*backend_, FeedForwardCase{int(in.size()) / d, d, 500, 12, 10}, in);
  };
  const auto projected = project(x), added = add_norm(x), fed = feed_forward(x);
  const auto attended = RunOp(*backend_, attention, qkv);
  for (int s = 0; s < int(lengths.size()); ++s) {
    SCOPED_TRACE(s);
    const auto alone = rows_of(x, s, d);
    EXPECT_TRUE(Same(project(alone), rows_of(projected, s, 50)));
    EXPECT_TRUE(Same(add_norm(alone), rows_of(added, s, d)));
    EXPECT_TRUE(Same(feed_forward(alone), rows_of(fed, s, d)));
    const AttentionCase one = {{lengths[s]}, 2, 20, 18};
    EXPECT_TRUE(Same(RunOp(*backend_, one, rows_of(qkv, s, attention.columns())),
                     rows_of(attended, s, 2 * 18)));
  }
}

// Two chunks of rows as an encoder takes them, each operation reading what others wrote before: the
// same bits as with a wait after every operation.
TEST_P(BackendTest, OperationsOfAStreamSeeWhatThoseBeforeThemWrote) {
  constexpr int kRows = 200, kFirst = 72, kDim = 128, kWide = 256;
  const RandomLinear up_weights(kDim, kWide, 16, 51), down_weights(kWide, kDim, 16, 52);
  const RandomLinear in_weights(kDim, kWide, 0, 53), out_weights(kWide, kDim, 0, 54);
  const auto up = PackOrDie(*backend_, up_weights), down = PackOrDie(*backend_, down_weights);
  const auto in = PackOrDie(*backend_, in_weights), out = PackOrDie(*backend_, out_weights);
  const RandomNorm norm(kDim);
  const auto values = Activations(size_t(kRows) * kDim);
  const auto run = [&](bool wait) {
    Session session(*backend_);
    const GuardedRows rows(session, kRows, kDim, values);
    const GuardedRows middle(session, kRows - kFirst, kWide);
    const LayerNormParams params = norm.params(session);
    const auto slice = [](const Rows& r, int64_t first, int64_t count, size_t element) {
      return Rows{static_cast<std::byte*>(r.data) + first * r.stride * element, count, r.cols,
                  r.stride};
    };
    const FeedForwardArgs feed_forward = {
        .up = up.get(), .down = down.get(), .x = rows.view(), .norm = params};
    const size_t element = DTypeBytes(backend_->dtype());
    const Rows wide = middle.view();
    const ProjectArgs project = {
        .linear = in.get(), .x = rows.view(), .y = {nullptr, kRows, kWide, wide.stride}};
    const ProjectAddNormArgs add_norm = {
        .linear = out.get(), .y = {nullptr, kRows, kWide, wide.stride}, .x = rows.view()};
    const GuardedScratch scratch(
        session, std::max({backend_->ScratchBytes(feed_forward), backend_->ScratchBytes(project),
                           backend_->ScratchBytes(add_norm)}));
    const auto done = [&](const absl::Status& status) {
      EXPECT_TRUE(status.ok()) << status;
      if (!wait) return;
      EXPECT_TRUE(backend_->Synchronize(session.stream()).ok());
    };
    for (int layer = 0; layer < 3; ++layer) {
      for (const auto& [first, count] : {std::pair{0, kFirst}, std::pair{kFirst, kRows - kFirst}}) {
        const Rows x = slice(rows.view(), first, count, element);
        const Rows y = slice(wide, 0, count, element);
        done(backend_->Project({.linear = in.get(), .x = x, .y = y}, scratch.view(),
                               session.stream()));
        done(backend_->ProjectAddNorm({.linear = out.get(), .y = y, .x = x, .norm = params},
                                      scratch.view(), session.stream()));
      }
      done(backend_->FeedForward(feed_forward, scratch.view(), session.stream()));
    }
    EXPECT_TRUE(rows.Intact() && middle.Intact() && scratch.Intact()) << "wrote out of bounds";
    return rows.Values();
  };
  const auto expected = run(true);
  const int runs = cuda() ? 10 : 1;  // the CPU does nothing out of order
  for (int i = 0; i < runs; ++i) EXPECT_TRUE(BitEqual(run(false), expected));
}

TEST_P(BackendTest, TheHostReadsWhatWasPooledIntoAnOutput) {
  constexpr int kDim = 40;
  Session session(*backend_);
  const TestBatch batch({3, 1, 5, 0, 0});
  const GuardedRows x(session, batch.cu.back(), kDim, Activations(size_t{9} * kDim));
  auto output = backend_->AllocateOutput(size_t{5} * kDim * sizeof(float));
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(output->host(), output->device());
  PoolArgs args = {
      .batch = batch.view(session), .x = x.view(), .out = static_cast<float*>(output->device())};
  const auto pooled = [&] {
    std::memset(output->host(), 0xff, output->bytes());
    EXPECT_TRUE(backend_->Pool(args, session.stream()).ok());
    EXPECT_TRUE(backend_->Synchronize(session.stream()).ok());
    const auto* values = static_cast<const float*>(output->host());
    return std::vector<float>(values, values + 3 * kDim);
  };
  const auto all = pooled();
  for (const float v : all) ASSERT_FALSE(std::isnan(v));
  args.batch.num_present = session.Upload(std::vector<int32_t>{3});
  EXPECT_TRUE(BitEqual(pooled(), all));
}

TEST_P(BackendTest, ResultsDoNotDependOnThreads) {
  const FeedForwardCase ffn = {150, 40, 500, 12, 0};
  const AttentionCase attention = {{300, 2}, 1, 16, 16};
  const auto x = Activations(size_t(ffn.rows) * ffn.d);
  const auto qkv = Activations(size_t(attention.tokens()) * attention.columns());
  const auto fed = RunOp(*backend_, ffn, x);
  const auto attended = RunOp(*backend_, attention, qkv);
  for (int threads : {1, 3}) {
    SCOPED_TRACE(threads);
    const auto other = Make(GetParam().device, GetParam().dtype, GetParam().isa, threads);
    EXPECT_TRUE(BitEqual(RunOp(*other, ffn, x), fed));
    EXPECT_TRUE(BitEqual(RunOp(*other, attention, qkv), attended));
  }
}

TEST_P(BackendTest, ScratchNeverShrinksAsShapesGrow) {
  const RandomLinear up_weights(24, 100, 5, 1), down_weights(100, 24, 6, 2);
  const auto up = PackOrDie(*backend_, up_weights);
  const auto down = PackOrDie(*backend_, down_weights);
  size_t project = 0, add_norm = 0, ffn = 0;
  for (int rows = 0; rows <= 300; ++rows) {
    const Rows narrow = {nullptr, rows, 24, 24}, wide = {nullptr, rows, 100, 100};
    const size_t p = backend_->ScratchBytes(ProjectArgs{up.get(), narrow, wide});
    const size_t n = backend_->ScratchBytes(ProjectAddNormArgs{down.get(), wide, narrow, {}});
    const size_t f = backend_->ScratchBytes(
        FeedForwardArgs{up.get(), down.get(), Activation::kGelu, narrow, {}});
    ASSERT_TRUE(p >= project && n >= add_norm && f >= ffn) << rows;
    project = p;
    add_norm = n;
    ffn = f;
  }
  const auto attention = [&](int sequences, int max_seqlen) {
    AttentionArgs args;
    args.num_sequences = sequences;
    args.max_seqlen = max_seqlen;
    args.num_heads = 1;
    args.d_qk = args.d_v = 20;
    return backend_->ScratchBytes(args);
  };
  for (int sequences = 0; sequences < 5; ++sequences) {
    for (int length = 0; length < 400; ++length) {
      ASSERT_LE(attention(sequences, length), attention(sequences, length + 1));
      ASSERT_LE(attention(sequences, length), attention(sequences + 1, length));
    }
  }
}

TEST_P(BackendTest, PackLinearRefusesIncompleteMaps) {
  const float weight[4] = {};
  EXPECT_EQ(backend_->PackLinear({.in = 2, .out = 2}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend_->PackLinear({.in = 2, .out = 2, .rank = 1, .a = weight}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend_->PackLinear({.in = 0, .out = 2, .weight = weight}).status().code(),
            absl::StatusCode::kInvalidArgument);
  const auto no_bias = backend_->PackLinear({.in = 2, .out = 2, .weight = weight});
  ASSERT_TRUE(no_bias.ok());
  EXPECT_GE((*no_bias)->bytes(), 4 * DTypeBytes(GetParam().dtype));
}

TEST_P(BackendTest, AllocatesZeroedAlignedMemory) {
  const auto buffer = backend_->Allocate(1000);
  ASSERT_TRUE(buffer.ok());
  EXPECT_EQ(buffer->bytes(), 1000u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % kArenaAlignment, 0u);
  if (cuda()) return;  // the host cannot read it
  const auto* bytes = static_cast<const char*>(buffer->data());
  EXPECT_EQ(std::count(bytes, bytes + 1000, 0), 1000);
}

FSVD_INSTANTIATE_BACKEND_TESTS(BackendTest);

}  // namespace
}  // namespace flashsvd::testing
