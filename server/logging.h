#ifndef FLASHSVD_SERVER_LOGGING_H_
#define FLASHSVD_SERVER_LOGGING_H_

#include <memory>
#include <string>

#include "spdlog/formatter.h"

namespace flashsvd {

// Sets up spdlog's default logger: one line per event on stderr, as text or as JSON objects
// {"time", "level", "message"}. gRPC's and protobuf's own messages go the same way: errors as
// warnings, all else at debug. `format` and `level` as in ServerConfig.
void SetUpLogging(const std::string& format, const std::string& level);

// A JSON object per event, whatever the message holds.
std::unique_ptr<spdlog::formatter> MakeJsonFormatter();

}  // namespace flashsvd

#endif  // FLASHSVD_SERVER_LOGGING_H_
