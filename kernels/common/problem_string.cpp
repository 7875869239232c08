#include "kernels/common/problem_string.h"

#include <algorithm>
#include <charconv>
#include <climits>

#include "kernels/common/error.h"

namespace kiln {

void fail_problem(std::string_view op, const std::string& problem, const std::string& rule) {
  fail_usage(std::string(op) + ":" + problem + ": " + rule);
}

void require_positive(std::string_view op, const std::string& problem, std::string_view field,
                      long long value) {
  if (value < 1 || value > INT_MAX) {
    fail_problem(op, problem,
                 std::string(field) + " is " + std::to_string(value) + ", must be 1 to 2147483647");
  }
}

void require_indexable(std::string_view op, const std::string& problem, std::string_view tensor,
                       std::initializer_list<long long> shape) {
  long long elements = 1;
  for (const long long extent : shape) {
    if (extent < 1 || extent > INT_MAX || elements > INT_MAX / extent) {
      fail_problem(op, problem, "tensor " + std::string(tensor) + " needs 1 to 2^31 - 1 elements");
    }
    elements *= extent;
  }
}

void ProblemWriter::separate() {
  if (!text_.empty()) text_ += '_';
}

ProblemWriter& ProblemWriter::field(std::string_view key, long long value) {
  separate();
  text_ += std::string(key) + std::to_string(value);
  return *this;
}

ProblemWriter& ProblemWriter::pair(std::string_view key, int h, int w) {
  field(key, h);
  if (h != w) text_ += "x" + std::to_string(w);
  return *this;
}

ProblemWriter& ProblemWriter::real(std::string_view key, float value) {
  separate();
  char digits[64];
  const auto end = std::to_chars(digits, digits + sizeof digits, value, std::chars_format::fixed).ptr;
  text_ += std::string(key) + std::string(digits, end);
  return *this;
}

ProblemWriter& ProblemWriter::flag(std::string_view name, bool present) {
  if (!present) return *this;
  separate();
  text_ += name;
  return *this;
}

ProblemReader::ProblemReader(std::string_view op, std::string_view text, std::vector<std::string> keys,
                             std::vector<std::string> flags)
    : op_(op), text_(text) {
  const size_t colon = text_.find(':');
  if (colon != std::string::npos) {
    if (text_.substr(0, colon) != op_) {
      fail_usage("problem '" + text_ + "' is for op '" + text_.substr(0, colon) + "', expected '" + op_ +
                 "'");
    }
    text_ = text_.substr(colon + 1);
  }
  // Longest key first, so that "st2" is never read as "s" with the value "t2".
  std::sort(keys.begin(), keys.end(), [](const auto& a, const auto& b) { return a.size() > b.size(); });
  for (size_t begin = 0; begin <= text_.size();) {
    const size_t end = std::min(text_.find('_', begin), text_.size());
    const std::string token = text_.substr(begin, end - begin);
    begin = end + 1;
    std::string key, value;
    if (std::find(flags.begin(), flags.end(), token) != flags.end()) {
      key = token;
    } else {
      for (const std::string& candidate : keys) {
        if (token.size() > candidate.size() && token.compare(0, candidate.size(), candidate) == 0 &&
            (std::isdigit(static_cast<unsigned char>(token[candidate.size()])) ||
             token[candidate.size()] == '-')) {
          key = candidate;
          value = token.substr(candidate.size());
          break;
        }
      }
    }
    if (key.empty()) {
      std::vector<std::string> known = keys;
      known.insert(known.end(), flags.begin(), flags.end());
      std::sort(known.begin(), known.end());
      fail(unknown_name_message("field", token, known));
    }
    if (!values_.emplace(key, value).second) fail("field '" + key + "' is given twice");
  }
}

void ProblemReader::fail(const std::string& rule) const { fail_problem(op_, text_, rule); }

bool ProblemReader::has(std::string_view key) const { return values_.find(key) != values_.end(); }

long long ProblemReader::integer(std::string_view key) const {
  const auto it = values_.find(key);
  if (it == values_.end()) fail("field '" + std::string(key) + "' is missing");
  long long value = 0;
  const char* end = it->second.data() + it->second.size();
  const auto result = std::from_chars(it->second.data(), end, value);
  if (result.ec != std::errc() || result.ptr != end) {
    fail("field '" + std::string(key) + "' takes a whole number, got '" + it->second + "'");
  }
  if (value < INT_MIN || value > INT_MAX) fail("field '" + std::string(key) + "' is beyond 32 bits");
  return value;
}

long long ProblemReader::integer(std::string_view key, long long fallback) const {
  return has(key) ? integer(key) : fallback;
}

std::pair<int, int> ProblemReader::pair(std::string_view key) const {
  const auto it = values_.find(key);
  if (it == values_.end()) fail("field '" + std::string(key) + "' is missing");
  const std::string& text = it->second;
  const char* end = text.data() + text.size();
  int h = 0, w = 0;
  auto result = std::from_chars(text.data(), end, h);
  bool good = result.ec == std::errc();
  if (good && result.ptr == end) {
    w = h;
  } else {
    good = good && *result.ptr == 'x';
    if (good) {
      result = std::from_chars(result.ptr + 1, end, w);
      good = result.ec == std::errc() && result.ptr == end;
    }
  }
  if (!good) fail("field '" + std::string(key) + "' takes '3' or '3x5', got '" + text + "'");
  return {h, w};
}

std::pair<int, int> ProblemReader::pair(std::string_view key, std::pair<int, int> fallback) const {
  return has(key) ? pair(key) : fallback;
}

double ProblemReader::real(std::string_view key, double fallback) const {
  const auto it = values_.find(key);
  if (it == values_.end()) return fallback;
  double value = 0;
  const char* end = it->second.data() + it->second.size();
  const auto result = std::from_chars(it->second.data(), end, value);
  if (result.ec != std::errc() || result.ptr != end) {
    fail("field '" + std::string(key) + "' takes a number, got '" + it->second + "'");
  }
  return value;
}

bool ProblemReader::flag(std::string_view name) const { return has(name); }

}  // namespace kiln
