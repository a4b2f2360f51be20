#ifndef FLASHSVD_RUNTIME_JSON_FIELD_H_
#define FLASHSVD_RUNTIME_JSON_FIELD_H_

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "runtime/strict_json.h"

namespace flashsvd {

// A value somewhere inside a JSON file, which may be missing; null counts as missing. Every error
// is InvalidArgument and names file and field, as in "tokenizer.json: model.vocab: ...". Points
// into the parsed file, which outlives it. Internal to the runtime's .cc files.
class JsonField {
 public:
  JsonField(std::string file, const nlohmann::json& root) : file_(std::move(file)), value_(&root) {}

  bool has_value() const { return value_ != nullptr && !value_->is_null(); }
  // REQUIRES: has_value().
  const nlohmann::json& value() const { return *value_; }

  absl::Status Invalid(std::string_view what) const {
    return absl::InvalidArgumentError(
        fmt::format("{}: {}: {}", file_, name_.empty() ? "top level" : Escaped(name_), what));
  }
  absl::Status WrongType(std::string_view expected) const {
    if (!has_value()) return Invalid(fmt::format("missing; expected {}", expected));
    return Invalid(fmt::format("is {}; expected {}", JsonTypeName(*value_), expected));
  }

  // The member; missing, too, where this is no object.
  JsonField Member(const std::string& key) const {
    const nlohmann::json* member = nullptr;
    if (has_value() && value_->is_object()) {
      if (const auto it = value_->find(key); it != value_->end()) member = &*it;
    }
    return {file_, name_.empty() ? key : name_ + "." + key, member};
  }

  absl::Status CheckObject() const {
    if (has_value() && value_->is_object()) return absl::OkStatus();
    return WrongType("an object");
  }
  absl::StatusOr<std::vector<JsonField>> Elements() const {
    if (!has_value() || !value_->is_array()) return WrongType("an array");
    std::vector<JsonField> elements;
    for (const nlohmann::json& element : *value_) {
      elements.push_back({file_, fmt::format("{}[{}]", name_, elements.size()), &element});
    }
    return elements;
  }
  absl::StatusOr<std::string> String() const {
    if (!has_value() || !value_->is_string()) return WrongType("a string");
    return value_->get<std::string>();
  }
  absl::StatusOr<bool> Bool(bool if_missing) const {
    if (!has_value()) return if_missing;
    if (!value_->is_boolean()) return WrongType("a boolean");
    return value_->get<bool>();
  }
  absl::StatusOr<int64_t> Int(int64_t min, int64_t max) const {
    if (!has_value() || !value_->is_number_integer()) return WrongType("an integer");
    const bool fits = !value_->is_number_unsigned() || value_->get<uint64_t>() <= INT64_MAX;
    if (!fits || value_->get<int64_t>() < min || value_->get<int64_t>() > max) {
      return Invalid(fmt::format("{} is not within {} and {}", value_->dump(), min, max));
    }
    return value_->get<int64_t>();
  }

 private:
  JsonField(std::string file, std::string name, const nlohmann::json* value)
      : file_(std::move(file)), name_(std::move(name)), value_(value) {}

  std::string file_;
  std::string name_;
  const nlohmann::json* value_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_JSON_FIELD_H_
