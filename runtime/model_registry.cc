#include "runtime/model_registry.h"

#include <utility>

#include "fmt/format.h"
#include "runtime/strict_json.h"

namespace flashsvd {

absl::Status ModelRegistry::Add(ServedModel served) {
  const std::string name = served.model->name();
  MutexLock lock(&mu_);
  if (!models_.try_emplace(name, std::move(served)).second) {
    return absl::AlreadyExistsError(fmt::format("a model named {} is loaded", Quoted(name)));
  }
  return absl::OkStatus();
}

absl::StatusOr<ServedModel> ModelRegistry::Find(std::string_view name) const {
  MutexLock lock(&mu_);
  if (models_.empty()) return absl::UnavailableError("no model is loaded");
  if (name.empty()) {
    if (models_.size() == 1) return models_.begin()->second;
    return absl::InvalidArgumentError(
        fmt::format("model: empty, and this server has several: {}", Names()));
  }
  const auto it = models_.find(name);
  if (it == models_.end()) {
    return absl::NotFoundError(
        fmt::format("model: no model named {}; this server has {}", Quoted(name), Names()));
  }
  return it->second;
}

std::vector<ServedModel> ModelRegistry::All() const {
  MutexLock lock(&mu_);
  std::vector<ServedModel> all;
  all.reserve(models_.size());
  for (const auto& [name, served] : models_) all.push_back(served);
  return all;
}

void ModelRegistry::Clear() {
  // Destroyed after the lock is gone: draining an engine takes a while.
  std::map<std::string, ServedModel, std::less<>> models;
  MutexLock lock(&mu_);
  models.swap(models_);
}

std::string ModelRegistry::Names() const {
  std::string names;
  for (const auto& [name, served] : models_) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", Quoted(name));
  }
  return names;
}

}  // namespace flashsvd
