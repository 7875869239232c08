// Tracing steps on the GPU: CUPTI's records of a recording's replays, or events between its steps.
#include <algorithm>
#include <set>

#include "kernels/common/check.h"
#include "nn/cupti_records.h"
#include "nn/step_profile.h"

namespace kiln {
namespace {

class Event {
 public:
  Event() { check_cuda(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~Event() {
    if (event_) cudaEventDestroy(event_);
  }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&&) = delete;
  cudaEvent_t get() const { return event_; }
  double us_until(const Event& end) const {
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, event_, end.event_), "cudaEventElapsedTime");
    return 1e3 * ms;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

class EventClock : public StreamClock {
 public:
  explicit EventClock(Backend* backend) : stream_(cuda_stream(backend->stream())) {}
  void start() override { check_cuda(cudaEventRecord(begin_.get(), stream_), "cudaEventRecord"); }
  double stop() override {
    check_cuda(cudaEventRecord(end_.get(), stream_), "cudaEventRecord");
    check_cuda(cudaEventSynchronize(end_.get()), "cudaEventSynchronize");
    return begin_.us_until(end_);
  }

 private:
  cudaStream_t stream_;
  Event begin_, end_;
};

TracedNode traced_node(cudaGraphNode_t node, int step, bool* runs) {
  cudaGraphNodeType type{};
  check_cuda(cudaGraphNodeGetType(node, &type), "cudaGraphNodeGetType");
  TracedNode traced{.step = step};
  *runs = true;
  if (type == cudaGraphNodeTypeMemcpy) {
    traced.kind = TracedNode::Kind::kCopy;
    traced.name = "[copy]";
  } else if (type == cudaGraphNodeTypeMemset) {
    traced.kind = TracedNode::Kind::kFill;
    traced.name = "[fill]";
  } else if (type == cudaGraphNodeTypeKernel) {
    // A library's own kernels cannot be asked: their names stay empty.
#if CUDART_VERSION >= 12030
    cudaKernelNodeParams parameters{};
    const char* name = nullptr;
    if (cudaGraphKernelNodeGetParams(node, &parameters) == cudaSuccess && parameters.func != nullptr &&
        cudaFuncGetName(&name, parameters.func) == cudaSuccess && name != nullptr) {
      traced.name = name;
    }
    cudaGetLastError();
#endif
  } else {
    *runs = false;
  }
  return traced;
}

// The nodes that appear in the graph being captured on a stream.
class CapturedNodes {
 public:
  explicit CapturedNodes(cudaStream_t stream) : stream_(stream) {}
  // Appends those that are new since the last call, as `step`'s.
  void collect(int step, std::vector<TracedNode>* nodes) {
    cudaStreamCaptureStatus status{};
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamGetCaptureInfo(stream_, &status, nullptr, &graph), "cudaStreamGetCaptureInfo");
    size_t count = 0;
    check_cuda(cudaGraphGetNodes(graph, nullptr, &count), "cudaGraphGetNodes");
    std::vector<cudaGraphNode_t> all(count);
    if (count > 0) check_cuda(cudaGraphGetNodes(graph, all.data(), &count), "cudaGraphGetNodes");
    for (const cudaGraphNode_t node : all) {
      if (!seen_.insert(node).second) continue;
      bool runs = false;
      TracedNode traced = traced_node(node, step, &runs);
      if (runs) nodes->push_back(std::move(traced));
    }
  }

 private:
  cudaStream_t stream_;
  std::set<cudaGraphNode_t> seen_;
};

// CUPTI sees a graph's nodes reliably only where it was there when the graph was made: so the steps are
// recorded anew.
class CuptiTracer : public StepTracer {
 public:
  explicit CuptiTracer(Backend* backend) : backend_(backend) {}
  ~CuptiTracer() override { cudaStreamSynchronize(cuda_stream(backend_->stream())); }
  const char* source() const override { return "cupti"; }

  std::string start(Program* program) override {
    backend_->synchronize();
    if (const std::string reason = records_.start(); !reason.empty()) return reason;
    CapturedNodes captured(cuda_stream(backend_->stream()));
    recording_ = backend_->record([&] {
      program->launch_each([&](size_t step) {
        if (step > 0) captured.collect(static_cast<int>(step) - 1, &nodes_);
      });
    });
    return "";
  }
  void launch() override {
    recording_->launch();
    ++launches_;
  }
  void stretch_begins() override { stretches_.push_back({records_.now_ns(), 0}); }
  void stretch_done() override { stretches_.back().end_ns = records_.now_ns(); }
  void discard() override {
    launches_ = 0;
    stretches_.clear();
  }

  std::string finish(StepProfile* profile) override {
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    std::vector<CuptiRecord> records;
    if (const std::string reason = records_.stop(&records); !reason.empty()) return reason;
    // Between two stretches other Programs ran (the small last batch, an evaluation), and losses were read.
    std::erase_if(records, [&](const CuptiRecord& record) {
      return std::none_of(stretches_.begin(), stretches_.end(), [&](const Stretch& stretch) {
        return stretch.begin_ns <= record.start_ns && record.end_ns <= stretch.end_ns;
      });
    });
    std::stable_sort(records.begin(), records.end(),
                     [](const CuptiRecord& a, const CuptiRecord& b) { return a.start_ns < b.start_ns; });
    std::vector<TracedNode> of_graph;
    for (const CuptiRecord& record : records) {
      if (record.in_graph) of_graph.push_back({.kind = record.kind, .name = record.name});
    }
    std::string why;
    const std::vector<int> found = attribute(nodes_, of_graph, &why);
    if (found.empty()) return why;
    const int replays = 1 + replay_of(found, found.size() - 1);
    if (replays != launches_) {
      return std::to_string(replays) + " replays were recorded, " + std::to_string(launches_) + " launched";
    }
    if (!why.empty()) profile->notes.push_back(why);
    append_spans(records, found, profile);
    return "";
  }

 private:
  struct Stretch {
    uint64_t begin_ns, end_ns;
  };

  // The replay of graph record i: a new one begins where the nodes do not go on.
  static int replay_of(const std::vector<int>& found, size_t i) {
    int replay = 0;
    for (size_t j = 1; j <= i; ++j) replay += found[j] <= found[j - 1];
    return replay;
  }

  void append_spans(const std::vector<CuptiRecord>& records, const std::vector<int>& found,
                    StepProfile* profile) const {
    uint64_t first_ns = 0;
    int replay = 0;  // what is no node belongs to the replay behind it
    size_t node = 0;
    const auto keep = [&](ProfileSpan span, const CuptiRecord& record) {
      if (first_ns == 0) first_ns = record.start_ns;
      span.start_us = 1e-3 * static_cast<double>(record.start_ns - first_ns);
      span.end_us = 1e-3 * static_cast<double>(record.end_ns - first_ns);
      profile->spans.push_back(std::move(span));
    };
    for (const CuptiRecord& record : records) {
      ProfileSpan span{.name = record.name};
      if (!record.in_graph) {
        // Behind the last node of a replay the next one has begun.
        if (node == found.size()) continue;
        const bool between = node > 0 && found[node] <= found[node - 1];
        span.replay = replay + (between ? 1 : 0);
        keep(std::move(span), record);
        continue;
      }
      if (node > 0 && found[node] <= found[node - 1]) ++replay;
      span.replay = replay;
      span.step = nodes_[found[node]].step;
      ++node;
      keep(std::move(span), record);
    }
  }

  Backend* backend_;
  CuptiRecords records_;
  std::vector<TracedNode> nodes_;
  std::unique_ptr<Recording> recording_;
  std::vector<Stretch> stretches_;
  int launches_ = 0;
};

// Events recorded between the steps, as nodes of the graph. A step's time includes the gap behind it.
class EventTracer : public StepTracer {
 public:
  explicit EventTracer(Backend* backend) : backend_(backend) {}
  ~EventTracer() override { cudaStreamSynchronize(cuda_stream(backend_->stream())); }
  const char* source() const override { return "events"; }
  bool one_by_one() const override { return true; }  // the next replay writes the same events

  std::string start(Program* program) override {
    events_ = std::vector<Event>(program->list().steps.size() + 1);
    const cudaStream_t stream = cuda_stream(backend_->stream());
    recording_ = backend_->record([&] {
      program->launch_each([&](size_t step) {
        check_cuda(cudaEventRecordWithFlags(events_[step].get(), stream, cudaEventRecordExternal),
                   "cudaEventRecordWithFlags");
      });
    });
    return "";
  }
  void launch() override { recording_->launch(); }
  void stretch_done() override {
    for (size_t i = 0; i + 1 < events_.size(); ++i) times_.push_back(events_[i].us_until(events_[i + 1]));
  }
  void discard() override { times_.clear(); }

  std::string finish(StepProfile* profile) override {
    const size_t steps = events_.size() - 1;
    double at = 0;
    for (size_t i = 0; i < times_.size(); ++i) {
      profile->spans.push_back({.replay = static_cast<int>(i / steps),
                                .step = static_cast<int>(i % steps),
                                .name = profile->steps[i % steps].impl,
                                .start_us = at,
                                .end_us = at + times_[i]});
      at += times_[i];
    }
    profile->notes.push_back(
        "the steps' times are between events: they include the gaps, and each replay waited for the one "
        "before");
    return "";
  }

 private:
  Backend* backend_;
  std::vector<Event> events_;
  std::unique_ptr<Recording> recording_;
  std::vector<double> times_;  // of every step, replay after replay
};

}  // namespace

std::unique_ptr<StreamClock> make_event_clock(Backend* backend) {
  return std::make_unique<EventClock>(backend);
}
std::unique_ptr<StepTracer> make_cupti_tracer(Backend* backend) {
  return std::make_unique<CuptiTracer>(backend);
}
std::unique_ptr<StepTracer> make_event_tracer(Backend* backend) {
  return std::make_unique<EventTracer>(backend);
}

}  // namespace kiln
