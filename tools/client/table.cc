#include "tools/client/table.h"

#include <utf8proc.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "kernels/status_macros.h"

namespace flashsvd {
namespace {

struct Glyph {
  std::string_view bytes;
  int width = 1;
  bool printable = true;
};

// REQUIRES: text is not empty.
Glyph FirstGlyph(std::string_view text) {
  utf8proc_int32_t code_point = 0;
  const utf8proc_ssize_t length =
      utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                       static_cast<utf8proc_ssize_t>(text.size()), &code_point);
  if (length <= 0) return {text.substr(0, 1), 1, false};
  const utf8proc_category_t category = utf8proc_category(code_point);
  const bool control = category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_ZL ||
                       category == UTF8PROC_CATEGORY_ZP;
  return {text.substr(0, static_cast<size_t>(length)), utf8proc_charwidth(code_point), !control};
}

}  // namespace

int DisplayWidth(const std::string& text) {
  int width = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const Glyph glyph = FirstGlyph(rest);
    width += glyph.width;
    rest.remove_prefix(glyph.bytes.size());
  }
  return width;
}

std::string FitWidth(const std::string& text, int width) {
  const int room = DisplayWidth(text) <= width ? width : width - 1;
  std::string fitted;
  int used = 0;
  for (std::string_view rest = text; !rest.empty();) {
    const Glyph glyph = FirstGlyph(rest);
    const int columns = glyph.printable ? glyph.width : 1;
    if (used + columns > room) break;
    fitted += glyph.printable ? glyph.bytes : std::string_view(" ");
    used += columns;
    rest.remove_prefix(glyph.bytes.size());
  }
  if (room < width) {
    fitted += "…";
    ++used;
  }
  fitted.append(static_cast<size_t>(width - used), ' ');
  return fitted;
}

Table::Table(std::vector<std::string> header) { rows_.push_back(std::move(header)); }

void Table::AddRow(std::vector<std::string> cells) {
  FSVD_CHECK(cells.size() == rows_[0].size(), "%zu cells in a table of %zu columns", cells.size(),
             rows_[0].size());
  rows_.push_back(std::move(cells));
}

std::string Table::Render() const {
  std::vector<int> widths(rows_[0].size(), 0);
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], DisplayWidth(row[i]));
  }
  std::string out;
  for (const auto& row : rows_) {
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(static_cast<size_t>(widths[i] - DisplayWidth(row[i])), ' ');
      if (i == 0) {
        out += row[i] + padding;
      } else {
        out += "  " + padding + row[i];
      }
    }
    out += '\n';
  }
  return out;
}

}  // namespace flashsvd
