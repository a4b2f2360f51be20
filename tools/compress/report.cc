#include "tools/compress/report.h"

#include <algorithm>
#include <cstddef>
#include <string_view>

#include "fmt/format.h"
#include "nlohmann/json.hpp"

namespace flashsvd {
namespace {

std::string_view Name(LinearLayout layout) { return LinearLayoutName(layout); }

std::string Mebibytes(int64_t bytes) {
  return fmt::format("{:.2f} MiB", static_cast<double>(bytes) / (1 << 20));
}

}  // namespace

int64_t CompressReport::dense_params() const {
  int64_t sum = 0;
  for (const ModuleReport& module : modules) sum += module.dense_params;
  return sum;
}

int64_t CompressReport::params() const {
  int64_t sum = 0;
  for (const ModuleReport& module : modules) sum += module.params;
  return sum;
}

double CompressReport::kept() const {
  return static_cast<double>(params()) / static_cast<double>(dense_params());
}

std::string FormatReport(const CompressReport& report) {
  size_t width = 6;
  int64_t dense_bytes = 0;
  int64_t bytes = 0;
  for (const ModuleReport& module : report.modules) {
    width = std::max(width, module.name.size());
    dense_bytes += module.dense_bytes;
    bytes += module.bytes;
  }
  std::string text = fmt::format("{:<{}}  {:<10} {:>5} {:>12} {:>12}  {:>10}\n", "module", width,
                                 "layout", "rank", "dense bytes", "bytes", "rel. error");
  for (const ModuleReport& m : report.modules) {
    text +=
        fmt::format("{:<{}}  {:<10} {:>5} {:>12} {:>12}  {:>10}\n", m.name, width, Name(m.layout),
                    m.rank == 0 ? "-" : fmt::format("{}", m.rank), m.dense_bytes, m.bytes,
                    m.relative_error.has_value() ? fmt::format("{:.3e}", *m.relative_error) : "-");
  }
  text += fmt::format("{:<{}}  {:<10} {:>5} {:>12} {:>12}\n", "total", width, "", "", dense_bytes,
                      bytes);
  for (const std::string& note : report.notes) text += fmt::format("note: {}\n", note);
  text += fmt::format("encoder linear parameters: {} of {} kept ({:.6f}{})\n", report.params(),
                      report.dense_params(), report.kept(),
                      report.keep.has_value() ? fmt::format(", asked for {}", *report.keep) : "");
  text += fmt::format("weight file: {} -> {} ({} matrices)\n", Mebibytes(report.file_bytes_before),
                      Mebibytes(report.file_bytes_after), DTypeName(report.dtype));
  text += fmt::format("wrote {} in {:.1f} s on {} thread{}\n", report.out_dir, report.seconds,
                      report.threads, report.threads == 1 ? "" : "s");
  return text;
}

std::string ReportToJson(const CompressReport& report) {
  nlohmann::ordered_json modules = nlohmann::ordered_json::array();
  for (const ModuleReport& m : report.modules) {
    nlohmann::ordered_json row = {{"name", m.name},         {"layout", std::string(Name(m.layout))},
                                  {"rank", m.rank},         {"dense_parameters", m.dense_params},
                                  {"parameters", m.params}, {"dense_bytes", m.dense_bytes},
                                  {"bytes", m.bytes},       {"relative_error", nullptr}};
    if (m.relative_error.has_value()) row["relative_error"] = *m.relative_error;
    modules.push_back(std::move(row));
  }
  nlohmann::ordered_json json = {{"model", report.model_dir},
                                 {"out", report.out_dir},
                                 {"layout", std::string(Name(report.layout))},
                                 {"dtype", std::string(DTypeName(report.dtype))},
                                 {"keep_requested", nullptr},
                                 {"ranks", nullptr},
                                 {"keep", report.kept()},
                                 {"dense_parameters", report.dense_params()},
                                 {"parameters", report.params()},
                                 {"file_bytes_before", report.file_bytes_before},
                                 {"file_bytes_after", report.file_bytes_after},
                                 {"threads", report.threads},
                                 {"seconds", report.seconds},
                                 {"notes", report.notes},
                                 {"modules", std::move(modules)}};
  if (report.keep.has_value()) json["keep_requested"] = *report.keep;
  if (report.ranks.has_value()) {
    json["ranks"] = {report.ranks->attention, report.ranks->ffn, report.ranks->output};
  }
  // A path need not be valid UTF-8; the default would throw.
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace flashsvd
