#include "harness/text_table.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>

namespace kiln {

std::string format_text(const char* pattern, ...) {
  va_list arguments, again;
  va_start(arguments, pattern);
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, pattern, arguments);
  va_end(arguments);
  std::string text(std::max(length, 0), '\0');
  std::vsnprintf(text.data(), text.size() + 1, pattern, again);
  va_end(again);
  return text;
}

std::string table_text(const std::vector<std::vector<std::string>>& rows, const std::vector<size_t>& right,
                       size_t indent) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    text += std::string(indent, ' ');
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string pad(widths[i] - row[i].size(), ' ');
      const bool flush_right = std::find(right.begin(), right.end(), i) != right.end();
      text += (i > 0 ? " " : "") + (flush_right ? pad + row[i] : i + 1 < row.size() ? row[i] + pad : row[i]);
    }
    text += "\n";
  }
  return text;
}

}  // namespace kiln
