#ifndef FLASHSVD_RUNTIME_STRICT_JSON_H_
#define FLASHSVD_RUNTIME_STRICT_JSON_H_

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace flashsvd {

// JSON from model directories, which nobody vouches for. Internal to the runtime's .cc files.

constexpr int kMaxJsonDepth = 64;

// Parses exactly one JSON value. InvalidArgument, without a file name, for what RFC 8259 forbids
// (bad UTF-8 and NUL bytes included), for a key that one object holds twice and for nesting deeper
// than kMaxJsonDepth.
absl::StatusOr<nlohmann::json> ParseStrictJson(std::string_view text);

// Reads and parses a file of at most 100 MB whose root is an object or an array. NotFound: no such
// file. Every error names `path`.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path);

// "a string", "an integer", ... for messages.
std::string_view JsonTypeName(const nlohmann::json& value);

// `text` fit for one line of a log: control characters escaped, broken UTF-8 replaced, cut after
// about `max_bytes`. Quoted puts it in double quotes.
std::string Escaped(std::string_view text, size_t max_bytes = 100);
std::string Quoted(std::string_view text, size_t max_bytes = 100);

}  // namespace flashsvd

#endif  // FLASHSVD_RUNTIME_STRICT_JSON_H_
