#include "nn/inference.h"

#include <algorithm>
#include <numeric>

#include "kernels/common/error.h"
#include "kernels/common/step_state.h"
#include "nn/checkpoint.h"
#include "nn/fold_batchnorm.h"
#include "nn/lower.h"

namespace kiln {
namespace {

// The network with a weights file's tensors, folded where that is wished.
std::unique_ptr<Network> load(Backend* backend, const NetworkDescription& description,
                              const std::string& path, const ValueShape& input, int classes,
                              const InferenceSession::Options& options) {
  ShapedNetwork shaped = infer_shapes(description, input, classes);
  WeightTensors weights = read_weights(ParameterLayout(shaped), path);
  if (options.fold) {
    FoldedNetwork folded = fold_batchnorm(shaped, weights.parameters, weights.statistics);
    shaped = infer_shapes(folded.description, input, classes);
    weights.parameters = std::move(folded.parameters);
    weights.statistics = std::move(folded.statistics);
  }
  auto network = std::make_unique<Network>(backend, std::move(shaped), options.precision, 0);
  network->write_slab(Home::kMaster, weights.parameters);
  network->write_statistics(weights.statistics);
  return network;
}

}  // namespace

struct InferenceSession::Ready {
  Ready(Backend* backend, StepList list) : program(backend, std::move(list)) {}
  Program program;
  Memory arena, images, labels, order;  // the last three for bytes, which the first step normalises
};

InferenceSession::InferenceSession(const NetworkDescription& network, const std::string& weights,
                                   const ValueShape& input, int classes, const std::vector<float>& mean,
                                   const std::vector<float>& std, const Device& device,
                                   const Options& options)
    : backend_(make_backend(device)),
      classes_(classes),
      mean_(mean),
      std_(std),
      options_(options),
      network_(load(backend_.get(), network, weights, input, classes, options)),
      step_state_(backend_->allocate(sizeof(StepState))) {
  if (mean.size() != static_cast<size_t>(input.c) || std.size() != mean.size()) {
    fail_usage("network '" + network.name + "': its images have " + std::to_string(input.c) +
               " channels; got " + std::to_string(mean.size()) + " means and " + std::to_string(std.size()) +
               " standard deviations");
  }
  const auto uploaded = [&](const void* data, size_t bytes) {
    Memory memory = backend_->allocate(bytes);
    backend_->upload(memory.get(), data, bytes);
    return memory;
  };
  const StepState state;
  backend_->upload(step_state_.get(), &state, sizeof state);
  mean_memory_ = uploaded(mean.data(), mean.size() * sizeof(float));
  std_memory_ = uploaded(std.data(), std.size() * sizeof(float));
}

InferenceSession::~InferenceSession() = default;

const ShapedNetwork& InferenceSession::network() const { return network_->shaped(); }

InferenceSession::Ready& InferenceSession::ready(int batch, bool bytes) {
  std::unique_ptr<Ready>& slot = programs_[{batch, bytes}];
  if (slot) return *slot;
  LowerOptions o = {.batch = batch,
                    .training = false,
                    .dtype = options_.precision,
                    .fusions = Fusions::without(options_.fusions_off),
                    .impl = options_.impl,
                    .loss = false};
  if (bytes) o.augment.m = batch;
  auto made = std::make_unique<Ready>(backend_.get(),
                                      lower(network_->shaped(), network_->layout(), backend_->device(), o));
  Bases bases{};
  network_->set_bases(&bases);
  const auto set = [&](Home home, const Memory& memory) { bases[static_cast<size_t>(home)] = memory.get(); };
  set(Home::kArena, made->arena = backend_->allocate(made->program.arena_bytes()));
  if (bytes) {
    const size_t n = static_cast<size_t>(batch);
    made->images = backend_->allocate(n * network_->shaped().shapes[0].elements());
    made->labels = backend_->allocate(n * sizeof(int32_t));
    made->order = backend_->allocate(n * sizeof(int32_t));
    std::vector<int32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    backend_->upload(made->order.get(), order.data(), n * sizeof(int32_t));
    set(Home::kStepState, step_state_);
    set(Home::kImages, made->images);
    set(Home::kLabels, made->labels);
    set(Home::kOrder, made->order);
    set(Home::kMean, mean_memory_);
    set(Home::kStd, std_memory_);
  }
  made->program.bind(bases);
  slot = std::move(made);
  return *slot;
}

void InferenceSession::upload(Ready& r, const uint8_t* images) {
  const StepList& list = r.program.list();
  const size_t pixels = list.buffers[list.input].bytes / size_of(options_.precision);
  backend_->upload(r.images.get(), images, pixels);
}

// The arithmetic of augment, whose images are bytes.
void InferenceSession::upload(Ready& r, const float* images) {
  const StepList& list = r.program.list();
  const Buffer& input = list.buffers[list.input];
  const size_t channels = mean_.size();
  std::vector<float> values(input.bytes / size_of(options_.precision));
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t c = i % channels;
    values[i] = (images[i] - mean_[c]) * (1.0f / std_[c]);
  }
  if (options_.precision == DType::kF32) {
    backend_->upload(r.program.address(list.input), values.data(), input.bytes);
    return;
  }
  std::vector<uint16_t> bits(values.size());
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = bf16_bits(values[i]);
  backend_->upload(r.program.address(list.input), bits.data(), input.bytes);
}

void InferenceSession::read_logits(const Ready& r, float* logits) const {
  const StepList& list = r.program.list();
  const Buffer& buffer = list.buffers[list.logits];
  const void* address = r.program.address(list.logits);
  if (options_.precision == DType::kF32) return backend_->download(logits, address, buffer.bytes);
  std::vector<uint16_t> bits(buffer.bytes / sizeof(uint16_t));
  backend_->download(bits.data(), address, buffer.bytes);
  for (size_t i = 0; i < bits.size(); ++i) logits[i] = bf16_value(bits[i]);
}

template <class Pixel>
std::vector<float> InferenceSession::predict_in_batches(const Pixel* images, long long count, int batch) {
  if (batch < 1 || count < 0) fail_usage("predict: the batch must be at least 1, the images at least none");
  const long long pixels = network_->shaped().shapes[0].elements();
  std::vector<float> logits(static_cast<size_t>(count) * classes_);
  for (long long first = 0; first < count; first += batch) {
    const int here = static_cast<int>(std::min<long long>(batch, count - first));
    Ready& r = ready(here, sizeof(Pixel) == 1);
    upload(r, images + first * pixels);
    r.program.launch(options_.cuda_graph);
    read_logits(r, logits.data() + first * classes_);
  }
  return logits;
}

std::vector<float> InferenceSession::predict(const uint8_t* images, long long count, int batch) {
  return predict_in_batches(images, count, batch);
}
std::vector<float> InferenceSession::predict(const float* images, long long count, int batch) {
  return predict_in_batches(images, count, batch);
}

std::set<std::string> InferenceSession::impl_notes() const {
  std::set<std::string> notes;
  for (const auto& [key, ready] : programs_) notes.merge(ready->program.list().notes());
  return notes;
}

std::vector<std::string> InferenceSession::plan_lines(int batch) {
  return ready(batch, true).program.list().lines();
}

}  // namespace kiln
