#include "tools/client/similarity.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

#include "fmt/format.h"
#include "tools/client/table.h"

namespace flashsvd {
namespace {

constexpr int kLabelWidth = 46;

}  // namespace

double Cosine(std::span<const float> a, std::span<const float> b) {
  double dot = 0;
  double norm_a = 0;
  double norm_b = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    dot += static_cast<double>(a[i]) * b[i];
    norm_a += static_cast<double>(a[i]) * a[i];
    norm_b += static_cast<double>(b[i]) * b[i];
  }
  return norm_a > 0 && norm_b > 0 ? dot / std::sqrt(norm_a * norm_b) : 0;
}

const char* Shade(double cosine) {
  constexpr std::array<const char*, 5> kBlocks = {" ", "░", "▒", "▓", "█"};
  const int step = static_cast<int>(std::clamp(cosine, 0.0, 1.0) * 5);
  return kBlocks[std::min(step, 4)];
}

std::string RenderSimilarity(const std::vector<std::string>& texts,
                             const std::vector<std::vector<float>>& rows,
                             const std::vector<double>& agreement,
                             const std::string& agreement_title) {
  std::string out(kLabelWidth + 3, ' ');
  const auto end = std::back_inserter(out);
  for (size_t j = 1; j <= rows.size(); ++j) fmt::format_to(end, "{:>6} ", j);
  if (!agreement.empty()) fmt::format_to(end, "  {}", agreement_title);
  out += '\n';
  for (size_t i = 0; i < rows.size(); ++i) {
    fmt::format_to(end, "{:>2} {}", i + 1, FitWidth(texts[i], kLabelWidth));
    for (const std::vector<float>& other : rows) {
      const double cosine = Cosine(rows[i], other);
      fmt::format_to(end, "{:>6.2f}{}", cosine, Shade(cosine));
    }
    if (!agreement.empty())
      fmt::format_to(end, "  {:>{}.4f}", agreement[i], agreement_title.size());
    out += '\n';
  }
  return out;
}

}  // namespace flashsvd
