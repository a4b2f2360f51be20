#ifndef FLASHSVD_KERNELS_CPU_ISA_LINEAR_OPS_H_
#define FLASHSVD_KERNELS_CPU_ISA_LINEAR_OPS_H_

#include "kernels/cpu/isa/gemm.h"
#include "kernels/cpu/isa/norm.h"
#include "kernels/cpu/kernel_table.h"

namespace flashsvd::FSVD_ISA {

// Divides a workspace into 64-byte aligned arrays. Over a null base it only adds up the bytes, so
// that sizes and addresses come from the same lines.
class Carver {
 public:
  explicit Carver(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}
  template <class T>
  T* Take(int64_t count) {
    const size_t at = bytes_;
    bytes_ = (bytes_ + count * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(base_ + at);
  }
  size_t bytes() const { return bytes_; }
  // Continues at `bytes`, as an alternative use of what was taken since.
  void Rewind(size_t bytes) { bytes_ = bytes; }

 private:
  uintptr_t base_;
  size_t bytes_ = 0;
};

FSVD_INLINE size_t MaxBytes(size_t a, size_t b) { return a > b ? a : b; }

template <class E>
inline constexpr bool kConverts = sizeof(typename E::Storage) != sizeof(typename E::Operand);

// x as operands of a product: itself, or expanded into `staged`, whose rows are cols apart.
template <class E>
FSVD_INLINE const typename E::Operand* Stage(const typename E::Storage* x, int64_t* stride,
                                             int rows, int cols, typename E::Operand* staged) {
  if constexpr (!kConverts<E>) {
    return x;
  } else {
    const int64_t padded = RoundUp(cols, kPanel);
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < cols; c += kLanes) {
        Store(staged + r * padded + c, LoadUpTo(x + r * *stride + c, cols - c));
      }
    }
    *stride = padded;
    return staged;
  }
}

// Operands of one product with `linear`'s last matrix, at most the rank middle away from x.
template <class E>
struct Middle {
  typename E::Operand* staged = nullptr;  // x as operands, when dtypes differ
  typename E::Operand* p = nullptr;       // [rows, rank] when low-rank
  int64_t p_stride = 0;

  Middle(Carver& carver, const PackedLinear& linear, int rows) {
    if (kConverts<E>) {
      staged = carver.Take<typename E::Operand>(int64_t{rows} * RoundUp(linear.in, kPanel));
    }
    if (linear.rank > 0) {
      p_stride = RoundUp(linear.rank, kPanel);
      p = carver.Take<typename E::Operand>(rows * p_stride);
    }
  }
};

template <class E>
struct LastProduct {
  const typename E::Operand* x;
  int64_t stride;
  Panels<E> weights;
  int k;
};

// Computes the rank middle of a factor pair, and names the product that remains.
template <class E>
FSVD_INLINE LastProduct<E> ReduceToLast(const PackedLinear& linear, const typename E::Storage* x,
                                        int64_t x_stride, int rows, const Middle<E>& middle) {
  const auto* operand = Stage<E>(x, &x_stride, rows, linear.in, middle.staged);
  if (linear.rank == 0) return {operand, x_stride, PanelsOf<E>(linear.first), linear.in};
  const StoreTile<typename E::Operand> store = {
      middle.p, middle.p_stride, static_cast<int>(middle.p_stride), nullptr, kCpuNone};
  Gemm<E>(operand, x_stride, rows, PanelsOf<E>(linear.first), linear.in,
          RoundUp(linear.rank, kPanel) / kPanel, store);
  return {middle.p, middle.p_stride, PanelsOf<E>(linear.second), linear.rank};
}

template <class E>
size_t ProjectWorkspace(const ProjectTask& task) {
  Carver carver(nullptr);
  Middle<E>(carver, *task.linear, task.rows);
  return carver.bytes();
}

template <class E>
void Project(const ProjectTask& task, void* workspace) {
  using Storage = typename E::Storage;
  Carver carver(workspace);
  const PackedLinear& linear = *task.linear;
  const Middle<E> middle(carver, linear, task.rows);
  const LastProduct<E> last = ReduceToLast<E>(linear, static_cast<const Storage*>(task.x),
                                              task.x_stride, task.rows, middle);
  const StoreTile<Storage> store = {static_cast<Storage*>(task.y), task.y_stride, linear.out,
                                    linear.bias, task.activation};
  Gemm<E>(last.x, last.stride, task.rows, last.weights, last.k,
          RoundUp(linear.out, kPanel) / kPanel, store);
}

template <class E>
struct ProjectAddNormSpace {
  Carver carver;
  Middle<E> middle;
  int64_t sum_stride;
  float* sum;  // [rows, out]

  ProjectAddNormSpace(void* base, const ProjectAddNormTask& task)
      : carver(base),
        middle(carver, *task.linear, task.rows),
        sum_stride(RoundUp(task.linear->out, kPanel)),
        sum(carver.Take<float>(task.rows * sum_stride)) {}
};

template <class E>
size_t ProjectAddNormWorkspace(const ProjectAddNormTask& task) {
  return ProjectAddNormSpace<E>(nullptr, task).carver.bytes();
}

template <class E>
void ProjectAddNorm(const ProjectAddNormTask& task, void* workspace) {
  using Storage = typename E::Storage;
  const PackedLinear& linear = *task.linear;
  const ProjectAddNormSpace<E> space(workspace, task);
  const LastProduct<E> last = ReduceToLast<E>(linear, static_cast<const Storage*>(task.y),
                                              task.y_stride, task.rows, space.middle);
  GemmInto<E>(last.x, last.stride, task.rows, last.weights, last.k,
              RoundUp(linear.out, kPanel) / kPanel, space.sum, space.sum_stride);
  AddNormRows(space.sum, space.sum_stride, linear.bias, static_cast<Storage*>(task.x),
              task.x_stride, task.rows, linear.out, task.norm);
}

}  // namespace flashsvd::FSVD_ISA

#endif  // FLASHSVD_KERNELS_CPU_ISA_LINEAR_OPS_H_
