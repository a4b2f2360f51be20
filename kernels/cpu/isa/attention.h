#ifndef FLASHSVD_KERNELS_CPU_ISA_ATTENTION_H_
#define FLASHSVD_KERNELS_CPU_ISA_ATTENTION_H_

#include "kernels/cpu/isa/linear_ops.h"

namespace flashsvd::FSVD_ISA {

// Keys per step of the online softmax, eight 48-column strips: scores and probabilities of a
// register tile's rows take 18 KiB (bf16) to 24 KiB (float) of L1. 192 keys cost 2-3 % at 512
// tokens. Counted from the start of the sequence, so that a result does not depend on the batch.
inline constexpr int kKeyBlock = 384;

// Arrays of one (sequence, head). K and V are packed once as weights of the two products:
//   k: keys as outputs, d_qk as inputs     v: d_v as outputs, keys as inputs
template <class E>
struct AttentionSpace {
  using A = typename E::Attention;
  using Operand = typename A::Operand;
  Carver carver;
  int64_t k_stride;
  int64_t v_stride;
  int64_t o_stride;
  Operand* k;
  Operand* v;
  float* scores;         // [kTileRows, kKeyBlock]
  Operand* p;            // [kTileRows, kKeyBlock]
  float* o;              // [kTileRows, d_v]
  Operand* q = nullptr;  // [kTileRows, d_qk] when dtypes differ

  AttentionSpace(void* base, const AttentionTask& task)
      : carver(base),
        k_stride(RoundUp(task.d_qk, A::kStep) * kPanel),
        v_stride(int64_t{RoundUp(task.length, kPanel)} * kPanel),
        o_stride(RoundUp(task.d_v, kPanel)),
        k(carver.Take<Operand>(RoundUp(task.length, kPanel) / kPanel * k_stride)),
        v(carver.Take<Operand>(o_stride / kPanel * v_stride)),
        scores(carver.Take<float>(kTileRows * kKeyBlock)),
        p(carver.Take<Operand>(kTileRows * kKeyBlock)),
        o(carver.Take<float>(kTileRows * o_stride)) {
    if (kConverts<E>) q = carver.Take<Operand>(kTileRows * RoundUp(task.d_qk, kPanel));
  }
};

template <class E>
size_t AttentionWorkspace(const AttentionTask& task) {
  return AttentionSpace<E>(nullptr, task).carver.bytes();
}

// Transposes a square of 32-bit words: off-diagonal blocks swap, half as large at each step.
FSVD_INLINE void Transpose(VecU (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const VecI odd = (LaneIndex() & step) != 0;
    const VecI upper = odd ? LaneIndex() + (kLanes - step) : LaneIndex();
    const VecI lower = odd ? LaneIndex() + kLanes : LaneIndex() + step;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if ((i & step) != 0) continue;
      const VecU a = rows[i], b = rows[i + step];
      rows[i] = __builtin_shuffle(a, b, upper);
      rows[i + step] = __builtin_shuffle(a, b, lower);
    }
  }
}

// kLanes steps (floats, or pairs of bf16) of a key with `remaining` elements left.
FSVD_INLINE VecU KeySteps(const float* key, int remaining, const float*) {
  return FloatToBits(LoadUpTo(key, remaining));
}
FSVD_INLINE VecU KeySteps(const uint16_t* key, int remaining, const float*) {
  return FloatToBits(LoadUpTo(key, remaining));
}
FSVD_INLINE VecU KeySteps(const uint16_t* key, int remaining, const uint16_t*) {
  return remaining >= 2 * kLanes ? LoadBits(key) : LoadPartialBits(key, remaining);
}

// k[j / 16][c / step][j % 16][c % step] = K[j][c], zero for keys >= length and columns >= d_qk.
template <class E>
FSVD_INLINE void PackKeys(const AttentionTask& task, const AttentionSpace<E>& space) {
  constexpr int kStep = E::Attention::kStep;
  const auto* keys = static_cast<const typename E::Storage*>(task.k);
  const int steps = RoundUp(task.d_qk, kStep) / kStep;
  for (int j0 = 0; j0 < RoundUp(task.length, kPanel); j0 += kLanes) {
    auto* panel = space.k + j0 / kPanel * space.k_stride + j0 % kPanel * kStep;
    const int valid = Min(kLanes, task.length - j0);
    for (int s = 0; s < steps; s += kLanes) {
      VecU block[kLanes];
      for (int j = 0; j < kLanes; ++j) {
        block[j] = j < valid ? KeySteps(keys + (j0 + j) * task.stride + s * kStep,
                                        task.d_qk - s * kStep, space.k)
                             : VecU{};
      }
      Transpose(block);
      for (int i = 0; i < Min(kLanes, steps - s); ++i) {
        StoreBits(panel + (s + i) * kPanel * kStep, block[i]);
      }
    }
  }
}

// Rows `first` (and, as pairs, the row after it) of V [., d_v] at columns [c, c + kLanes).
FSVD_INLINE void PackValueStep(const float* row, const float*, int remaining, float* to) {
  Store(to, LoadUpTo(row, remaining));
}
FSVD_INLINE void PackValueStep(const uint16_t* row, const uint16_t*, int remaining, float* to) {
  Store(to, LoadUpTo(row, remaining));
}
FSVD_INLINE void PackValueStep(const uint16_t* row, const uint16_t* next, int remaining,
                               uint16_t* to) {
  const VecU low = FloatToBits(LoadUpTo(row, remaining)) >> 16;
  const VecU high = next == nullptr ? VecU{} : FloatToBits(LoadUpTo(next, remaining));
  StoreBits(to, low | high);
}

// v[c / 16][j / step][c % 16][j % step] = V[j][c], zero for columns >= d_v and, in a last odd pair,
// for the missing key.
template <class E>
FSVD_INLINE void PackValues(const AttentionTask& task, const AttentionSpace<E>& space) {
  constexpr int kStep = E::Attention::kStep;
  const auto* values = static_cast<const typename E::Storage*>(task.v);
  for (int j = 0; j < task.length; j += kStep) {
    const auto* row = values + j * task.stride;
    const auto* next = j + 1 < task.length ? row + task.stride : nullptr;
    for (int c = 0; c < static_cast<int>(space.o_stride); c += kLanes) {
      auto* to = space.v + c / kPanel * space.v_stride + (j * kPanel + c % kPanel * kStep);
      if (c >= task.d_v) {
        memset(to, 0, kLanes * kStep * sizeof(*to));
        continue;
      }
      PackValueStep(row + c, next == nullptr ? nullptr : next + c, task.d_v - c, to);
    }
  }
}

// Running softmax of the rows of a register tile. The maximum is of scaled scores, in base 2.
struct Softmax {
  float scale;
  float max[kTileRows];
  VecF sum[kTileRows];

  Softmax(float scale_base_2, int rows) : scale(scale_base_2) {
    for (int m = 0; m < rows; ++m) {
      max[m] = -3e38f;
      sum[m] = VecF{};
    }
  }

  // Scores s [rows, kKeyBlock], of which `keys` are valid, become p = 2^(scale s - max), zero in
  // the padding to whole vectors. Sums and o [rows, o_stride] of earlier blocks
  // are brought down to the new maximum.
  template <class Operand>
  void Step(float* s, Operand* p, int rows, int keys, float* o, int64_t o_stride) {
    const int padded = RoundUp(keys, kLanes);
    float new_max[kTileRows];
    for (int m = 0; m < rows; ++m) {
      float* row = s + m * kKeyBlock;
      if (keys < padded) {
        float* tail = row + padded - kLanes;
        const VecF excluded = Broadcast(scale < 0 ? 3e38f : -3e38f);
        Store(tail, LaneIndex() < keys - (padded - kLanes) ? Load(tail) : excluded);
      }
      VecF row_max = Broadcast(max[m]);
      for (int j = 0; j < padded; j += kLanes) row_max = Max(row_max, Load(row + j) * scale);
      new_max[m] = ReduceMax(row_max);
    }
    // bf16 probabilities need no more than degree 3.
    constexpr int kDegree = sizeof(Operand) == 2 ? 3 : 5;
    for (int m = 0; m < rows; ++m) {
      VecF block_sum = {};
      for (int j = 0; j < padded; j += kLanes) {
        VecF e = Exp2AtMost127<kDegree>(Load(s + m * kKeyBlock + j) * scale - new_max[m]);
        if (keys - j < kLanes) e = KeepFirst(e, keys - j);
        block_sum += e;
        Store(p + m * kKeyBlock + j, e);
      }
      if (o != nullptr && new_max[m] != max[m]) {
        const VecF rescale = Exp2AtMost127<5>(Broadcast(max[m] - new_max[m]));
        sum[m] *= rescale;
        for (int64_t c = 0; c < o_stride; c += kLanes) {
          Store(o + m * o_stride + c, Load(o + m * o_stride + c) * rescale);
        }
      }
      sum[m] += block_sum;
      max[m] = new_max[m];
    }
  }
};

// Flash attention for queries [first, first + rows): scores and probabilities exist for one key
// block at a time.
template <class E>
FSVD_INLINE void AttendRows(const AttentionTask& task, const AttentionSpace<E>& space, int first,
                            int rows) {
  using A = typename E::Attention;
  using Storage = typename E::Storage;
  int64_t q_stride = task.stride;
  const auto* q = Stage<E>(static_cast<const Storage*>(task.q) + first * task.stride, &q_stride,
                           rows, task.d_qk, space.q);
  Softmax softmax(task.scale * kLog2E, rows);
  for (int key = 0; key < task.length; key += kKeyBlock) {
    const int keys = Min(kKeyBlock, task.length - key);
    const Panels<A> k = {space.k + key / kPanel * space.k_stride, space.k_stride};
    const Panels<A> v = {space.v + key * kPanel, space.v_stride};
    GemmInto<A>(q, q_stride, rows, k, task.d_qk, RoundUp(keys, kPanel) / kPanel, space.scores,
                kKeyBlock);
    softmax.Step(space.scores, space.p, rows, keys, key == 0 ? nullptr : space.o, space.o_stride);
    GemmInto<A>(space.p, kKeyBlock, rows, v, keys, static_cast<int>(space.o_stride) / kPanel,
                space.o, space.o_stride, /*accumulate=*/key > 0);
  }
  for (int m = 0; m < rows; ++m) {
    Storage* to = static_cast<Storage*>(task.context) + (first + m) * task.context_stride;
    const float inverse = 1.0f / ReduceAdd(softmax.sum[m]);
    for (int c = 0; c < task.d_v; c += kLanes) {
      StoreUpTo(to + c, Load(space.o + m * space.o_stride + c) * inverse, task.d_v - c);
    }
  }
}

template <class E>
void Attention(const AttentionTask& task, void* workspace) {
  const AttentionSpace<E> space(workspace, task);
  PackKeys<E>(task, space);
  PackValues<E>(task, space);
  for (int first = task.query_begin; first < task.query_end; first += kTileRows) {
    AttendRows<E>(task, space, first, Min(kTileRows, task.query_end - first));
  }
}

}  // namespace flashsvd::FSVD_ISA

#endif  // FLASHSVD_KERNELS_CPU_ISA_ATTENTION_H_
