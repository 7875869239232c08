// The problem string, "n512_h32_w32_c64_k64_r3_st1_p1": one writer and one reader for every op.
//
// A string is fields joined by '_'. A field is a key (letters) with a value ("h32", "st1x2", "ls0.1") or a
// flag that stands alone ("bias", "relu", "arg8"). Unknown, repeated, missing and malformed fields are errors
// that name the op, the string and what is allowed.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kiln {

class ProblemWriter {
 public:
  ProblemWriter& field(std::string_view key, long long value);      // h32
  ProblemWriter& pair(std::string_view key, int h, int w);          // st2, or st1x2 where they differ
  ProblemWriter& real(std::string_view key, float value);           // ls0.1: fewest digits that read back
  ProblemWriter& flag(std::string_view name, bool present = true);  // relu
  const std::string& str() const { return text_; }

 private:
  void separate();
  std::string text_;
};

class ProblemReader {
 public:
  // keys: the fields that take a value. flags: the words that stand alone. `text` may start with "<op>:".
  ProblemReader(std::string_view op, std::string_view text, std::vector<std::string> keys,
                std::vector<std::string> flags);
  bool has(std::string_view key) const;
  long long integer(std::string_view key) const;  // required
  long long integer(std::string_view key, long long fallback) const;
  std::pair<int, int> pair(std::string_view key) const;  // required; "3" reads as {3, 3}
  std::pair<int, int> pair(std::string_view key, std::pair<int, int> fallback) const;
  double real(std::string_view key, double fallback) const;
  bool flag(std::string_view name) const;

 private:
  [[noreturn]] void fail(const std::string& rule) const;
  std::string op_, text_;
  std::map<std::string, std::string, std::less<>> values_;
};

// Throws Error("<op>:<problem>: <rule>").
[[noreturn]] void fail_problem(std::string_view op, const std::string& problem, const std::string& rule);

// Throws unless 1 <= value <= 2^31 - 1.
void require_positive(std::string_view op, const std::string& problem, std::string_view field,
                      long long value);

// Throws unless the tensor has fewer than 2^31 elements: kernels index with 32 bits where they are told so
// here.
void require_indexable(std::string_view op, const std::string& problem, std::string_view tensor,
                       std::initializer_list<long long> shape);

}  // namespace kiln
