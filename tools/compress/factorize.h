#ifndef FLASHSVD_TOOLS_COMPRESS_FACTORIZE_H_
#define FLASHSVD_TOOLS_COMPRESS_FACTORIZE_H_

#include <vector>

#include "absl/status/statusor.h"
#include "runtime/weights.h"
#include "tools/compress/rank_plan.h"

namespace flashsvd {

// The factors of one unit, laid out as the checkpoint stores them.
struct UnitFactors {
  std::vector<float> a;               // [r, in], or per head [H, R, in]
  std::vector<std::vector<float>> b;  // per module of the unit: [out, r], or [H, h, R]
};

// Truncated SVD of a unit's dense modules: the best factors of that rank in the Frobenius norm, of
// each matrix (full), of each head's rows (per_head), of [Wq; Wk; Wv] (qkv_shared). Thread-safe.
// Errors name the module. REQUIRES: 1 <= rank <= unit.max_rank().
absl::StatusOr<UnitFactors> FactorizeUnit(const WeightSource& source, const RankUnit& unit,
                                          int rank);

// The dense weight of one of the unit's modules, [out / number of modules, in].
absl::StatusOr<LinearWeights> LoadUnitModule(const WeightSource& source, const RankUnit& unit,
                                             size_t index);

// ||W - W'||_F / ||W||_F, where W' is what `stored` stands for (dense, or B A); 0 if both are 0.
// REQUIRES: `dense` is dense and both have the same in and out.
double RelativeError(const LinearWeights& dense, const LinearWeights& stored);

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_COMPRESS_FACTORIZE_H_
