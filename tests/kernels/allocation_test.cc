// Operations work in the memory they are given.

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend_factory.h"
#include "kernels/cpu/isa.h"
#include "tests/kernels/op_runner.h"
#include "tests/testing/counting_new.h"

namespace flashsvd::testing {
namespace {

Scratch ScratchIn(const Buffer& buffer) { return {buffer.data(), buffer.bytes()}; }

// Runs every operation once over buffers made beforehand; returns the allocations in between.
int64_t AllocationsOfEveryOperation(const Backend& backend) {
  Session session(backend);
  Stream& stream = session.stream();
  const int d = 48, hidden = 100;
  const TestBatch batch({5, 90, 0, 17});
  const int tokens = batch.cu.back();
  const RandomLinear up_weights(d, hidden, 9, 1), down_weights(hidden, d, 7, 2);
  const auto up = PackOrDie(backend, up_weights), down = PackOrDie(backend, down_weights);
  const RandomNorm norm(d);
  const auto rows = [&](int64_t cols) {
    return GuardedRows(session, backend.dtype(), tokens, cols, cols,
                       RandomNormal(tokens * cols, 3));
  };
  GuardedRows x = rows(d), wide = rows(hidden), qkv = rows(3 * d), context = rows(d);
  std::vector<float> pooled(4 * d);
  const Buffer table = backend.Allocate(100 * d * 4).value();
  const EmbedArgs embed = {.batch = batch.view(session),
                           .word = table.data(),
                           .position = table.data(),
                           .type = table.data(),
                           .norm = norm.params(session),
                           .x = x.view()};
  const ProjectArgs project = {.linear = up.get(), .x = x.view(), .y = wide.view()};
  const ProjectAddNormArgs add_norm = {
      .linear = down.get(), .y = wide.view(), .x = x.view(), .norm = norm.params(session)};
  const FeedForwardArgs ffn = {
      .up = up.get(), .down = down.get(), .x = x.view(), .norm = norm.params(session)};
  const AttentionArgs attention = {.qkv = qkv.view(),
                                   .context = context.view(),
                                   .host_cu_seqlens = batch.cu.data(),
                                   .num_sequences = 4,
                                   .max_seqlen = batch.max_seqlen,
                                   .num_heads = 3,
                                   .d_qk = 16,
                                   .d_v = 16,
                                   .scale = 0.25f};
  const PoolArgs pool = {.batch = batch.view(session), .x = x.view(), .out = pooled.data()};
  const size_t bytes = std::max({backend.ScratchBytes(project), backend.ScratchBytes(add_norm),
                                 backend.ScratchBytes(ffn), backend.ScratchBytes(attention)});
  const Buffer scratch = backend.Allocate(bytes).value();

  const int64_t before = NumAllocations();
  const bool ok = backend.Embed(embed, stream).ok() &&
                  backend.Project(project, ScratchIn(scratch), stream).ok() &&
                  backend.Attention(attention, ScratchIn(scratch), stream).ok() &&
                  backend.ProjectAddNorm(add_norm, ScratchIn(scratch), stream).ok() &&
                  backend.FeedForward(ffn, ScratchIn(scratch), stream).ok() &&
                  backend.Pool(pool, stream).ok() && backend.Synchronize(stream).ok();
  const int64_t allocations = NumAllocations() - before;
  EXPECT_TRUE(ok);
  return allocations;
}

TEST(AllocationTest, CpuOperationsAllocateNothing) {
  for (const std::string& isa : AvailableIsas()) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(isa);
      const auto backend =
          MakeBackend({.device = "cpu", .dtype = dtype, .num_threads = 3, .cpu_isa = isa});
      ASSERT_TRUE(backend.ok()) << backend.status();
      EXPECT_EQ(AllocationsOfEveryOperation(**backend), 0);
    }
  }
}

// The counter sees what the reference backend allocates, so a zero above is not a broken counter.
TEST(AllocationTest, TheReferenceAllocates) {
  const auto backend = MakeBackend({.device = "reference", .dtype = DType::kF32});
  ASSERT_TRUE(backend.ok());
  EXPECT_GT(AllocationsOfEveryOperation(**backend), 0);
}

}  // namespace
}  // namespace flashsvd::testing
