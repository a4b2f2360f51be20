#include "tools/compress/compressor.h"

#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "fmt/format.h"
#include "kernels/status_macros.h"
#include "nlohmann/json.hpp"
#include "runtime/lowrank_metadata.h"
#include "runtime/model_config.h"
#include "runtime/safetensors.h"
#include "tools/compress/factorize.h"
#include "tools/compress/output_directory.h"
#include "tools/compress/parallel_for.h"
#include "tools/compress/tensor_list.h"
#include "tools/progress_bar.h"

namespace flashsvd {
namespace {

namespace fs = std::filesystem;

// What is compressed, and how: everything known before the first decomposition.
struct Plan {
  ModelConfig config;
  std::unique_ptr<Checkpoint> source;
  std::vector<RankUnit> units;
  std::vector<int> ranks;  // per unit; 0: left dense
};

absl::StatusOr<Plan> MakePlan(const CompressOptions& options) {
  std::error_code ignored;
  if (!fs::is_directory(options.model_dir, ignored)) {
    return absl::NotFoundError(fmt::format("--model: {} is not a directory", options.model_dir));
  }
  Plan plan;
  FSVD_ASSIGN_OR_RETURN(plan.config, LoadModelConfig(options.model_dir));
  FSVD_ASSIGN_OR_RETURN(plan.source, Checkpoint::Open(options.model_dir));
  if (!plan.source->lowrank_modules().empty()) {
    return absl::FailedPreconditionError(
        fmt::format("--model: {} is compressed already; compress the dense model it came from",
                    plan.source->file().path()));
  }
  plan.units = RankUnits(plan.config, options.layout);
  FSVD_ASSIGN_OR_RETURN(plan.ranks, options.ranks.has_value()
                                        ? RanksFromFlags(plan.units, *options.ranks)
                                        : RanksForKeep(plan.units, options.keep));
  return plan;
}

// Decomposes every unit that gets a rank; the others' factors stay empty.
absl::StatusOr<std::vector<UnitFactors>> Factorize(const Plan& plan,
                                                   const CompressOptions& options) {
  int64_t modules = 0;
  for (const RankUnit& unit : plan.units) modules += static_cast<int64_t>(unit.modules.size());
  ProgressBar bar("decompose", modules, options.progress);
  std::vector<UnitFactors> factors(plan.units.size());
  FSVD_RETURN_IF_ERROR(
      ParallelFor(plan.units.size(), options.threads, options.cancelled, [&](size_t i) {
        const RankUnit& unit = plan.units[i];
        if (plan.ranks[i] > 0) {
          FSVD_ASSIGN_OR_RETURN(factors[i], FactorizeUnit(*plan.source, unit, plan.ranks[i]));
        }
        bar.Advance(static_cast<int64_t>(unit.modules.size()));
        return absl::OkStatus();
      }));
  return factors;
}

void AddFactors(const std::string& prefix, const RankUnit& unit, int64_t rank, UnitFactors factors,
                TensorList& list) {
  const int64_t in = unit.in;
  const int64_t heads = unit.heads;
  const int64_t rows = unit.out / heads / static_cast<int64_t>(unit.modules.size());
  const bool per_head = unit.layout == LinearLayout::kPerHead;
  using Shape = std::vector<int64_t>;
  list.Add(prefix + LowRankAName(unit.modules.front(), unit.layout),
           per_head ? Shape{heads, rank, in} : Shape{rank, in}, std::move(factors.a));
  for (size_t i = 0; i < unit.modules.size(); ++i) {
    list.Add(prefix + LowRankBName(unit.modules[i]),
             per_head ? Shape{heads, rows, rank} : Shape{rows, rank}, std::move(factors.b[i]));
  }
}

// The metadata of design.md section 7, on top of what the input carried.
std::map<std::string, std::string> Metadata(const Plan& plan, const CompressOptions& options,
                                            double kept) {
  nlohmann::ordered_json modules = nlohmann::ordered_json::object();
  for (size_t i = 0; i < plan.units.size(); ++i) {
    if (plan.ranks[i] == 0) continue;
    for (const std::string& name : plan.units[i].modules) {
      modules[plan.source->prefix() + name] = {
          {"rank", plan.ranks[i]},
          {"layout", std::string(LinearLayoutName(plan.units[i].layout))},
          {"method", "svd"}};
    }
  }
  std::map<std::string, std::string> metadata = plan.source->file().metadata();
  std::error_code ignored;
  metadata["lowrank.format"] = "1";
  metadata["lowrank.modules"] = modules.dump();
  metadata["lowrank.base_model"] =
      fs::weakly_canonical(options.model_dir, ignored).filename().string();
  metadata["lowrank.keep"] = fmt::format("{:.6f}", kept);
  metadata["lowrank.dtype"] = std::string(DTypeName(options.dtype));
  return metadata;
}

// Everything that is not replaced: matrices in the chosen dtype, vectors (biases, LayerNorms) in
// f32. Integer tensors (position_ids) are left out, with a note: the runtime has no use for them.
absl::Status AddUntouched(const Plan& plan, TensorList& list, std::vector<std::string>& notes) {
  const TensorNames names(plan.source->file(), plan.source->prefix());
  std::set<std::string> replaced;
  for (size_t i = 0; i < plan.units.size(); ++i) {
    if (plan.ranks[i] == 0) continue;
    for (const std::string& name : plan.units[i].modules) {
      replaced.insert(names.InFile(name + ".weight"));
    }
  }
  for (const auto& [name, entry] : plan.source->file().tensors()) {
    if (replaced.contains(name)) continue;
    if (entry.dtype.starts_with('I') || entry.dtype.starts_with('U') || entry.dtype == "BOOL") {
      notes.push_back(fmt::format("{} ({}) left out: not a float tensor", name, entry.dtype));
      continue;
    }
    std::vector<float> values(static_cast<size_t>(entry.elements()));
    if (const absl::Status status = ToFloat(entry, values); !status.ok()) {
      return absl::Status(status.code(), fmt::format("{}: {}: {}", plan.source->file().path(), name,
                                                     std::string(status.message())));
    }
    list.Add(name, entry.shape, std::move(values));
  }
  return absl::OkStatus();
}

// One row per module, and one for a shared basis; errors are filled in by MeasureErrors.
std::vector<ModuleReport> ModuleRows(const Plan& plan, DType dtype) {
  const TensorNames names(plan.source->file(), plan.source->prefix());
  const auto width = static_cast<int64_t>(DTypeBytes(dtype));
  std::vector<ModuleReport> rows;
  for (size_t i = 0; i < plan.units.size(); ++i) {
    const RankUnit& unit = plan.units[i];
    const int rank = plan.ranks[i];
    const auto count = static_cast<int64_t>(unit.modules.size());
    const bool shared = unit.layout == LinearLayout::kQkvShared && rank > 0;
    const int64_t basis = shared ? static_cast<int64_t>(rank) * unit.in : 0;
    const LinearLayout layout = rank == 0 ? LinearLayout::kDense : unit.layout;
    for (const std::string& name : unit.modules) {
      const TensorEntry* entry = names.Find(name + ".weight");
      ModuleReport& row = rows.emplace_back();
      row.name = name;
      row.layout = layout;
      row.rank = rank;
      row.dense_params = unit.dense_params() / count;
      row.params = (unit.params(rank) - basis) / count;
      row.dense_bytes = entry == nullptr ? 0 : static_cast<int64_t>(entry->bytes);
      row.bytes = row.params * width;
    }
    if (shared) {
      ModuleReport& row = rows.emplace_back();
      row.name = LowRankAName(unit.modules.front(), unit.layout);
      row.layout = layout;
      row.rank = rank;
      row.params = basis;
      row.bytes = basis * width;
    }
  }
  return rows;
}

// Reads the written model back, through the loader that the server uses, and compares.
absl::Status MeasureErrors(const Plan& plan, const CompressOptions& options,
                           const std::string& written_dir, std::vector<ModuleReport>& rows) {
  FSVD_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> written, Checkpoint::Open(written_dir));
  std::map<std::string, ModuleReport*> row_of;
  for (ModuleReport& row : rows) row_of[row.name] = &row;
  return ParallelFor(plan.units.size(), options.threads, options.cancelled, [&](size_t i) {
    for (size_t k = 0; k < plan.units[i].modules.size(); ++k) {
      FSVD_ASSIGN_OR_RETURN(const LinearWeights dense,
                            LoadUnitModule(*plan.source, plan.units[i], k));
      FSVD_ASSIGN_OR_RETURN(const LinearWeights stored, LoadUnitModule(*written, plan.units[i], k));
      row_of.at(dense.name)->relative_error = RelativeError(dense, stored);
    }
    return absl::OkStatus();
  });
}

// Of one file, or of the shards that an index names. The checkpoint is open, so both are readable.
int64_t WeightFileBytes(const std::string& path) {
  std::error_code ignored;
  if (!path.ends_with(".json")) return static_cast<int64_t>(fs::file_size(path, ignored));
  std::ifstream in(path);
  const nlohmann::json index = nlohmann::json::parse(in, nullptr, /*allow_exceptions=*/false);
  const nlohmann::json weight_map = index.value("weight_map", nlohmann::json::object());
  std::set<std::string> shards;
  for (const auto& shard : weight_map) shards.insert(shard.get<std::string>());
  int64_t bytes = 0;
  for (const std::string& shard : shards) {
    bytes += static_cast<int64_t>(fs::file_size(fs::path(path).parent_path() / shard, ignored));
  }
  return bytes;
}

void AddRankNotes(const Plan& plan, std::vector<std::string>& notes) {
  for (size_t i = 0; i < plan.units.size(); ++i) {
    const RankUnit& unit = plan.units[i];
    if (plan.ranks[i] == 0) {
      notes.push_back(fmt::format("{} left dense: no rank below break-even uses its share",
                                  fmt::join(unit.modules, ", ")));
    } else if (unit.params(plan.ranks[i]) >= unit.dense_params()) {
      notes.push_back(fmt::format("warning: {} at rank {} stores {} parameters, dense {}",
                                  fmt::join(unit.modules, ", "), plan.ranks[i],
                                  unit.params(plan.ranks[i]), unit.dense_params()));
    }
  }
}

}  // namespace

absl::StatusOr<CompressReport> Compress(const CompressOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  FSVD_ASSIGN_OR_RETURN(const Plan plan, MakePlan(options));
  FSVD_ASSIGN_OR_RETURN(const std::unique_ptr<OutputDirectory> out,
                        OutputDirectory::Create(options.model_dir, options.out_dir, options.force));

  CompressReport report;
  report.model_dir = options.model_dir;
  report.out_dir = out->target();
  report.layout = options.layout;
  report.dtype = options.dtype;
  if (!options.ranks.has_value()) report.keep = options.keep;
  report.ranks = options.ranks;
  report.threads = options.threads;
  report.modules = ModuleRows(plan, options.dtype);
  AddRankNotes(plan, report.notes);

  FSVD_ASSIGN_OR_RETURN(std::vector<UnitFactors> factors, Factorize(plan, options));
  TensorList list(options.dtype);
  FSVD_RETURN_IF_ERROR(AddUntouched(plan, list, report.notes));
  for (size_t i = 0; i < plan.units.size(); ++i) {
    if (plan.ranks[i] == 0) continue;
    AddFactors(plan.source->prefix(), plan.units[i], plan.ranks[i], std::move(factors[i]), list);
  }
  const std::string file = out->path() + "/model.safetensors";
  FSVD_RETURN_IF_ERROR(list.Write(file, Metadata(plan, options, report.kept())));
  FSVD_RETURN_IF_ERROR(out->CopyModelFiles(options.model_dir));
  FSVD_RETURN_IF_ERROR(MeasureErrors(plan, options, out->path(), report.modules));
  report.file_bytes_before = WeightFileBytes(plan.source->file().path());
  report.file_bytes_after = WeightFileBytes(file);
  FSVD_RETURN_IF_ERROR(out->Commit());
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace flashsvd
