#ifndef FLASHSVD_SERVER_CHECK_H_
#define FLASHSVD_SERVER_CHECK_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/config.h"

namespace flashsvd {

// --check: loads every model, computes one token with each, and returns the memory plan as a table.
// Errors name what to correct.
absl::StatusOr<std::string> RunCheck(const ServerConfig& config);

// --healthcheck: asks the server of this configuration, on this machine, whether it serves
// embeddings. Without a fixed port, `port_file` says where it listens.
absl::Status RunHealthcheck(const ServerConfig& config);

// "grpc N" and "metrics N" in lines, written whole or not at all.
absl::Status WritePortFile(const std::string& path, int port, int metrics_port);

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_CHECK_H_
