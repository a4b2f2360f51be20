#ifndef FLASHSVD_KERNELS_CPU_ISA_GEMM_H_
#define FLASHSVD_KERNELS_CPU_ISA_GEMM_H_

#include "kernels/cpu/isa/activation.h"
#include "kernels/cpu/isa/simd.h"
#include "kernels/cpu/kernel_table.h"

namespace flashsvd::FSVD_ISA {

inline constexpr int kTileCols = kTilePanels * kPanel;

// Packed weights from some input on: panel p of 16 outputs starts at data + p * stride.
template <class E>
struct Panels {
  const typename E::Storage* data;
  int64_t stride;

  // REQUIRES: input is even for bf16.
  Panels FromInput(int input) const { return {data + int64_t{input} * kPanel, stride}; }
  Panels FromPanel(int panel) const { return {data + panel * stride, stride}; }
};

template <class E>
FSVD_INLINE Panels<E> PanelsOf(const PackedMatrix& m) {
  return {static_cast<const typename E::Storage*>(m.panels), m.panel_stride};
}

FSVD_INLINE VecF MultiplyAddPairs(VecF acc, VecU x, VecU w) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<VecF>(_mm512_dpbf16_ps(
      reinterpret_cast<__m512>(acc), reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w)));
#else
  acc += BitsToFloat(x << 16) * BitsToFloat(w << 16);
  return acc + BitsToFloat(x & 0xffff0000u) * BitsToFloat(w & 0xffff0000u);
#endif
}

// tile[m][n] = sum_k x[m][k] w[n][k], or += when `accumulate`, for kRows rows and kPanels panels,
// summed in the order of k whatever the tile, so that a row's result does not depend on its
// neighbours. Reads exactly k elements of each row of x.
template <class E, int kRows, int kPanels>
static void MicroKernel(const typename E::Operand* x, int64_t x_stride, Panels<E> w, int k,
                        float* tile, int64_t tile_stride, bool accumulate) {
  constexpr int kVectors = kPanels * kPanelVectors;
  VecF acc[kRows][kVectors] = {};
  if (accumulate) {
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) acc[m][v] = Load(tile + m * tile_stride + v * kLanes);
    }
  }
  const typename E::Storage* weights = w.data;
  const auto weights_at = [&](int v) {
    return LoadBits(weights + (v / kPanelVectors) * w.stride +
                    (v % kPanelVectors) * kLanes * E::kStep);
  };
  int i = 0;
  for (; i + E::kStep <= k; i += E::kStep, weights += kPanel * E::kStep) {
    VecU packed[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) packed[v] = weights_at(v);
    if constexpr (E::kExpand) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        VecF expanded[kVectors];
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) {
          expanded[v] = BitsToFloat(half == 0 ? packed[v] << 16 : packed[v] & 0xffff0000u);
        }
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m) {
          const VecF a = Broadcast(x[m * x_stride + i + half]);
#pragma GCC unroll 16
          for (int v = 0; v < kVectors; ++v) acc[m][v] += a * expanded[v];
        }
      }
    } else {
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        if constexpr (E::kStep == 1) {
          const VecF a = Broadcast(x[m * x_stride + i]);
#pragma GCC unroll 16
          for (int v = 0; v < kVectors; ++v) acc[m][v] += a * BitsToFloat(packed[v]);
        } else {
          uint32_t pair;
          memcpy(&pair, x + m * x_stride + i, sizeof(pair));
          const VecU a = pair - VecU{};
#pragma GCC unroll 16
          for (int v = 0; v < kVectors; ++v) acc[m][v] = MultiplyAddPairs(acc[m][v], a, packed[v]);
        }
      }
    }
  }
  if (i < k) {  // the last of an odd number of bf16 inputs; its partner's weight is zero
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        if constexpr (E::kExpand) {
          acc[m][v] += Broadcast(x[m * x_stride + i]) * BitsToFloat(weights_at(v) << 16);
        } else if constexpr (E::kStep == 2) {
          const VecU a = static_cast<uint32_t>(x[m * x_stride + i]) - VecU{};
          acc[m][v] = MultiplyAddPairs(acc[m][v], a, weights_at(v));
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) Store(tile + m * tile_stride + v * kLanes, acc[m][v]);
  }
}

template <class E>
using MicroKernelFn = void (*)(const typename E::Operand*, int64_t, Panels<E>, int, float*, int64_t,
                               bool);

template <class E, int kPanels>
FSVD_INLINE MicroKernelFn<E> MicroKernelForRows(int rows) {
  switch (rows) {
    case 1:
      return MicroKernel<E, 1, kPanels>;
    case 2:
      return MicroKernel<E, 2, kPanels>;
#if defined(__AVX2__)
    case 3:
      return MicroKernel<E, 3, kPanels>;
    case 4:
      return MicroKernel<E, 4, kPanels>;
    case 5:
      return MicroKernel<E, 5, kPanels>;
#if defined(__AVX512F__)
    case 6:
      return MicroKernel<E, 6, kPanels>;
    case 7:
      return MicroKernel<E, 7, kPanels>;
#endif
#endif
    default:
      return MicroKernel<E, kTileRows, kPanels>;
  }
}

template <class E>
FSVD_INLINE MicroKernelFn<E> MicroKernelFor(int rows, int panels) {
  if constexpr (kTilePanels >= 3) {
    if (panels == 3) return MicroKernelForRows<E, 3>(rows);
    if (panels == 2) return MicroKernelForRows<E, 2>(rows);
  }
  return MicroKernelForRows<E, 1>(rows);
}

// Panels of the next strip: four are better taken as two and two than as three and one.
FSVD_INLINE int StripPanels(int remaining) {
  if (kTilePanels == 3 && remaining == 4) return 2;
  return Min(remaining, kTilePanels);
}

// Calls visit(kernel, row, num_rows, panel, num_panels) for every register tile of `rows` rows and
// `panels` panels. Strips of panels are the outer loop: their weights stay in L1 or L2 while all
// rows pass over them.
template <class E, class Visit>
FSVD_INLINE void ForTiles(int rows, int panels, const Visit& visit) {
  const int tail = rows % kTileRows;
  for (int p = 0; p < panels;) {
    const int strip = StripPanels(panels - p);
    const MicroKernelFn<E> full = MicroKernelFor<E>(kTileRows, strip);
    int r = 0;
    for (; r + kTileRows <= rows; r += kTileRows) visit(full, r, kTileRows, p, strip);
    if (tail != 0) visit(MicroKernelFor<E>(tail, strip), r, tail, p, strip);
    p += strip;
  }
}

// out (+)= x w' in float: [rows, 16 panels], x [rows, k].
template <class E>
FSVD_INLINE void GemmInto(const typename E::Operand* x, int64_t x_stride, int rows, Panels<E> w,
                          int k, int panels, float* out, int64_t out_stride,
                          bool accumulate = false) {
  ForTiles<E>(rows, panels, [&](MicroKernelFn<E> kernel, int row, int, int panel, int) {
    kernel(x + row * x_stride, x_stride, w.FromPanel(panel), k,
           out + row * out_stride + panel * kPanel, out_stride, accumulate);
  });
}

// The same product handed on a tile at a time, in cache:
//   epilogue(row, num_rows, col, num_cols, tile), tile rows kTileCols apart.
template <class E, class Epilogue>
FSVD_INLINE void Gemm(const typename E::Operand* x, int64_t x_stride, int rows, Panels<E> w, int k,
                      int panels, const Epilogue& epilogue) {
  alignas(64) float tile[kTileRows * kTileCols];
  ForTiles<E>(rows, panels,
              [&](MicroKernelFn<E> kernel, int row, int num_rows, int panel, int num_panels) {
                kernel(x + row * x_stride, x_stride, w.FromPanel(panel), k, tile, kTileCols, false);
                epilogue(row, num_rows, panel * kPanel, num_panels * kPanel, tile);
              });
}

// Epilogue: out[row][col] = activation(tile + bias), `cols` valid columns. When the rows of `out`
// are padded to 16, cols is the padded width: zero weights and bias make the padding zero.
template <class T>
struct StoreTile {
  T* out;
  int64_t stride;
  int cols;
  const float* bias;  // null: none
  int activation;

  void operator()(int row, int num_rows, int col, int num_cols, const float* tile) const {
    VisitActivation(
        activation, [&](auto act) __attribute__((always_inline)) {
          for (int c = 0; c < num_cols; c += kLanes) {
            const VecF b = bias == nullptr ? VecF{} : Load(bias + col + c);
            for (int m = 0; m < num_rows; ++m) {
              const VecF v = act.Of(Load(tile + m * kTileCols + c) + b);
              if (col + c < cols) StoreUpTo(out + (row + m) * stride + col + c, v, cols - col - c);
            }
          }
        });
  }
};

}  // namespace flashsvd::FSVD_ISA

#endif  // FLASHSVD_KERNELS_CPU_ISA_GEMM_H_
