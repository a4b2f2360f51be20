#ifndef FLASHSVD_TOOLS_CLIENT_TABLE_H_
#define FLASHSVD_TOOLS_CLIENT_TABLE_H_

#include <string>
#include <vector>

namespace flashsvd {

// Columns of a terminal width of a text: code points, wide ones (CJK, emoji) as two, combining and
// control ones as none. Bytes that are not UTF-8 count one each.
int DisplayWidth(const std::string& text);

// The beginning of `text` that fits `width` columns, with "…" for what was cut, padded with spaces
// to exactly `width`; control characters come out as spaces. REQUIRES: width >= 1.
std::string FitWidth(const std::string& text, int width);

// A table for a terminal: the first column left-aligned, the others right.
class Table {
 public:
  explicit Table(std::vector<std::string> header);
  // REQUIRES: as many cells as the header has.
  void AddRow(std::vector<std::string> cells);
  // Header and rows, each ending in a newline.
  std::string Render() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace flashsvd

#endif  // FLASHSVD_TOOLS_CLIENT_TABLE_H_
