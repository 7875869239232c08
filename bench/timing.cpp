#include "bench/timing.h"

#ifdef KILN_WITH_CUDA
#include "bench/ceiling_kernels.h"
#include "kernels/common/check.h"
#endif

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <thread>

#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr int kMostRounds = 10000;
#ifdef KILN_WITH_CUDA
constexpr unsigned kLeadInNanoseconds = 50000;
#endif

// Linear interpolation between the two nearest of sorted samples.
double quantile(const std::vector<double>& sorted, double q) {
  const double position = q * static_cast<double>(sorted.size() - 1);
  const size_t below = static_cast<size_t>(position), above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (position - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

#ifdef KILN_WITH_CUDA
class Event {
 public:
  Event() { check_cuda(cudaEventCreate(&event_), "cudaEventCreate"); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  void record(cudaStream_t stream) { check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  // Seconds from `start` to this event; waits for it.
  double since(const Event& start) {
    float ms = 0;
    check_cuda(cudaEventSynchronize(event_), "kernel execution");
    check_cuda(cudaEventElapsedTime(&ms, start.event_, event_), "cudaEventElapsedTime");
    return ms * 1e-3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// All launches as one graph, so that the host's launch overhead does not show.
class Graph {
 public:
  Graph(std::span<const Bound> bounds, cudaStream_t stream) {
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    cudaGraph_t graph = nullptr;
    try {
      for (const Bound& bound : bounds) bound.launch(stream);
    } catch (...) {
      cudaStreamEndCapture(stream, &graph);
      if (graph) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    check_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    const cudaError_t status = cudaGraphInstantiate(&exec_, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(status, "cudaGraphInstantiate");
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() { cudaGraphExecDestroy(exec_); }
  void launch(cudaStream_t stream) const { check_cuda(cudaGraphLaunch(exec_, stream), "cudaGraphLaunch"); }

 private:
  cudaGraphExec_t exec_ = nullptr;
};

#endif

}  // namespace

Timing summarize(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  const double median = quantile(samples, 0.5), iqr = quantile(samples, 0.75) - quantile(samples, 0.25);
  const auto count = static_cast<double>(samples.size());
  return {median, 50 * iqr / median, 157 * iqr / std::sqrt(count) / median, static_cast<int>(samples.size())};
}

struct LaunchSampler::State {
  std::vector<Bound> bounds;
  DeviceKind kind;
  Stream stream;
  int rounds = 1;
  double round_seconds = 0;
#ifdef KILN_WITH_CUDA
  std::unique_ptr<Graph> graph;
  std::unique_ptr<Event> start, end;
#endif

  // Seconds of launching everything `count` times.
  double run(int count) {
#ifdef KILN_WITH_CUDA
    if (graph) {
      // The GPU waits until the host has handed in the work, so that no launch from the host is in the time.
      probe_wait(kLeadInNanoseconds, stream);
      start->record(cuda_stream(stream));
      for (int i = 0; i < count; ++i) graph->launch(cuda_stream(stream));
      end->record(cuda_stream(stream));
      return end->since(*start);
    }
#endif
    using Clock = std::chrono::steady_clock;
    const Clock::time_point begin = Clock::now();
    for (int i = 0; i < count; ++i) {
      for (const Bound& bound : bounds) bound.launch(stream);
    }
    return std::chrono::duration<double>(Clock::now() - begin).count();
  }
};

LaunchSampler::LaunchSampler(std::span<const Bound> bounds, DeviceKind kind, Stream stream,
                             double sample_seconds)
    : state_(std::make_unique<State>()) {
  state_->bounds.assign(bounds.begin(), bounds.end());
  state_->kind = kind;
  state_->stream = stream;
#ifdef KILN_WITH_CUDA
  if (kind == DeviceKind::kCuda) {
    state_->graph = std::make_unique<Graph>(bounds, cuda_stream(stream));
    state_->start = std::make_unique<Event>();
    state_->end = std::make_unique<Event>();
    state_->round_seconds = state_->run(1);  // uploads the graph, wakes the clocks
  }
#endif
  if (state_->round_seconds < sample_seconds || kind == DeviceKind::kCpu)
    state_->round_seconds = state_->run(1);
  state_->round_seconds = std::max(state_->round_seconds, 1e-7);
  state_->rounds =
      static_cast<int>(std::clamp(std::ceil(sample_seconds / state_->round_seconds), 1.0, 1.0 * kMostRounds));
}

LaunchSampler::~LaunchSampler() = default;
LaunchSampler::LaunchSampler(LaunchSampler&&) noexcept = default;

double LaunchSampler::sample() {
  return state_->run(state_->rounds) / (1.0 * state_->rounds * static_cast<double>(state_->bounds.size()));
}

double LaunchSampler::sample_cost() const { return state_->rounds * state_->round_seconds; }

std::vector<Timing> time_in_turns(std::span<LaunchSampler> contestants, const TimingOptions& options,
                                  const std::function<void()>& after_round) {
  std::vector<std::vector<double>> samples(contestants.size());
  std::vector<double> spent(contestants.size(), 0);
  const auto enough = [&](size_t i) {
    const auto count = static_cast<int>(samples[i].size());
    if (count >= options.most) return true;
    if (count >= 3 && spent[i] + contestants[i].sample_cost() > options.most_seconds) return true;
    return count >= options.fewest && summarize(samples[i]).median_spread_pct < options.target_pct;
  };
  // Far behind the fastest nobody asks for the last half percent.
  const auto out_of_race = [&](size_t i, double fastest) {
    return static_cast<int>(samples[i].size()) >= options.behind &&
           summarize(samples[i]).seconds > options.race * fastest;
  };
  const auto sample = [&](LaunchSampler& contestant) {
    const double seconds = contestant.sample();
    if (options.rest > 0) {
      std::this_thread::sleep_for(std::chrono::duration<double>(options.rest * contestant.sample_cost()));
    }
    return seconds;
  };
  for (double warmed = 0; warmed < options.warm_up_seconds && !contestants.empty();) {
    for (LaunchSampler& contestant : contestants) {
      sample(contestant);
      warmed += contestant.sample_cost();
    }
  }
  for (bool more = true; more;) {
    double fastest = std::numeric_limits<double>::infinity();
    for (const std::vector<double>& s : samples) {
      if (!s.empty()) fastest = std::min(fastest, summarize(s).seconds);
    }
    more = false;
    // All others go on until all have enough: late samples are then as many, and as late, for each.
    for (size_t i = 0; i < contestants.size(); ++i) more = more || !(enough(i) || out_of_race(i, fastest));
    if (!more) break;
    bool sampled = false;
    for (size_t i = 0; i < contestants.size(); ++i) {
      if (out_of_race(i, fastest)) continue;
      if (samples[i].size() >= 3 && spent[i] + contestants[i].sample_cost() > options.most_seconds) continue;
      samples[i].push_back(sample(contestants[i]));
      spent[i] += contestants[i].sample_cost();
      sampled = true;
    }
    if (!sampled) break;
    if (after_round) after_round();
  }
  std::vector<Timing> timings;
  for (const std::vector<double>& s : samples) timings.push_back(summarize(s));
  return timings;
}

Timing time_launches(std::span<const Bound> bounds, DeviceKind kind, Stream stream,
                     const TimingOptions& options) {
  LaunchSampler sampler(bounds, kind, stream, options.sample_seconds);
  return time_in_turns({&sampler, 1}, options)[0];
}

}  // namespace kiln
