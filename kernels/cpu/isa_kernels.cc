// Compiled once per instruction set, with FSVD_ISA naming the namespace (kernels/CMakeLists.txt).

#include "kernels/cpu/isa/attention.h"
#include "kernels/cpu/isa/embed_pool.h"
#include "kernels/cpu/isa/feed_forward.h"
#include "kernels/cpu/isa/linear_ops.h"
#include "kernels/cpu/kernel_table.h"

namespace flashsvd::FSVD_ISA {

void Activate(int activation, const float* in, float* out, int n) {
  VisitActivation(
      activation, [&](auto act) __attribute__((always_inline)) {
        for (int i = 0; i < n; i += kLanes) Store(out + i, act.Of(Load(in + i)));
      });
}

// As many accumulators as the register tile has, so that latency is hidden. All start from values
// that the compiler cannot see, or it would merge them.
template <class E>
double Peak(int64_t iterations) {
  constexpr int kAccumulators = kTileRows * kTilePanels * kPanelVectors;
  float seeds[kAccumulators] = {};
  VecF a = Broadcast(0.5f), b = Broadcast(0.25f);
  asm volatile("" : "+m"(seeds), "+m"(a), "+m"(b));
  VecF acc[kAccumulators];
#pragma GCC unroll 32
  for (int v = 0; v < kAccumulators; ++v) acc[v] = Broadcast(seeds[v]);
  const VecF x = a, y = b;
  for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 32
    for (int v = 0; v < kAccumulators; ++v) {
      if constexpr (sizeof(typename E::Operand) == 2) {
        acc[v] = MultiplyAddPairs(acc[v], FloatToBits(x), FloatToBits(y));
      } else {
        acc[v] = acc[v] * x + y;
      }
    }
  }
  VecF sum = {};
#pragma GCC unroll 32
  for (int v = 0; v < kAccumulators; ++v) sum += acc[v];
  volatile float sink = ReduceAdd(sum);
  (void)sink;
  const int flops = sizeof(typename E::Operand) == 2 ? 4 : 2;
  return static_cast<double>(iterations) * kAccumulators * kLanes * flops;
}

template <class E>
constexpr KernelTable MakeTable() {
  return {.tile_rows = kTileRows,
          .project_workspace = ProjectWorkspace<E>,
          .project_add_norm_workspace = ProjectAddNormWorkspace<E>,
          .feed_forward_workspace = FeedForwardWorkspace<E>,
          .attention_workspace = AttentionWorkspace<E>,
          .project = Project<E>,
          .project_add_norm = ProjectAddNorm<E>,
          .feed_forward = FeedForward<E>,
          .attention = Attention<E>,
          .embed = Embed<E>,
          .pool = Pool<E>,
          .activate = Activate,
          .peak = Peak<E>};
}

extern const KernelTable kF32Kernels = MakeTable<F32>();
extern const KernelTable kBf16Kernels = MakeTable<Bf16>();

}  // namespace flashsvd::FSVD_ISA
