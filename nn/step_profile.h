// Where the time of a training step goes: some of a run's own steps, measured as they are and taken apart.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nn/program.h"

namespace kiln {

struct ProfileOptions {
  int warmup = 10;   // steps before the first measured one
  int replays = 20;  // steps to measure with the profiler off, and as many with it on
  // "": the best source there is; "events" leaves CUPTI out.
  std::string source = {};
};

// What ran on the device (on the CPU: one step).
struct ProfileSpan {
  static constexpr int kNoStep = -1;  // what a step needs beside its Program: the StepState's upload
  int replay = 0;
  int step = kNoStep;     // in StepProfile::steps
  std::string name = {};  // the kernel's mangled name, "[copy]", "[fill]"
  double start_us = 0, end_us = 0;
  double us() const { return end_us - start_us; }
};

struct ProfiledStep {
  Phase phase{};
  std::string layer = {}, pass = {}, problem = {}, impl = {};  // as in Step
  std::vector<double> us = {};                                 // a replay: length of the union of its spans
  double gap_us = 0;  // idle time right before it, mean over the replays
  int spans = 0;      // kernels and copies of one replay
  double mean_us() const;
  double median_us() const;
  double spread_pct() const;  // half the interquartile range over the median
};

// Times are microseconds of one step, means over the replays.
struct StepProfile {
  std::string source;              // "cupti", "events", "wall clock"
  std::vector<std::string> notes;  // why it is not a better one, and what else a reader must know
  std::vector<ProfiledStep> steps;
  std::vector<ProfileSpan> spans;  // of all replays, by start
  int replays = 0, batch = 0;
  double unprofiled_us = 0;  // measured around the replays, the profiler off
  double profiled_us = 0;    // the same with it on
  // From the spans: the union of their intervals, the time between them, what is in two of them at once (it
  // is in the union once). accounted_us() is to be compared with profiled_us.
  double busy_us = 0, gap_us = 0, overlap_us = 0, upload_us = 0;
  double accounted_us() const { return busy_us + gap_us; }
};

// Fills what follows from spans and replays: every ProfiledStep's times, busy, gap, overlap and upload.
// first_replays: the first replay of each stretch of replays that ran without a break.
void account(const std::vector<int>& first_replays, StepProfile* profile);

// A way to see a step's parts. Every function but launch() may be called between steps alone.
class StepTracer {
 public:
  virtual ~StepTracer() = default;
  virtual const char* source() const = 0;
  // Makes ready to trace `program`. Returns the reason why it cannot, "" where it can.
  virtual std::string start(Program* program) = 0;
  virtual void launch() = 0;  // enqueues the program once, traced
  // True where every step must be waited for before the next.
  virtual bool one_by_one() const { return false; }
  // What is launched between these two counts; the device is idle at both.
  virtual void stretch_begins() {}
  virtual void stretch_done() {}
  virtual void discard() {}  // what was launched so far does not count
  // Stops, and appends the spans of all launches. Returns the reason why they are not to be had, or "".
  virtual std::string finish(StepProfile* profile) = 0;
};

// Time between two points of a stream.
class StreamClock {
 public:
  virtual ~StreamClock() = default;
  virtual void start() = 0;
  virtual double stop() = 0;  // waits for what was enqueued; microseconds since start()
};

std::unique_ptr<StreamClock> make_wall_clock(Backend* backend);
std::unique_ptr<StepTracer> make_wall_tracer();
#ifdef KILN_WITH_CUDA
std::unique_ptr<StreamClock> make_event_clock(Backend* backend);
std::unique_ptr<StepTracer> make_cupti_tracer(Backend* backend);
std::unique_ptr<StepTracer> make_event_tracer(Backend* backend);
#endif

// A node of a recorded step, and a record of what ran, for attribute().
struct TracedNode {
  enum class Kind { kKernel, kCopy, kFill } kind{};
  std::string name = {};  // "" where it is not known
  int step = 0;
};

// Finds the node that made each record. `records` are those of whole replays of `nodes`, in time order; their
// `step` is ignored. Returns an index into `nodes` a record; empty where they do not fit together, with the
// reason in `why`. A copy or fill node may have run as a kernel, or left no record.
std::vector<int> attribute(const std::vector<TracedNode>& nodes, const std::vector<TracedNode>& records,
                           std::string* why);

// Profiles steps of a run in hand. The run gives it each step to launch; the work done is the same as
// without.
class StepProfiler {
 public:
  // `program`: the one to profile. steps_left: of the run; the options are cut down to fit. Throws Error
  // where that is too few, or for an unknown source.
  StepProfiler(Backend* backend, Program* program, int batch, const ProfileOptions& options,
               long long steps_left);
  ~StepProfiler();

  // One training step: enqueue(launch) enqueues it, calling `launch` where its Program is to run.
  using Launch = std::function<void(Program*)>;
  void step(Program* program, const std::function<void(const Launch&)>& enqueue);
  // Before anything but steps goes to the stream, and before the host reads what steps left.
  void pause();
  // The run ends here: makes do with the steps there were.
  void stop();
  // Once it is done, once.
  std::optional<StepProfile> take();
  bool done() const { return stage_ == Stage::kDone; }

 private:
  enum class Stage { kWarmup, kPlain, kTraced, kDone };
  void begin_stretch();
  void start_tracer();  // the next one that can
  void finish_stage();

  Program* program_;
  ProfileOptions options_;
  Stage stage_ = Stage::kWarmup;
  StepProfile profile_;
  std::unique_ptr<StreamClock> clock_;
  std::vector<std::unique_ptr<StepTracer>> tracers_;  // best first; those that failed are gone
  bool running_ = false;                              // a stretch is open
  bool led_in_ = false;                               // the tracer's first launch, which is slower, is over
  int steps_ = 0;                                     // of the stage
  double stage_us_ = 0;                               // of the stage's closed stretches
  std::vector<int> first_replays_;
  bool have_profile_ = false;
};

}  // namespace kiln
