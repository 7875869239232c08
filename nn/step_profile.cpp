#include "nn/step_profile.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <set>

#include "kernels/common/error.h"

namespace kiln {
namespace {

using Clock = std::chrono::steady_clock;

double microseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

class WallClock : public StreamClock {
 public:
  explicit WallClock(Backend* backend) : backend_(backend) {}
  void start() override {
    backend_->synchronize();
    start_ = Clock::now();
  }
  double stop() override {
    backend_->synchronize();
    return microseconds_since(start_);
  }

 private:
  Backend* backend_;
  Clock::time_point start_;
};

// Steps that run while they are launched: the host's clock between them.
class WallTracer : public StepTracer {
 public:
  const char* source() const override { return "wall clock"; }
  std::string start(Program* program) override {
    program_ = program;
    start_ = Clock::now();
    return "";
  }
  void discard() override { times_.clear(); }
  void launch() override {
    program_->launch_each([this](size_t) { times_.push_back(microseconds_since(start_)); });
  }
  std::string finish(StepProfile* profile) override {
    const size_t steps = profile->steps.size(), times = steps + 1;
    for (size_t i = 0; i < times_.size(); ++i) {
      if (i % times == steps) continue;  // the end of a replay
      profile->spans.push_back({.replay = static_cast<int>(i / times),
                                .step = static_cast<int>(i % times),
                                .name = profile->steps[i % times].impl,
                                .start_us = times_[i],
                                .end_us = times_[i + 1]});
    }
    return "";
  }

 private:
  Program* program_ = nullptr;
  Clock::time_point start_;
  std::vector<double> times_;  // before every step and after the last, replay after replay
};

// The node of each record where kernels' names agree; empty where they do not.
std::vector<int> attribute_by_name(const std::vector<TracedNode>& nodes,
                                   const std::vector<TracedNode>& records, std::string* why) {
  using Kind = TracedNode::Kind;
  std::set<std::string> names;
  for (const TracedNode& node : nodes) names.insert(node.name);
  const auto fits = [&](const TracedNode& node, const TracedNode& record) {
    if (node.kind == Kind::kKernel) {
      return record.kind == Kind::kKernel && (node.name.empty() || node.name == record.name);
    }
    return record.kind == node.kind || (record.kind == Kind::kKernel && !names.contains(record.name));
  };
  std::vector<int> found;
  size_t at = 0;
  for (const TracedNode& record : records) {
    size_t passed = 0;
    for (; !fits(nodes[at], record); at = (at + 1) % nodes.size()) {
      if (nodes[at].kind == Kind::kKernel || ++passed > nodes.size()) {
        *why = "'" + record.name + "' ran where '" + nodes[at].name + "' was recorded";
        return {};
      }
    }
    found.push_back(static_cast<int>(at));
    at = (at + 1) % nodes.size();
  }
  for (; at != 0; at = (at + 1) % nodes.size()) {
    if (nodes[at].kind != Kind::kKernel) continue;
    *why = "the last replay ends before '" + nodes[at].name + "'";
    return {};
  }
  return found;
}

}  // namespace

double ProfiledStep::mean_us() const {
  return us.empty() ? 0 : std::accumulate(us.begin(), us.end(), 0.0) / static_cast<double>(us.size());
}
double ProfiledStep::median_us() const { return quantile(us, 0.5); }
double ProfiledStep::spread_pct() const {
  const double median = median_us();
  return median > 0 ? 50 * (quantile(us, 0.75) - quantile(us, 0.25)) / median : 0;
}

void account(const std::vector<int>& first_replays, StepProfile* profile) {
  StepProfile& p = *profile;
  std::stable_sort(p.spans.begin(), p.spans.end(), [](const ProfileSpan& a, const ProfileSpan& b) {
    return std::tie(a.start_us, a.end_us) < std::tie(b.start_us, b.end_us);
  });
  const auto count = static_cast<size_t>(p.replays);
  for (ProfiledStep& step : p.steps) {
    step.us.assign(count, 0);
    step.gap_us = 0;
    step.spans = 0;
  }
  p.busy_us = p.gap_us = p.overlap_us = p.upload_us = 0;
  std::vector<std::vector<double>> step_ends(p.steps.size(), std::vector<double>(count, 0));
  int stretch = -1;
  double end = 0;  // of all spans so far
  for (const ProfileSpan& span : p.spans) {
    const int of = static_cast<int>(
        std::upper_bound(first_replays.begin(), first_replays.end(), span.replay) - first_replays.begin());
    if (of != stretch) {  // the clock did not run between two stretches
      stretch = of;
      end = span.start_us;
    }
    const double gap = std::max(0.0, span.start_us - end);
    const double fresh = std::max(0.0, span.end_us - std::max(span.start_us, end));
    p.gap_us += gap;
    p.busy_us += fresh;
    p.overlap_us += span.us() - fresh;
    end = std::max(end, span.end_us);
    if (span.step == ProfileSpan::kNoStep) {
      p.upload_us += span.us();
      continue;
    }
    ProfiledStep& step = p.steps[span.step];
    double& step_end = step_ends[span.step][span.replay];
    step.us[span.replay] += std::max(0.0, span.end_us - std::max(span.start_us, step_end));
    step_end = std::max(step_end, span.end_us);
    step.gap_us += gap;
    if (span.replay == 0) ++step.spans;
  }
  const double replays = std::max(1, p.replays);
  for (double* sum : {&p.busy_us, &p.gap_us, &p.overlap_us, &p.upload_us}) *sum /= replays;
  for (ProfiledStep& step : p.steps) step.gap_us /= replays;
}

std::vector<int> attribute(const std::vector<TracedNode>& nodes, const std::vector<TracedNode>& records,
                           std::string* why) {
  why->clear();
  if (nodes.empty() || records.empty()) {
    *why = "nothing was recorded";
    return {};
  }
  std::vector<int> found = attribute_by_name(nodes, records, why);
  if (!found.empty()) return found;
  if (records.size() % nodes.size() != 0) {
    *why += "; " + std::to_string(records.size()) + " records are no whole replays of " +
            std::to_string(nodes.size());
    return {};
  }
  // The counts agree, and so must the names of all replays.
  for (size_t i = 0; i < records.size(); ++i) {
    if (records[i].name != records[i % nodes.size()].name) return {};
    found.push_back(static_cast<int>(i % nodes.size()));
  }
  *why = "kernels are attributed by their order alone: " + *why;
  return found;
}

std::unique_ptr<StreamClock> make_wall_clock(Backend* backend) {
  return std::make_unique<WallClock>(backend);
}
std::unique_ptr<StepTracer> make_wall_tracer() { return std::make_unique<WallTracer>(); }

StepProfiler::StepProfiler(Backend* backend, Program* program, int batch, const ProfileOptions& options,
                           long long steps_left)
    : program_(program), options_(options) {
  constexpr int kLeastWarmup = 2;  // a Program is recorded at its second launch
  options_.warmup = std::max(options_.warmup, kLeastWarmup);
  constexpr int kLeadIn = 1;
  if (steps_left < options_.warmup + kLeadIn + 2LL * options_.replays) {
    options_.warmup = static_cast<int>(
        std::min<long long>(options_.warmup, std::max<long long>(kLeastWarmup, steps_left / 4)));
    options_.replays =
        static_cast<int>(std::min<long long>(options_.replays, (steps_left - options_.warmup - kLeadIn) / 2));
  }
  if (options_.replays < 1) {
    fail_usage("profiling needs at least " + std::to_string(kLeastWarmup + kLeadIn + 2) +
               " training steps, this run has " + std::to_string(steps_left));
  }
  profile_.batch = batch;
  for (const Step& step : program->list().steps) {
    profile_.steps.push_back({.phase = step.phase,
                              .layer = step.layer,
                              .pass = step.pass,
                              .problem = step.problem,
                              .impl = step.impl});
  }
  if (!options_.source.empty() && options_.source != "events") {
    fail_usage(unknown_name_message("source of a profile", options_.source, {"events"}));
  }
#ifdef KILN_WITH_CUDA
  if (backend->device().is_cuda()) {
    clock_ = make_event_clock(backend);
    if (options_.source.empty()) tracers_.push_back(make_cupti_tracer(backend));
    tracers_.push_back(make_event_tracer(backend));
  }
#endif
  if (!clock_) {
    clock_ = make_wall_clock(backend);
    tracers_.push_back(make_wall_tracer());
  }
}
StepProfiler::~StepProfiler() = default;

void StepProfiler::step(Program* program, const std::function<void(const Launch&)>& enqueue) {
  const Launch plainly = [](Program* p) { p->launch(true); };
  if (program != program_ || stage_ == Stage::kWarmup || stage_ == Stage::kDone) {
    pause();
    enqueue(plainly);
    if (program == program_ && stage_ == Stage::kWarmup && ++steps_ == options_.warmup) {
      stage_ = Stage::kPlain;
      steps_ = 0;
    }
    return;
  }
  const Launch traced = [this](Program*) { tracers_.front()->launch(); };
  if (stage_ == Stage::kTraced && !led_in_) {
    clock_->start();
    enqueue(traced);
    clock_->stop();
    tracers_.front()->discard();
    led_in_ = true;
    return;
  }
  if (!running_) begin_stretch();
  enqueue(stage_ == Stage::kPlain ? plainly : traced);
  ++steps_;
  if (steps_ == options_.replays) {
    finish_stage();
  } else if (stage_ == Stage::kTraced && tracers_.front()->one_by_one()) {
    pause();
  }
}

void StepProfiler::begin_stretch() {
  if (stage_ == Stage::kTraced) first_replays_.push_back(steps_);
  clock_->start();
  running_ = true;
}

void StepProfiler::pause() {
  if (!running_) return;
  running_ = false;
  stage_us_ += clock_->stop();
  if (stage_ == Stage::kTraced) tracers_.front()->stretch_done();
}

void StepProfiler::start_tracer() {
  steps_ = 0;
  stage_us_ = 0;
  led_in_ = false;
  first_replays_.clear();
  profile_.spans.clear();
  while (!tracers_.empty()) {
    const std::string reason = tracers_.front()->start(program_);
    if (reason.empty()) return;
    profile_.notes.push_back(std::string("no ") + tracers_.front()->source() + ": " + reason);
    tracers_.erase(tracers_.begin());
  }
  std::string all = "the steps could not be profiled";
  for (const std::string& note : profile_.notes) all += "; " + note;
  fail_failure(all);
}

void StepProfiler::finish_stage() {
  pause();
  if (stage_ == Stage::kPlain) {
    profile_.unprofiled_us = stage_us_ / steps_;
    stage_ = Stage::kTraced;
    start_tracer();
    return;
  }
  const std::string reason = tracers_.front()->finish(&profile_);
  if (!reason.empty()) {
    profile_.notes.push_back(std::string("no ") + tracers_.front()->source() + ": " + reason);
    tracers_.erase(tracers_.begin());
    start_tracer();
    return;
  }
  profile_.source = tracers_.front()->source();
  profile_.replays = steps_;
  profile_.profiled_us = stage_us_ / steps_;
  account(first_replays_, &profile_);
  stage_ = Stage::kDone;
  have_profile_ = true;
}

void StepProfiler::stop() {
  pause();
  if (stage_ == Stage::kTraced && steps_ > 0) finish_stage();
  stage_ = Stage::kDone;
}

std::optional<StepProfile> StepProfiler::take() {
  if (!have_profile_) return std::nullopt;
  have_profile_ = false;
  return std::move(profile_);
}

}  // namespace kiln
