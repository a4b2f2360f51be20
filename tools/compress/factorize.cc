#include "tools/compress/factorize.h"

#include <cmath>
#include <cstddef>
#include <span>
#include <string>

#include "fmt/format.h"
#include "kernels/status_macros.h"
#include "tools/compress/svd.h"

namespace flashsvd {
namespace {

SquaredError DenseError(std::span<const float> w, std::span<const float> stored) {
  SquaredError error;
  for (size_t i = 0; i < w.size(); ++i) {
    const double difference = static_cast<double>(w[i]) - stored[i];
    error.difference += difference * difference;
    error.reference += static_cast<double>(w[i]) * w[i];
  }
  return error;
}

}  // namespace

absl::StatusOr<LinearWeights> LoadUnitModule(const WeightSource& source, const RankUnit& unit,
                                             size_t index) {
  return source.LoadLinear(unit.modules[index], unit.in,
                           unit.out / static_cast<int>(unit.modules.size()), unit.heads);
}

absl::StatusOr<UnitFactors> FactorizeUnit(const WeightSource& source, const RankUnit& unit,
                                          int rank) {
  std::vector<float> stacked;
  for (size_t i = 0; i < unit.modules.size(); ++i) {
    FSVD_ASSIGN_OR_RETURN(const LinearWeights module, LoadUnitModule(source, unit, i));
    stacked.insert(stacked.end(), module.weight.begin(), module.weight.end());
  }
  UnitFactors factors;
  std::vector<float> b;
  const int rows = unit.out / unit.heads;
  const size_t head_size = static_cast<size_t>(rows) * unit.in;
  for (int head = 0; head < unit.heads; ++head) {
    const auto weight = std::span<const float>(stacked).subspan(head * head_size, head_size);
    const absl::StatusOr<Svd> svd = ComputeSvd(weight, rows, unit.in);
    if (!svd.ok()) {
      return absl::Status(svd.status().code(),
                          fmt::format("{}.weight{}: {}", unit.modules.front(),
                                      unit.heads > 1 ? fmt::format(" head {}", head) : "",
                                      std::string(svd.status().message())));
    }
    const LowRankFactors truncated = TruncateSvd(*svd, rank);
    factors.a.insert(factors.a.end(), truncated.a.begin(), truncated.a.end());
    b.insert(b.end(), truncated.b.begin(), truncated.b.end());
  }
  const size_t module_size = b.size() / unit.modules.size();
  for (size_t i = 0; i < unit.modules.size(); ++i) {
    const auto begin = b.begin() + static_cast<std::ptrdiff_t>(i * module_size);
    factors.b.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(module_size));
  }
  return factors;
}

double RelativeError(const LinearWeights& dense, const LinearWeights& stored) {
  SquaredError error;
  if (stored.layout == LinearLayout::kDense) {
    error = DenseError(dense.weight, stored.weight);
  } else {
    const int rows = dense.out / stored.heads;
    const std::span<const float> w(dense.weight);
    const std::span<const float> a(stored.a);
    const std::span<const float> b(stored.b);
    for (int head = 0; head < stored.heads; ++head) {
      const size_t w_size = w.size() / stored.heads;
      const size_t a_size = a.size() / stored.heads;
      const size_t b_size = b.size() / stored.heads;
      const SquaredError part =
          ProductError(w.subspan(head * w_size, w_size), a.subspan(head * a_size, a_size),
                       b.subspan(head * b_size, b_size), rows, dense.in, stored.rank);
      error.difference += part.difference;
      error.reference += part.reference;
    }
  }
  if (error.difference == 0) return 0;
  return std::sqrt(error.difference / error.reference);
}

}  // namespace flashsvd
