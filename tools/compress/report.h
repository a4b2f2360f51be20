#ifndef FLASHSVD_TOOLS_COMPRESS_REPORT_H_
#define FLASHSVD_TOOLS_COMPRESS_REPORT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/tensor.h"
#include "runtime/weights.h"
#include "tools/compress/rank_plan.h"

namespace flashsvd {

// One linear module before and after. The basis that query, key and value share has a row of its
// own ("...attention.self.shared.A") without dense figures, so that every column adds up.
struct ModuleReport {
  std::string name;
  LinearLayout layout = LinearLayout::kDense;
  int rank = 0;  // 0: dense
  int64_t dense_params = 0;
  int64_t params = 0;
  int64_t dense_bytes = 0;  // of the input's weight, biases left out
  int64_t bytes = 0;
  // ||W - B A||_F / ||W||_F of the factors as the written file holds them. None for a shared basis.
  std::optional<double> relative_error;
};

struct CompressReport {
  std::string model_dir;
  std::string out_dir;
  LinearLayout layout = LinearLayout::kPerHead;
  DType dtype = DType::kBF16;
  std::optional<double> keep;  // as asked for; none if the ranks were given
  std::optional<ExplicitRanks> ranks;
  std::vector<ModuleReport> modules;
  int64_t file_bytes_before = 0;  // of the weight file, or of all shards
  int64_t file_bytes_after = 0;
  std::vector<std::string> notes;  // modules left dense, dropped tensors, warnings
  int threads = 0;
  double seconds = 0;

  int64_t dense_params() const;
  int64_t params() const;
  // The share of the encoder's linear parameters that is stored.
  double kept() const;
};

// The table for people; ends with a newline.
std::string FormatReport(const CompressReport& report);

// One JSON object with everything the table holds; ends with a newline.
std::string ReportToJson(const CompressReport& report);

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_COMPRESS_REPORT_H_
