#include "nn/step_profile.h"

#include <algorithm>
#include <chrono>

#include "kernels/common/error.h"

namespace kiln {
namespace {

using Clock = std::chrono::steady_clock;

double microseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
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

}  // namespace

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
  if (stage_ == Stage::kTraced) {
    first_replays_.push_back(steps_);
    clock_->start();
    clock_->stop();  // nothing of before runs on
    tracers_.front()->stretch_begins();
  }
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
