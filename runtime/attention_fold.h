#ifndef FLASHSVD_RUNTIME_ATTENTION_FOLD_H_
#define FLASHSVD_RUNTIME_ATTENTION_FOLD_H_

#include <vector>

#include "kernels/backend.h"
#include "runtime/weights.h"

namespace flashsvd {

// A linear map that owns its float32 values: dense (rank 0), a factor pair or several
// (LinearSource).
struct HostLinear {
  int in = 0;
  int out = 0;
  int rank = 0;
  int groups = 1;
  std::vector<float> weight;  // [out, in]
  std::vector<float> a;       // [groups * rank, in]
  std::vector<float> b;       // [out, rank]
  std::vector<float> bias;    // [out], or empty for zero

  // Borrows the vectors.
  LinearSource source() const;
};

// The module as one linear map. Per-head factors, which have no such form, become dense.
HostLinear ToHostLinear(LinearWeights weights);

// Self-attention as the kernels run it: `projections` fill the columns of qkv ([Q | K | V], see
// AttentionArgs), attention runs at head dims d_qk and d_v, `output` maps the context to width d.
struct FoldedAttention {
  struct Projection {
    HostLinear linear;
    int column = 0;  // first column of qkv that it fills
  };
  std::vector<Projection> projections;
  int d_qk = 0;
  int d_v = 0;
  HostLinear output;
};

// Folds the four modules of one layer, in float64 and exactly up to its rounding (design.md 2.1):
//   - key per head, R_k < h: B_k is made orthonormal (thin QR), then moves into the query,
//     Wq~ = B_k' W_q and bq~ = B_k' bq; keys stay A_k x. d_qk = R_k.
//   - value per head, R_v < h: values stay A_v x and B_v moves into the output projection. d_v =
//   R_v.
//   - the key's bias cancels in softmax and is dropped; the value's passes through attention and
//     moves into the output's bias.
//   - query, key and value on one shared basis become one factor pair; neighbouring dense modules
//     become one dense one.
// Works for any mix of layouts.
// REQUIRES: q, k, v [d, d], o [d, d], heads divides d.
FoldedAttention FoldAttention(const LinearWeights& q, const LinearWeights& k,
                              const LinearWeights& v, const LinearWeights& o, int heads);

// Rounds d_qk and d_v up to multiples of `multiple`, with zero rows and columns: scores and outputs
// stay what they are.
FoldedAttention PadHeadDims(FoldedAttention folded, int heads, int multiple);

// Makes neighbouring factor pairs of one rank and width one projection of several groups: their
// first products, which read the same x, can then run as one.
FoldedAttention GroupPairs(FoldedAttention folded);

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_ATTENTION_FOLD_H_
