#include "tools/client/text_source.h"

#include "fmt/format.h"
#include "kernels/status_macros.h"

namespace flashsvd {

absl::StatusOr<bool> NextText(LineReader& reader, bool skip_empty, std::string* text) {
  for (;;) {
    FSVD_ASSIGN_OR_RETURN(const bool any, reader.Next(text));
    if (!any || !text->empty()) return any;
    if (!skip_empty) {
      return absl::InvalidArgumentError(
          fmt::format("{}:{}: empty line", reader.name(), reader.line_number()));
    }
  }
}

}  // namespace flashsvd
