#ifndef FLASHSVD_KERNELS_CPU_ISA_FEED_FORWARD_H_
#define FLASHSVD_KERNELS_CPU_ISA_FEED_FORWARD_H_

#include "kernels/cpu/isa/linear_ops.h"

namespace flashsvd::FSVD_ISA {

// Hidden units of one tile: a multiple of the 48-column strip, with [64, 384] operands and the
// weights of a strip in L2. Tiles of 96 cost 2-3 %, larger ones gain nothing.
inline constexpr int kHiddenTile = 384;

// Arrays of a FeedForward over a block of rows. `sum` gathers the down product of every hidden
// tile; in the low-rank case it is then turned into operands, and `out` takes the place of
// everything else.
template <class E>
struct FeedForwardSpace {
  using Operand = typename E::Operand;
  Carver carver;
  int64_t hidden_stride;
  int64_t sum_stride;  // of r2, or of d when down is dense
  int64_t out_stride;
  Operand* down_middle;  // [rows, r2] when down is low-rank
  size_t kept;
  Middle<E> up_middle;
  Operand* hidden;  // [rows, kHiddenTile]
  float* sum;
  float* out;  // [rows, d]
  size_t bytes;

  FeedForwardSpace(void* base, const FeedForwardTask& task)
      : carver(base),
        hidden_stride(RoundUp(Min(task.up->out, kHiddenTile), kPanel)),
        sum_stride(RoundUp(task.down->rank > 0 ? task.down->rank : task.down->out, kPanel)),
        out_stride(RoundUp(task.down->out, kPanel)),
        down_middle(carver.Take<Operand>(task.down->rank > 0 ? task.rows * sum_stride : 0)),
        kept(carver.bytes()),
        up_middle(carver, *task.up, task.rows),
        hidden(carver.Take<Operand>(task.rows * hidden_stride)),
        sum(carver.Take<float>(task.rows * sum_stride)),
        out(sum),
        bytes(carver.bytes()) {
    if (task.down->rank > 0) {
      carver.Rewind(kept);
      out = carver.Take<float>(task.rows * out_stride);
      bytes = MaxBytes(bytes, carver.bytes());
    }
  }
};

template <class E>
size_t FeedForwardWorkspace(const FeedForwardTask& task) {
  return FeedForwardSpace<E>(nullptr, task).bytes;
}

template <class E>
void FeedForward(const FeedForwardTask& task, void* workspace) {
  using Storage = typename E::Storage;
  using Operand = typename E::Operand;
  const PackedLinear& up = *task.up;
  const PackedLinear& down = *task.down;
  const int rows = task.rows;
  const FeedForwardSpace<E> space(workspace, task);
  const LastProduct<E> last = ReduceToLast<E>(up, static_cast<const Storage*>(task.x),
                                              task.x_stride, rows, space.up_middle);
  for (int f = 0; f < up.out; f += kHiddenTile) {
    const int units = Min(kHiddenTile, up.out - f);
    const int panels = RoundUp(units, kPanel) / kPanel;
    const StoreTile<Operand> store = {space.hidden, space.hidden_stride, panels * kPanel,
                                      up.bias + f, task.activation};
    Gemm<E>(last.x, last.stride, rows, last.weights.FromPanel(f / kPanel), last.k, panels, store);
    GemmInto<E>(space.hidden, space.hidden_stride, rows, PanelsOf<E>(down.first).FromInput(f),
                units, static_cast<int>(space.sum_stride) / kPanel, space.sum, space.sum_stride,
                /*accumulate=*/f > 0);
  }
  if (down.rank > 0) {
    for (int64_t i = 0; i < rows * space.sum_stride; i += kLanes) {
      Store(space.down_middle + i, Load(space.sum + i));
    }
    GemmInto<E>(space.down_middle, space.sum_stride, rows, PanelsOf<E>(down.second), down.rank,
                static_cast<int>(space.out_stride) / kPanel, space.out, space.out_stride);
  }
  AddNormRows(space.out, space.out_stride, down.bias, static_cast<Storage*>(task.x), task.x_stride,
              rows, down.out, task.norm);
}

}  // namespace flashsvd::FSVD_ISA

#endif  // FLASHSVD_KERNELS_CPU_ISA_FEED_FORWARD_H_
