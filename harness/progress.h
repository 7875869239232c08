// What a user sees while a run goes on: on a terminal one line that updates itself, elsewhere plain lines.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>

#include "nn/trainer.h"

namespace kiln {

class Progress {
 public:
  // total_epochs only scales the epoch display. `out` is asked whether it is a terminal.
  Progress(std::FILE* out, long long total_steps, double total_epochs);
  ~Progress() { finish(); }

  void update(const DrainRecord& record);
  void epoch_done(int epochs);         // elsewhere than on a terminal: always a line
  void note(const std::string& line);  // a line of its own, above the bar
  void finish();                       // ends the updating line

  // "epoch 3.2/20  loss 1.234  accuracy 56.7 %  lr 0.1  12,345 images/s"
  static std::string describe(const DrainRecord& record, double total_epochs);

 private:
  double seconds() const;
  void print_line(const std::string& text);
  void draw();

  std::FILE* out_;
  bool terminal_;
  long long total_steps_;
  double total_epochs_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double last_line_ = 0;      // seconds since the start
  long long last_step_ = -1;  // of the last plain line
  bool bar_shown_ = false;
  DrainRecord record_;
};

// 1234567.8 -> "1,234,568"
std::string with_thousands(double value);
// 75 -> "1:15", 3700 -> "1:01:40"
std::string clock_time(double seconds);

}  // namespace kiln
