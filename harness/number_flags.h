// Validators of flags that take a number: a sentence for what is wrong, where CLI11's own name the limits of
// double and let NaN through, and its conversion wraps -1 to a large whole number.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>

namespace kiln {

// The finite number that all of `text` is, else NaN.
inline double finite_number(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return end != text.c_str() && *end == '\0' && std::isfinite(value) ? value : std::nan("");
}

// A number above 0.
inline CLI::Validator above_zero() {
  return CLI::Validator(
      [](const std::string& text) {
        return finite_number(text) > 0 ? "" : "must be a number above 0, got '" + text + "'";
      },
      "POSITIVE");
}

// A number of at least 0.
inline CLI::Validator zero_or_above() {
  return CLI::Validator(
      [](const std::string& text) {
        return finite_number(text) >= 0 ? "" : "must be a number of at least 0, got '" + text + "'";
      },
      "NONNEGATIVE");
}

// A whole number from 0 to 2^64 - 1.
inline CLI::Validator seed_number() {
  return CLI::Validator(
      [](const std::string& text) {
        uint64_t value = 0;
        const char* end = text.data() + text.size();
        const auto read = std::from_chars(text.data(), end, value);
        const bool whole = read.ec == std::errc() && read.ptr == end;
        return whole ? "" : "must be a whole number from 0 to 18446744073709551615, got '" + text + "'";
      },
      "");
}

}  // namespace kiln
