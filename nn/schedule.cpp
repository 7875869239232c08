#include "nn/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr double kOneCycleStartDivisor = 25;
constexpr double kOneCycleTop = 0.3;

const std::vector<std::pair<std::string, Schedule>>& schedules() {
  static const std::vector<std::pair<std::string, Schedule>> list = {{"constant", Schedule::kConstant},
                                                                     {"cosine", Schedule::kCosine},
                                                                     {"one_cycle", Schedule::kOneCycle},
                                                                     {"linear", Schedule::kLinear},
                                                                     {"step", Schedule::kStep}};
  return list;
}

double between(double from, double to, double part) {
  return from + (to - from) * std::clamp(part, 0.0, 1.0);
}

double one_cycle(const LearningRate& r, double step) {
  const double top = std::max(1.0, r.warmup > 0 ? r.warmup : kOneCycleTop * r.total) - 1;
  if (step <= top) return between(r.peak / kOneCycleStartDivisor, r.peak, top > 0 ? step / top : 1);
  return between(r.peak, r.peak * r.final_factor, (step - top) / std::max(1.0, r.total - 1 - top));
}

}  // namespace

Schedule schedule_from_name(const std::string& name) {
  std::vector<std::string> known;
  for (const auto& [text, schedule] : schedules()) {
    if (text == name) return schedule;
    known.push_back(text);
  }
  fail_usage(unknown_name_message("schedule", name, known));
}

const char* name_of(Schedule schedule) {
  for (const auto& [text, known] : schedules()) {
    if (known == schedule) return text.c_str();
  }
  return "?";
}

double LearningRate::at(long long step) const {
  const double s = static_cast<double>(step);
  if (schedule == Schedule::kOneCycle) return one_cycle(*this, s);
  if (s + 1 < warmup) return peak * (s + 1) / warmup;
  const double u = std::clamp((s - warmup) / std::max(1.0, total - warmup), 0.0, 1.0);
  if (schedule == Schedule::kLinear) return between(peak, peak * final_factor, u);
  if (schedule == Schedule::kCosine) {
    return peak * (final_factor + (1 - final_factor) * 0.5 * (1 + std::cos(std::numbers::pi * u)));
  }
  if (schedule == Schedule::kStep) {
    // A step that falls on a drop but for rounding is behind it.
    return peak * std::pow(step_factor, std::floor(s / step_every + 1e-9));
  }
  return peak;
}

}  // namespace kiln
