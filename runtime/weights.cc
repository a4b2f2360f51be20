#include "runtime/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <set>
#include <utility>

#include "kernels/status_macros.h"
#include "runtime/lowrank_metadata.h"
#include "runtime/safetensors_header.h"
#include "runtime/strict_json.h"

namespace flashsvd {
namespace {

// NaN or infinity: one of them anywhere turns every embedding into NaN.
absl::Status CheckFinite(const std::string& path, const std::string& tensor,
                         std::span<const float> values) {
  uint32_t largest = 0;
  for (float value : values) {
    largest = std::max(largest, std::bit_cast<uint32_t>(value) & 0x7fffffff);
  }
  if (largest < 0x7f800000) return absl::OkStatus();
  const auto bad =
      std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
  return absl::InvalidArgumentError(fmt::format("{}: tensor {}: element {} is {}", path,
                                                Quoted(tensor), bad - values.begin(), *bad));
}

absl::StatusOr<std::vector<float>> ReadTensor(const TensorNames& names, const std::string& name,
                                              const std::vector<int64_t>& shape) {
  const std::string& path = names.file().path();
  const std::string in_file = names.InFile(name);
  const TensorEntry* entry = names.Find(name);
  if (entry == nullptr) {
    return absl::NotFoundError(fmt::format("{}: tensor {}: missing", path, Quoted(in_file)));
  }
  if (entry->shape != shape) {
    return absl::InvalidArgumentError(fmt::format("{}: tensor {}: shape {} instead of {}", path,
                                                  Quoted(in_file), ShapeText(entry->shape),
                                                  ShapeText(shape)));
  }
  std::vector<float> values(static_cast<size_t>(entry->elements()));
  if (absl::Status status = ToFloat(*entry, values); !status.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: tensor {}: {}", path, Quoted(in_file), std::string(status.message())));
  }
  FSVD_RETURN_IF_ERROR(CheckFinite(path, in_file, values));
  return values;
}

}  // namespace

std::string_view LinearLayoutName(LinearLayout layout) {
  switch (layout) {
    case LinearLayout::kDense:
      return "dense";
    case LinearLayout::kFull:
      return "full";
    case LinearLayout::kPerHead:
      return "per_head";
    case LinearLayout::kQkvShared:
      return "qkv_shared";
  }
  return "?";
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& model_dir) {
  const std::string single = model_dir + "/model.safetensors";
  const std::string index = single + ".index.json";
  auto checkpoint = std::unique_ptr<Checkpoint>(new Checkpoint());
  auto file = SafetensorsFile::Open(single);
  if (absl::IsNotFound(file.status())) {
    file = SafetensorsFile::Open(index);
    if (absl::IsNotFound(file.status())) {
      return absl::NotFoundError(
          fmt::format("{}: no model.safetensors and no model.safetensors.index.json", model_dir));
    }
  }
  FSVD_ASSIGN_OR_RETURN(checkpoint->file_, std::move(file));
  FSVD_ASSIGN_OR_RETURN(const TensorNames names, TensorNames::Detect(*checkpoint->file_));
  checkpoint->prefix_ = names.prefix();
  FSVD_ASSIGN_OR_RETURN(checkpoint->modules_, ReadLowRankModules(names));
  return checkpoint;
}

absl::StatusOr<LinearWeights> Checkpoint::LoadLinear(const std::string& name, int in, int out,
                                                     int heads) const {
  const TensorNames names(*file_, prefix_);
  LinearWeights linear;
  linear.name = name;
  linear.in = in;
  linear.out = out;
  const auto it = modules_.find(name);
  if (it == modules_.end()) {
    FSVD_ASSIGN_OR_RETURN(linear.weight, ReadTensor(names, name + ".weight", {out, in}));
  } else {
    linear.layout = it->second.layout;
    linear.rank = it->second.rank;
    const int64_t rank = linear.rank;
    std::vector<int64_t> a = {rank, in}, b = {out, rank};
    if (linear.layout == LinearLayout::kPerHead) {
      if (heads <= 0 || out % heads != 0) {
        return absl::InvalidArgumentError(
            fmt::format("{}: module {}: per_head, but {} outputs are not a multiple of {} heads",
                        file_->path(), Quoted(name), out, heads));
      }
      linear.heads = heads;
      a = {heads, rank, in};
      b = {heads, out / heads, rank};
    }
    FSVD_ASSIGN_OR_RETURN(linear.a, ReadTensor(names, LowRankAName(name, linear.layout), a));
    FSVD_ASSIGN_OR_RETURN(linear.b, ReadTensor(names, LowRankBName(name), b));
  }
  FSVD_ASSIGN_OR_RETURN(linear.bias, ReadTensor(names, name + ".bias", {out}));
  return linear;
}

absl::StatusOr<std::vector<float>> Checkpoint::LoadTensor(const std::string& name,
                                                          std::vector<int64_t> shape) const {
  return ReadTensor(TensorNames(*file_, prefix_), name, shape);
}

bool Checkpoint::Has(const std::string& name) const {
  return TensorNames(*file_, prefix_).Find(name) != nullptr;
}

std::vector<std::string> Checkpoint::Warnings() const {
  struct Cost {
    std::string modules;
    int64_t lowrank = 0;
    int64_t dense = 0;
  };
  const TensorNames names(*file_, prefix_);
  // By the tensor that holds A, which the modules of a qkv_shared group have in common.
  std::map<std::string, Cost> costs;
  for (const auto& [name, module] : modules_) {
    const std::string a_name = LowRankAName(name, module.layout);
    const TensorEntry& a = *names.Find(a_name);
    const TensorEntry& b = *names.Find(LowRankBName(name));
    Cost& cost = costs[a_name];
    if (cost.modules.empty()) cost.lowrank = a.elements();
    cost.lowrank += b.elements();
    cost.dense += a.shape.back() * (b.elements() / b.shape.back());
    cost.modules += (cost.modules.empty() ? "" : ", ") + name;
  }
  std::vector<std::string> warnings;
  for (const auto& [a_name, cost] : costs) {
    if (cost.lowrank <= cost.dense) continue;
    warnings.push_back(
        fmt::format("{}: {}: low rank takes {} parameters, more than the {} of the dense module",
                    file_->path(), Quoted(cost.modules, 300), cost.lowrank, cost.dense));
  }
  return warnings;
}

}  // namespace flashsvd
