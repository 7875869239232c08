#include "harness/count_progress.h"

#include <unistd.h>

#include "harness/progress.h"

namespace kiln {
namespace {

constexpr double kBarEvery = 0.1, kPlainLineEvery = 5;  // seconds
constexpr int kBarWidth = 24;

}  // namespace

CountProgress::CountProgress(std::FILE* out, const std::string& what, long long total)
    : out_(out), what_(what), terminal_(isatty(fileno(out))), total_(total) {}

double CountProgress::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

std::string CountProgress::describe() const {
  const double elapsed = seconds(), rate = elapsed > 0 ? static_cast<double>(done_) / elapsed : 0;
  const double left = rate > 0 ? static_cast<double>(total_ - done_) / rate : 0;
  return with_thousands(static_cast<double>(done_)) + " of " + with_thousands(static_cast<double>(total_)) +
         " " + what_ + "  " + with_thousands(rate) + " " + what_ + "/s  " + clock_time(left) + " left";
}

void CountProgress::add(long long count) {
  done_ += count;
  if (seconds() - last_shown_ < (terminal_ ? kBarEvery : kPlainLineEvery)) return;
  last_shown_ = seconds();
  if (!terminal_) {
    std::fprintf(out_, "%s\n", describe().c_str());
  } else {
    const int filled = total_ > 0 ? static_cast<int>(kBarWidth * done_ / total_) : kBarWidth;
    const std::string bar = std::string(filled, '#') + std::string(kBarWidth - filled, '.');
    std::fprintf(out_, "\r\033[K[%s] %s", bar.c_str(), describe().c_str());
    bar_shown_ = true;
  }
  std::fflush(out_);
}

void CountProgress::finish() {
  if (bar_shown_) std::fputs("\r\033[K", out_);
  bar_shown_ = false;
}

}  // namespace kiln
