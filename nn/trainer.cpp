#include "nn/trainer.h"

#include <algorithm>
#include <chrono>
#include <set>

#include "kernels/common/error.h"
#include "nn/trainer_state.h"

namespace kiln {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Trainer::Trainer(const NetworkDescription& network, const DataPair& data, const Device& device,
                 const TrainOptions& options)
    : state_(std::make_unique<State>(network, data, device, options)) {}
Trainer::~Trainer() = default;

long long Trainer::steps_per_epoch() const { return state_->steps_per_epoch(); }
long long Trainer::total_steps() const { return state_->total_steps(); }
long long Trainer::steps_done() const { return state_->position.step; }
long long Trainer::parameter_count() const { return state_->network.layout().parameter_count(); }
EvalResult Trainer::evaluate() { return state_->evaluate(); }

void Trainer::train(const std::function<bool(const DrainRecord&)>& on_drain,
                    const std::function<void(int epochs_done)>& on_epoch) {
  State& s = *state_;
  if (s.trained) fail_usage("Trainer::train() may be called once");
  s.trained = true;

  long long undrained = 0;
  Clock::time_point since = Clock::now();
  const auto drain = [&] {
    if (s.profiler) s.profiler->pause();
    const std::vector<StepRecord> records = s.read_records(undrained);
    const double seconds = seconds_since(since);
    DrainRecord r;
    r.step = s.position.step;
    r.epoch = static_cast<double>(r.step) / static_cast<double>(s.steps_per_epoch());
    r.lr = s.rate.at(r.step - 1);
    double images = 0;
    for (size_t i = 0; i < records.size(); ++i) {
      const double size = s.batch_of_step(r.step - undrained + static_cast<long long>(i));
      images += size;
      r.loss += records[i].loss * size;
      r.accuracy += records[i].correct;
      if (!records[i].finite) ++s.position.skipped;
      r.step_losses.push_back(records[i].loss);
    }
    r.loss /= images;
    r.accuracy /= images;
    r.images_per_s = images / std::max(seconds, 1e-9);
    r.skipped_updates = s.position.skipped;
    undrained = 0;
    const bool go_on = !on_drain || on_drain(r);
    since = Clock::now();
    return go_on;
  };

  bool go_on = true;
  while (go_on && s.position.step < s.total_steps()) {
    s.launch_train_step();
    ++undrained;
    const bool epoch_done = s.position.step % s.steps_per_epoch() == 0;
    if (undrained == s.options.drain_every || s.position.step == s.total_steps() ||
        (epoch_done && on_epoch)) {
      go_on = drain();
    }
    if (epoch_done && on_epoch) {
      on_epoch(static_cast<int>(s.position.step / s.steps_per_epoch()));
      since = Clock::now();
    }
  }
  s.stop_profiling();
}

void Trainer::profile(const ProfileOptions& options, std::function<void(const StepProfile&)> on_profile) {
  State& s = *state_;
  if (s.trained) fail_usage("Trainer::profile() comes before train()");
  if (s.backend->device().is_cuda() && !s.options.cuda_graph) {
    fail_usage("a profile is of recorded steps: it cannot be made without the CUDA graph");
  }
  s.profiler = std::make_unique<StepProfiler>(s.backend.get(), s.programs.at({true, s.batch}).get(), s.batch,
                                              options, s.total_steps() - s.position.step);
  s.on_profile = std::move(on_profile);
}

void Trainer::save_weights(const std::string& path) { kiln::save_weights(state_->network, path); }
void Trainer::load_weights(const std::string& path) { kiln::load_weights(&state_->network, path); }
void Trainer::save_state(const std::string& path) {
  kiln::save_state(state_->network, state_->position, path);
}

void Trainer::load_state(const std::string& path) {
  State& s = *state_;
  const RunPosition loaded = kiln::load_state(&s.network, path);
  for (const auto& [what, theirs, ours] :
       {std::tuple{"batch", loaded.batch, s.position.batch},
        {"number of training images", loaded.train_images, s.position.train_images}}) {
    if (theirs != ours) {
      fail_usage(path + ": its run has the " + what + " " + std::to_string(theirs) + ", this one " +
                 std::to_string(ours) + "; a run can only be continued with its own");
    }
  }
  s.position = loaded;
  s.order_epoch = -1;
}

std::vector<std::string> Trainer::plan_lines() {
  return state_->programs.at({true, state_->batch})->list().lines();
}

std::set<std::string> Trainer::impl_notes() {
  std::set<std::string> notes;
  for (const auto& [key, program] : state_->programs) notes.merge(program->list().notes());
  return notes;
}

std::vector<std::pair<std::string, std::string>> Trainer::chosen_impls() {
  std::map<std::string, std::string> chosen;
  for (const auto& [key, program] : state_->programs) {
    for (const Step& step : program->list().steps) {
      if (!step.problem.empty()) chosen[step.pass + " " + step.problem] = step.impl;
    }
  }
  return {chosen.begin(), chosen.end()};
}

}  // namespace kiln
