// How far a count of things has come: on a terminal a bar with rate and time left, elsewhere a line now and
// then.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>

namespace kiln {

class CountProgress {
 public:
  // `what` is counted, in the plural. `out` is asked whether it is a terminal.
  CountProgress(std::FILE* out, const std::string& what, long long total);
  void add(long long count);
  void finish();  // removes the bar

 private:
  double seconds() const;
  // "1,234 of 5,000 images  890 images/s  0:04 left"
  std::string describe() const;

  std::FILE* out_;
  std::string what_;
  bool terminal_;
  long long total_, done_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double last_shown_ = 0;  // seconds since the start
  bool bar_shown_ = false;
};

}  // namespace kiln
