#include "runtime/strict_json.h"

#include <fmt/format.h>

#include <utility>
#include <vector>

#include "kernels/status_macros.h"
#include "runtime/mapped_file.h"

namespace flashsvd {
namespace {

using Json = nlohmann::json;

// Builds the value while it is parsed. nlohmann's own builder keeps the last of two equal keys
// silently and nests without limit, so a small file could take gigabytes.
class StrictBuilder : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return Add(nullptr) != nullptr; }
  bool boolean(bool value) override { return Add(value) != nullptr; }
  bool number_integer(number_integer_t value) override { return Add(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return Add(value) != nullptr; }
  bool number_float(number_float_t value, const string_t&) override {
    return Add(value) != nullptr;
  }
  bool string(string_t& value) override { return Add(std::move(value)) != nullptr; }
  bool binary(binary_t&) override { return Fail("binary value"); }

  bool start_object(size_t) override { return Enter(Json::object()); }
  bool start_array(size_t) override { return Enter(Json::array()); }
  bool end_object() override { return Leave(); }
  bool end_array() override { return Leave(); }
  bool key(string_t& name) override {
    Json& object = *open_.back();
    if (object.contains(name)) return Fail(fmt::format("duplicate key {}", Quoted(name)));
    key_ = std::move(name);
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."; it quotes the input.
    std::string_view what = error.what();
    if (size_t end = what.find("] "); end != std::string_view::npos) what.remove_prefix(end + 2);
    return Fail(fmt::format("not valid JSON: {}", Quoted(what, 300)));
  }

  const std::string& error() const { return error_; }
  Json Take() { return std::move(root_); }

 private:
  bool Fail(std::string message) {
    error_ = std::move(message);
    return false;
  }

  // Appends to the innermost open container. Its address holds while it is the innermost one: no
  // sibling is appended before it is closed.
  Json* Add(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[key_] = std::move(value));
  }

  bool Enter(Json container) {
    if (open_.size() >= static_cast<size_t>(kMaxJsonDepth)) {
      return Fail(fmt::format("nested deeper than {} levels", kMaxJsonDepth));
    }
    open_.push_back(Add(std::move(container)));
    return true;
  }

  bool Leave() {
    open_.pop_back();
    return true;
  }

  Json root_;
  std::vector<Json*> open_;
  std::string key_;
  std::string error_;
};

// Length of the UTF-8 sequence that starts `text`, or 0 if there is none. Overlong forms pass:
// this serves messages only.
size_t Utf8Length(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  const size_t length = lead < 0x80             ? 1
                        : (lead & 0xe0) == 0xc0 ? 2
                        : (lead & 0xf0) == 0xe0 ? 3
                        : (lead & 0xf8) == 0xf0 ? 4
                                                : 0;
  if (length == 0 || length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80) return 0;
  }
  return length;
}

}  // namespace

absl::StatusOr<Json> ParseStrictJson(std::string_view text) {
  // The parser takes a NUL for the end of its input and skips a byte order mark.
  if (size_t nul = text.find('\0'); nul != std::string_view::npos) {
    return absl::InvalidArgumentError(fmt::format("not valid JSON at byte {}: NUL", nul + 1));
  }
  if (text.substr(0, 3) == "\xef\xbb\xbf") {
    return absl::InvalidArgumentError("not valid JSON at byte 1: byte order mark");
  }
  StrictBuilder builder;
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
    return absl::InvalidArgumentError(builder.error());
  }
  return builder.Take();
}

absl::StatusOr<Json> ReadJsonFile(const std::string& path) {
  constexpr size_t kMaxBytes = 100'000'000;
  FSVD_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  if (file.bytes().size() > kMaxBytes) {
    return absl::InvalidArgumentError(fmt::format("{}: {} bytes, more than the {} allowed", path,
                                                  file.bytes().size(), kMaxBytes));
  }
  auto json =
      ParseStrictJson({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()});
  if (!json.ok()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: {}", path, std::string(json.status().message())));
  }
  if (!json->is_structured()) {
    return absl::InvalidArgumentError(
        fmt::format("{}: holds {}, not an object or array", path, JsonTypeName(*json)));
  }
  return json;
}

std::string_view JsonTypeName(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return "an array";
    case Json::value_t::string:
      return "a string";
    case Json::value_t::boolean:
      return "a boolean";
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
      return "an integer";
    case Json::value_t::number_float:
      return "a fractional number";
    default:
      return "a binary value";
  }
}

std::string Escaped(std::string_view text, size_t max_bytes) {
  std::string out;
  while (!text.empty()) {
    if (out.size() >= max_bytes) return out + "...";
    const size_t length = Utf8Length(text);
    const auto byte = static_cast<unsigned char>(text[0]);
    if (length == 0) {
      out += fmt::format("\\x{:02x}", byte);
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\u{:04x}", byte);
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return out;
}

std::string Quoted(std::string_view text, size_t max_bytes) {
  return fmt::format("\"{}\"", Escaped(text, max_bytes));
}

}  // namespace flashsvd
