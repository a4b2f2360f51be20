#ifndef FLASHSVD_SERVER_CONFIG_KEYS_H_
#define FLASHSVD_SERVER_CONFIG_KEYS_H_

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "server/config.h"

namespace flashsvd {

// One setting: how it is called, what it means, how it is read and shown. File and flags go
// through the same table, so they cannot differ.
struct ConfigKey {
  std::string name = {};  // of the YAML key; the flag has dashes
  std::string type = {};  // of the value, in --help
  std::string help = {};
  std::string group = {};  // heading in --help
  bool is_list = false;    // values separated by commas, in YAML also a sequence
  // Parses and validates; errors are without the name: "0 is not within 1 to 256".
  std::function<absl::Status(const std::string& value, ServerConfig* config)> set = {};
  std::function<std::string(const ServerConfig& config)> show = {};

  std::string flag() const;  // "--max-batch-tokens"
};

const std::vector<ConfigKey>& ConfigKeys();

// Null if there is none.
const ConfigKey* FindConfigKey(std::string_view name);

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_CONFIG_KEYS_H_
