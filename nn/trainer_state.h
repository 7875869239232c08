// What a Trainer holds. The order of members is the order of their making; the backend goes last.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "nn/checkpoint.h"
#include "nn/lower.h"
#include "nn/program.h"
#include "nn/resident_data.h"
#include "nn/schedule.h"
#include "nn/step_finish.h"

namespace kiln {

struct Trainer::State {
  State(const NetworkDescription& description, const DataPair& data, const Device& device,
        const TrainOptions& options);

  long long steps_per_epoch() const { return (train.count() + batch - 1) / batch; }
  long long scheduled_steps() const;  // of options.epochs, whatever max_steps says
  long long total_steps() const;
  int batch_of_step(long long step) const;  // the last of an epoch may be small

  // Enqueues training step `position.step` and moves the position on.
  void launch_train_step();
  // The same where a profiler is at work, and what it does where the run ends before it is done.
  void launch_profiled_step();
  void stop_profiling();
  EvalResult evaluate();
  // Records of the last `count` training steps, oldest first. Waits for them.
  std::vector<StepRecord> read_records(long long count);

  TrainOptions options;
  std::unique_ptr<Backend> backend;
  Network network;
  ResidentData train;
  std::unique_ptr<ResidentData> test;  // null for an empty test set
  int batch, eval_batch;
  Memory step_state, train_ring, eval_ring, arena;
  std::unique_ptr<UploadRing> step_uploads;
  LearningRate rate;
  RunPosition position;
  long long order_epoch = -1;  // the epoch whose order is on the device
  bool trained = false;
  std::unique_ptr<StepProfiler> profiler;  // until it is done
  std::function<void(const StepProfile&)> on_profile;

  struct ProgramKey {
    bool training;
    int batch;
    auto operator<=>(const ProgramKey&) const = default;
  };
  std::map<ProgramKey, std::unique_ptr<Program>> programs;

 private:
  long long eval_batches() const;
  LowerOptions lower_options(bool training, int size) const;
  void add_program(bool training, int size);
  void bind_programs();
  void start_epoch();  // uploads the order of the epoch that position.step is in, unless it is there
  void enqueue_step(const StepProfiler::Launch& launch);
};

}  // namespace kiln
