#include "bench/timing.h"

#ifdef KILN_WITH_CUDA
#include "kernels/common/check.h"
#endif

#include <algorithm>
#include <chrono>
#include <cmath>

#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr int kRepetitions = 7, kSlowRepetitions = 3;
constexpr double kSlowSeconds = 0.05;

// Linear interpolation between the two nearest of sorted samples.
double quantile(const std::vector<double>& sorted, double q) {
  const double position = q * static_cast<double>(sorted.size() - 1);
  const size_t below = static_cast<size_t>(position), above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (position - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

// seconds(rounds): the time of launching everything `rounds` times.
template <class Seconds>
Timing repeat(size_t launches, double seconds_each, const Seconds& seconds) {
  const double once = std::max(seconds(1), 1e-7);
  const int rounds = static_cast<int>(std::clamp(std::ceil(seconds_each / once), 1.0, 10000.0));
  const bool slow = once / static_cast<double>(launches) > kSlowSeconds;
  std::vector<double> samples;
  for (int i = 0; i < (slow ? kSlowRepetitions : kRepetitions); ++i) {
    samples.push_back(seconds(rounds) / (static_cast<double>(rounds) * static_cast<double>(launches)));
  }
  return summarize(std::move(samples));
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

Timing time_on_cuda(std::span<const Bound> bounds, cudaStream_t stream, double seconds_each) {
  const Graph graph(bounds, stream);
  Event start, end;
  graph.launch(stream);  // uploads the graph, wakes the clocks
  return repeat(bounds.size(), seconds_each, [&](int rounds) {
    start.record(stream);
    for (int i = 0; i < rounds; ++i) graph.launch(stream);
    end.record(stream);
    return end.since(start);
  });
}
#endif

}  // namespace

Timing summarize(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  const double median = quantile(samples, 0.5);
  return {median, 50 * (quantile(samples, 0.75) - quantile(samples, 0.25)) / median};
}

Timing time_launches(std::span<const Bound> bounds, DeviceKind kind, Stream stream, double seconds_each) {
#ifdef KILN_WITH_CUDA
  if (kind == DeviceKind::kCuda) return time_on_cuda(bounds, cuda_stream(stream), seconds_each);
#endif
  (void)kind;
  using Clock = std::chrono::steady_clock;
  return repeat(bounds.size(), seconds_each, [&](int rounds) {
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < rounds; ++i) {
      for (const Bound& bound : bounds) bound.launch(stream);
    }
    return std::chrono::duration<double>(Clock::now() - start).count();
  });
}

}  // namespace kiln
