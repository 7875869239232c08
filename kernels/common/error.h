// kiln::Error: the one exception that kiln throws, and the exit status a program gives for it.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace kiln {

// kUsage: the caller's input is wrong (bad flag, bad data, unknown name): exit status 2.
// kFailure: the input was right and the work failed (CUDA error, out of memory, disk full): exit status 1.
enum class ErrorKind { kUsage, kFailure };

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, ErrorKind kind = ErrorKind::kUsage)
      : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }
  int exit_status() const { return kind_ == ErrorKind::kUsage ? 2 : 1; }

 private:
  ErrorKind kind_;
};

[[noreturn]] void fail_usage(const std::string& message);    // throws Error(kUsage)
[[noreturn]] void fail_failure(const std::string& message);  // throws Error(kFailure)

// The candidate nearest to `name` by edit distance, or "" when none is near (over half of the letters
// differ).
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

// "unknown <what> '<name>'; did you mean '<nearest>'? known: a, b, c" (the question only where one is near).
std::string unknown_name_message(std::string_view what, std::string_view name,
                                 const std::vector<std::string>& candidates);

}  // namespace kiln
