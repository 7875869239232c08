// Text for terminals: printf into a string, and columns as wide as what is in them.
#pragma once

#include <string>
#include <vector>

namespace kiln {

__attribute__((format(printf, 1, 2))) std::string format_text(const char* pattern, ...);

// A line a row, indented by `indent`; the columns in `right` (by index) are flush right, the others left.
std::string table_text(const std::vector<std::vector<std::string>>& rows, const std::vector<size_t>& right,
                       size_t indent = 2);

}  // namespace kiln
