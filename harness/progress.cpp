#include "harness/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

namespace kiln {
namespace {

constexpr double kPlainLineEvery = 5;  // seconds between plain lines within an epoch
constexpr int kBarWidth = 24;

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

int terminal_width(std::FILE* out) {
  winsize size{};
  return ioctl(fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 100;
}

}  // namespace

std::string with_thousands(double value) {
  const std::string digits = format("%.0f", std::abs(value));
  std::string text = value <= -0.5 ? "-" : "";
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

std::string clock_time(double seconds) {
  const long long total = std::isfinite(seconds) ? std::llround(std::max(0.0, seconds)) : 0;
  char text[48];
  if (total >= 3600) {
    std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", total / 3600, total / 60 % 60, total % 60);
  } else {
    std::snprintf(text, sizeof text, "%lld:%02lld", total / 60, total % 60);
  }
  return text;
}

Progress::Progress(std::FILE* out, long long total_steps, double total_epochs)
    : out_(out), terminal_(isatty(fileno(out))), total_steps_(total_steps), total_epochs_(total_epochs) {}

double Progress::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

std::string Progress::describe(const DrainRecord& r, double total_epochs) {
  return "epoch " + format("%.4g", r.epoch) + "/" + format("%.4g", total_epochs) + "  loss " +
         format("%.4f", r.loss) + "  accuracy " + format("%.1f %%", 100 * r.accuracy) + "  lr " +
         format("%.4g", r.lr) + "  " + with_thousands(r.images_per_s) + " images/s";
}

void Progress::print_line(const std::string& text) {
  if (bar_shown_) std::fputs("\r\033[K", out_);
  bar_shown_ = false;
  std::fprintf(out_, "%s\n", text.c_str());
  std::fflush(out_);
}

void Progress::draw() {
  const double share = total_steps_ > 0 ? static_cast<double>(record_.step) / total_steps_ : 0;
  const int filled = std::clamp(static_cast<int>(share * kBarWidth), 0, kBarWidth);
  const double left = share > 0 ? seconds() * (1 - share) / share : 0;
  std::string line(1, '[');
  line.append(filled, '#').append(kBarWidth - filled, '.').append("] ");
  line += describe(record_, total_epochs_) + "  " + clock_time(left) + " left";
  line.resize(std::min<size_t>(line.size(), std::max(1, terminal_width(out_) - 1)));
  std::fprintf(out_, "\r\033[K%s", line.c_str());
  std::fflush(out_);
  bar_shown_ = true;
}

void Progress::update(const DrainRecord& record) {
  record_ = record;
  if (terminal_) {
    draw();
  } else if (seconds() - last_line_ >= kPlainLineEvery) {
    last_line_ = seconds();
    last_step_ = record.step;
    print_line(describe(record_, total_epochs_));
  }
}

void Progress::epoch_done(int) {
  if (terminal_ || record_.step == last_step_ || record_.step == 0) return;
  last_line_ = seconds();
  last_step_ = record_.step;
  print_line(describe(record_, total_epochs_));
}

void Progress::note(const std::string& line) {
  print_line(line);
  if (terminal_ && record_.step > 0) draw();
}

void Progress::finish() {
  if (bar_shown_) std::fputs("\n", out_);
  bar_shown_ = false;
}

}  // namespace kiln
