#include "runtime/lowrank_metadata.h"

#include <fmt/format.h>

#include <climits>
#include <set>
#include <utility>
#include <vector>

#include "kernels/status_macros.h"
#include "runtime/safetensors_header.h"
#include "runtime/strict_json.h"

namespace flashsvd {
namespace {

using Json = nlohmann::json;
using Modules = std::map<std::string, LowRankModule>;

constexpr std::string_view kAnchor = "embeddings.word_embeddings.weight";
constexpr std::string_view kFormatKey = "lowrank.format";
constexpr std::string_view kModulesKey = "lowrank.modules";
constexpr std::string_view kSuffixA = ".lowrank.A";
constexpr std::string_view kSuffixB = ".lowrank.B";
constexpr std::string_view kSuffixShared = "shared.A";

// True for "shared.A" itself and whatever ends in ".shared.A".
bool IsSharedName(std::string_view name) {
  if (!name.ends_with(kSuffixShared)) return false;
  name.remove_suffix(kSuffixShared.size());
  return name.empty() || name.ends_with('.');
}

absl::Status MetadataError(const TensorNames& names, std::string_view what) {
  return absl::InvalidArgumentError(fmt::format("{}: __metadata__: {}", names.file().path(), what));
}

absl::Status TensorError(const TensorNames& names, const std::string& tensor,
                         std::string_view what) {
  return absl::InvalidArgumentError(
      fmt::format("{}: tensor {}: {}", names.file().path(), Quoted(names.InFile(tensor)), what));
}

absl::StatusOr<LinearLayout> ParseLayout(const Json& value) {
  for (LinearLayout layout :
       {LinearLayout::kFull, LinearLayout::kPerHead, LinearLayout::kQkvShared}) {
    if (value.is_string() && value.get_ref<const std::string&>() == LinearLayoutName(layout)) {
      return layout;
    }
  }
  return absl::InvalidArgumentError(
      fmt::format("layout: {} is not \"full\", \"per_head\" or \"qkv_shared\"",
                  value.is_string() ? Quoted(value.get<std::string>()) : JsonTypeName(value)));
}

// One value of lowrank.modules. Errors name the field.
absl::StatusOr<LowRankModule> ParseModule(const Json& value) {
  if (!value.is_object()) {
    return absl::InvalidArgumentError(fmt::format("{} instead of an object", JsonTypeName(value)));
  }
  for (const char* field : {"rank", "layout"}) {
    if (!value.contains(field)) {
      return absl::InvalidArgumentError(fmt::format("{}: missing", field));
    }
  }
  LowRankModule module;
  const Json& rank = value["rank"];
  if (!rank.is_number_unsigned() || rank.get<uint64_t>() < 1 || rank.get<uint64_t>() > INT_MAX) {
    return absl::InvalidArgumentError(fmt::format("rank: not an integer from 1 to {}", INT_MAX));
  }
  module.rank = rank.get<int>();
  FSVD_ASSIGN_OR_RETURN(module.layout, ParseLayout(value["layout"]));
  if (auto method = value.find("method"); method != value.end()) {
    if (!method->is_string()) {
      return absl::InvalidArgumentError(
          fmt::format("method: {} instead of a string", JsonTypeName(*method)));
    }
    module.method = method->get<std::string>();
  }
  return module;
}

absl::StatusOr<Modules> ParseModules(const TensorNames& names, const std::string& text) {
  auto json = ParseStrictJson(text);
  if (!json.ok()) {
    return MetadataError(names,
                         fmt::format("{}: {}", kModulesKey, std::string(json.status().message())));
  }
  if (!json->is_object()) {
    return MetadataError(
        names, fmt::format("{}: {} instead of an object", kModulesKey, JsonTypeName(*json)));
  }
  Modules modules;
  for (const auto& [name, value] : json->items()) {
    auto module = ParseModule(value);
    if (!module.ok()) {
      return MetadataError(names, fmt::format("{}: {}: {}", kModulesKey, Quoted(name),
                                              std::string(module.status().message())));
    }
    if (!modules.emplace(names.Strip(name), *std::move(module)).second) {
      return MetadataError(names, fmt::format("{}: {}: given twice, with and without the prefix {}",
                                              kModulesKey, Quoted(name), Quoted(names.prefix())));
    }
  }
  return modules;
}

// The module as its tensors imply it: three dimensions are per_head, two are full or, where the
// parent has a shared.A and the module has no A of its own, qkv_shared.
absl::StatusOr<LowRankModule> InferModule(const TensorNames& names, const std::string& name) {
  LowRankModule module;
  const TensorEntry* b = names.Find(LowRankBName(name));
  if (b == nullptr) return TensorError(names, LowRankBName(name), "missing beside its A");
  const std::string own = LowRankAName(name, LinearLayout::kFull);
  const std::string shared = LowRankAName(name, LinearLayout::kQkvShared);
  const bool has_own = names.Find(own) != nullptr;
  const bool has_shared = names.Find(shared) != nullptr;
  if (has_own && has_shared) {
    return TensorError(names, own,
                       fmt::format("ambiguous beside {}: say the layout in {}",
                                   Quoted(names.InFile(shared)), kModulesKey));
  }
  if (!has_own && !has_shared) return TensorError(names, own, "missing beside its B");
  if (b->shape.size() != 2 && b->shape.size() != 3) {
    return TensorError(
        names, LowRankBName(name),
        fmt::format("shape {} has neither two nor three dimensions", ShapeText(b->shape)));
  }
  module.layout = has_shared             ? LinearLayout::kQkvShared
                  : b->shape.size() == 3 ? LinearLayout::kPerHead
                                         : LinearLayout::kFull;
  if (b->shape.back() > INT_MAX) {
    return TensorError(names, LowRankBName(name), "the rank is too large");
  }
  module.rank = static_cast<int>(b->shape.back());
  return module;
}

absl::StatusOr<Modules> InferModules(const TensorNames& names) {
  Modules modules;
  for (const auto& [tensor, entry] : names.file().tensors()) {
    if (!tensor.ends_with(kSuffixA) && !tensor.ends_with(kSuffixB)) continue;
    const std::string name = names.Strip(tensor.substr(0, tensor.size() - kSuffixB.size()));
    if (modules.contains(name)) continue;
    FSVD_ASSIGN_OR_RETURN(modules[name], InferModule(names, name));
  }
  return modules;
}

absl::Status CheckFactor(const TensorNames& names, const std::string& tensor, size_t dims) {
  const TensorEntry* entry = names.Find(tensor);
  if (entry == nullptr) return TensorError(names, tensor, "missing");
  if (entry->dtype != "F32" && entry->dtype != "F16" && entry->dtype != "BF16") {
    return TensorError(names, tensor,
                       fmt::format("dtype {} is not F32, F16 or BF16", entry->dtype));
  }
  bool fits = entry->shape.size() == dims;
  for (int64_t size : entry->shape) fits = fits && size > 0 && size <= INT_MAX;
  if (!fits) {
    return TensorError(
        names, tensor,
        fmt::format("shape {} instead of {} dimensions, none zero", ShapeText(entry->shape), dims));
  }
  return absl::OkStatus();
}

absl::Status CheckModule(const TensorNames& names, const std::string& name,
                         const LowRankModule& module) {
  const std::string a_name = LowRankAName(name, module.layout);
  const std::string b_name = LowRankBName(name);
  const bool per_head = module.layout == LinearLayout::kPerHead;
  for (const std::string& tensor : {a_name, b_name}) {
    FSVD_RETURN_IF_ERROR(CheckFactor(names, tensor, per_head ? 3 : 2));
  }
  const std::string dense = name + ".weight";
  if (names.Find(dense) != nullptr) {
    return TensorError(names, dense, "the module has low-rank tensors, too");
  }
  const std::vector<int64_t>& a = names.Find(a_name)->shape;
  const std::vector<int64_t>& b = names.Find(b_name)->shape;
  if (a[a.size() - 2] != module.rank) {
    return TensorError(
        names, a_name,
        fmt::format("shape {} does not have the rank {} of its module", ShapeText(a), module.rank));
  }
  if (b.back() != module.rank) {
    return TensorError(
        names, b_name,
        fmt::format("shape {} does not have the rank {} of its module", ShapeText(b), module.rank));
  }
  if (per_head && a[0] != b[0]) {
    return TensorError(
        names, b_name,
        fmt::format("shape {} has other heads than shape {} of A", ShapeText(b), ShapeText(a)));
  }
  return absl::OkStatus();
}

// A factor that no module uses would be dropped silently, and with it a part of the model.
absl::Status CheckNoneLeftOver(const TensorNames& names, const Modules& modules) {
  std::set<std::string> used;
  for (const auto& [name, module] : modules) {
    used.insert(names.InFile(LowRankAName(name, module.layout)));
    used.insert(names.InFile(LowRankBName(name)));
  }
  for (const auto& [tensor, entry] : names.file().tensors()) {
    const bool factor =
        tensor.ends_with(kSuffixA) || tensor.ends_with(kSuffixB) || IsSharedName(tensor);
    if (factor && !used.contains(tensor)) {
      return TensorError(names, tensor, "a low-rank factor that no module uses");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TensorNames> TensorNames::Detect(const SafetensorsFile& file) {
  const std::string* anchor = nullptr;
  for (const auto& [name, entry] : file.tensors()) {
    if (!name.ends_with(kAnchor)) continue;
    if (name.size() > kAnchor.size() && name[name.size() - kAnchor.size() - 1] != '.') continue;
    if (anchor != nullptr) {
      return absl::InvalidArgumentError(
          fmt::format("{}: tensors {} and {}: two encoders in one file", file.path(),
                      Quoted(*anchor), Quoted(name)));
    }
    anchor = &name;
  }
  return TensorNames(file,
                     anchor == nullptr ? "" : anchor->substr(0, anchor->size() - kAnchor.size()));
}

std::string TensorNames::InFile(const std::string& name) const {
  std::string prefixed = prefix_ + name;
  return file_.Find(prefixed) == nullptr && file_.Find(name) != nullptr ? name : prefixed;
}

std::string TensorNames::Strip(const std::string& name_in_file) const {
  return name_in_file.starts_with(prefix_) ? name_in_file.substr(prefix_.size()) : name_in_file;
}

absl::StatusOr<Modules> ReadLowRankModules(const TensorNames& names) {
  const auto& metadata = names.file().metadata();
  const auto format = metadata.find(std::string(kFormatKey));
  const auto declared = metadata.find(std::string(kModulesKey));
  if (format != metadata.end() && format->second != "1") {
    return MetadataError(names, fmt::format("{}: {} is not supported, only \"1\"", kFormatKey,
                                            Quoted(format->second)));
  }
  if ((format == metadata.end()) != (declared == metadata.end())) {
    const bool no_format = format == metadata.end();
    return MetadataError(names,
                         fmt::format("{}: missing beside {}", no_format ? kFormatKey : kModulesKey,
                                     no_format ? kModulesKey : kFormatKey));
  }
  Modules modules;
  if (declared != metadata.end()) {
    FSVD_ASSIGN_OR_RETURN(modules, ParseModules(names, declared->second));
  } else {
    FSVD_ASSIGN_OR_RETURN(modules, InferModules(names));
  }
  for (const auto& [name, module] : modules) {
    FSVD_RETURN_IF_ERROR(CheckModule(names, name, module));
  }
  FSVD_RETURN_IF_ERROR(CheckNoneLeftOver(names, modules));
  return modules;
}

std::string LowRankAName(const std::string& module, LinearLayout layout) {
  if (layout != LinearLayout::kQkvShared) return fmt::format("{}{}", module, kSuffixA);
  // rfind gives npos for a module without parent, and npos + 1 is 0.
  return fmt::format("{}{}", module.substr(0, module.rfind('.') + 1), kSuffixShared);
}

std::string LowRankBName(const std::string& module) {
  return fmt::format("{}{}", module, kSuffixB);
}

}  // namespace flashsvd
