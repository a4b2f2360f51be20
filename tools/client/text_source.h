#ifndef FLASHSVD_TOOLS_CLIENT_TEXT_SOURCE_H_
#define FLASHSVD_TOOLS_CLIENT_TEXT_SOURCE_H_

#include <string>

#include "absl/status/statusor.h"
#include "tools/client/line_reader.h"

namespace flashsvd {

// Reads the next line that is a text into `text`; false at the end. A server refuses an empty text,
// so an empty line is InvalidArgument, naming file and line, or is passed over with `skip_empty`.
absl::StatusOr<bool> NextText(LineReader& reader, bool skip_empty, std::string* text);

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_CLIENT_TEXT_SOURCE_H_
