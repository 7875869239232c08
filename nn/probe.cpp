#include "nn/probe.h"

#include <cfloat>
#include <cmath>

#include "kernels/common/error.h"
#include "kernels/common/step_state.h"
#include "nn/step_finish.h"

namespace kiln {
namespace {

LowerOptions lower_options(int batch, const StepProbe::Options& o) {
  return {.batch = batch,
          .training = o.training,
          .dtype = o.precision,
          .fusions = Fusions::without(o.fusions_off, o.fusions_on),
          .impl = o.impl,
          .label_smoothing = o.label_smoothing,
          .optimizer = o.optimizer};
}

bool passes(Kink::Kind kind, float y) { return y > 0 && (kind != Kink::Kind::kRelu6 || y < 6); }

// The nearest output to y that passes, or does not.
float moved(Kink::Kind kind, float y, bool pass, DType dtype) {
  if (passes(kind, y) == pass) return y;
  const bool low = kind == Kink::Kind::kRelu || !(y > 3);
  if (!pass) return low ? 0.0f : 6.0f;
  if (low) return FLT_MIN;
  return dtype == DType::kF32 ? std::nextafter(6.0f, 0.0f) : 5.96875f;  // bf16's neighbour of 6
}

// Positions of 2 bits each, four a byte, in rows of `channels` that fill whole bytes: as a byte each, and
// back.
std::vector<uint8_t> unpacked(const std::vector<uint8_t>& bits, int channels) {
  const size_t row = static_cast<size_t>(channels + 3) / 4, c = static_cast<size_t>(channels);
  std::vector<uint8_t> bytes(bits.size() / row * c);
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<uint8_t>(bits[i / c * row + i % c / 4] >> i % c % 4 * 2 & 3);
  }
  return bytes;
}
std::vector<uint8_t> packed(const std::vector<uint8_t>& bytes, int channels) {
  const size_t row = static_cast<size_t>(channels + 3) / 4, c = static_cast<size_t>(channels);
  std::vector<uint8_t> bits(bytes.size() / c * row);
  for (size_t i = 0; i < bytes.size(); ++i) {
    uint8_t& to = bits[i / c * row + i % c / 4];
    to = static_cast<uint8_t>(to | (bytes[i] & 3) << i % c % 4 * 2);
  }
  return bits;
}

void replace(const StepProbe::Tensors& with, std::vector<NamedTensor>* tensors, size_t* used) {
  for (NamedTensor& t : *tensors) {
    const auto found = with.find(t.name);
    if (found == with.end()) continue;
    if (found->second.size() != t.values.size()) {
      fail_usage("tensor '" + t.name + "': got " + std::to_string(found->second.size()) + " values, needs " +
                 std::to_string(t.values.size()));
    }
    t.values = found->second;
    ++*used;
  }
}

StepProbe::Tensors as_map(std::vector<NamedTensor> tensors) {
  StepProbe::Tensors map;
  for (NamedTensor& t : tensors) map[t.name] = std::move(t.values);
  return map;
}

}  // namespace

StepProbe::StepProbe(const NetworkDescription& network, const ValueShape& input, int classes, int batch,
                     const Device& device, const Options& options)
    : dtype_(options.precision),
      backend_(make_backend(device)),
      network_(backend_.get(), infer_shapes(network, input, classes), options.precision, options.seed,
               options.optimizer.kind, options.zero_init_residual),
      program_(backend_.get(),
               lower(network_.shaped(), network_.layout(), backend_->device(), lower_options(batch, options)),
               /*keep_all=*/true),
      arena_(backend_->allocate(program_.arena_bytes())),
      step_state_(backend_->allocate(sizeof(StepState))),
      ring_(backend_->allocate(sizeof(StepRecord))) {
  Bases bases{};
  network_.set_bases(&bases);
  bases[static_cast<size_t>(Home::kArena)] = arena_.get();
  bases[static_cast<size_t>(Home::kStepState)] = step_state_.get();
  bases[static_cast<size_t>(Home::kRing)] = ring_.get();
  program_.bind(bases);
}

void StepProbe::set_parameters(const Tensors& tensors) {
  std::vector<NamedTensor> masters = network_.read_slab(Home::kMaster);
  std::vector<NamedTensor> statistics = network_.read_statistics();
  size_t used = 0;
  replace(tensors, &masters, &used);
  replace(tensors, &statistics, &used);
  if (used != tensors.size()) fail_usage("set_parameters: a tensor that the network does not have");
  network_.write_slab(Home::kMaster, masters);
  network_.write_statistics(statistics);
}

StepProbe::Tensors StepProbe::parameters() const {
  Tensors all = as_map(network_.read_slab(Home::kMaster));
  all.merge(as_map(network_.read_statistics()));
  return all;
}

StepProbe::Tensors StepProbe::gradients() const { return as_map(network_.read_slab(Home::kGradients)); }

std::vector<float> StepProbe::read(int buffer) const {
  const size_t bytes = program_.list().buffers[buffer].bytes;
  std::vector<float> values(bytes / size_of(dtype_));
  if (dtype_ == DType::kF32) {
    backend_->download(values.data(), program_.address(buffer), bytes);
    return values;
  }
  std::vector<uint16_t> bits(values.size());
  backend_->download(bits.data(), program_.address(buffer), bytes);
  for (size_t i = 0; i < bits.size(); ++i) values[i] = bf16_value(bits[i]);
  return values;
}

void StepProbe::write(int buffer, const std::vector<float>& values) {
  const Buffer& b = program_.list().buffers[buffer];
  if (values.size() * size_of(dtype_) != b.bytes) {
    fail_usage(b.name + ": got " + std::to_string(values.size()) + " values, needs " +
               std::to_string(b.bytes / size_of(dtype_)));
  }
  if (dtype_ == DType::kF32) return backend_->upload(program_.address(buffer), values.data(), b.bytes);
  std::vector<uint16_t> bits(values.size());
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = bf16_bits(values[i]);
  backend_->upload(program_.address(buffer), bits.data(), b.bytes);
}

void StepProbe::forward(const std::vector<float>& images, const std::vector<int32_t>& labels) {
  const StepList& list = program_.list();
  if (labels.size() * sizeof(int32_t) != list.buffers[list.labels].bytes) fail_usage("labels: wrong number");
  write(list.input, images);
  backend_->upload(program_.address(list.labels), labels.data(), labels.size() * sizeof(int32_t));
  program_.launch(Phase::kForward, Phase::kLoss);
  backend_->synchronize();
}

double StepProbe::loss() const {
  const StepList& list = program_.list();
  std::vector<float> rows(list.buffers[list.row_loss].bytes / sizeof(float));
  backend_->download(rows.data(), program_.address(list.row_loss), rows.size() * sizeof(float));
  double sum = 0;
  for (float row : rows) sum += row;
  return sum / static_cast<double>(rows.size());
}

std::vector<float> StepProbe::logits() const { return read(program_.list().logits); }

std::vector<float> StepProbe::activation(const std::string& id) const {
  const std::vector<LayerDescription>& layers = network_.shaped().description.layers;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].id == id) return read(program_.list().values[i + 1]);
  }
  fail_usage("no layer '" + id + "'");
}

StepProbe::Kinks StepProbe::kinks() const {
  Kinks kinks;
  for (const auto& [name, kink] : program_.list().kinks) {
    std::vector<uint8_t>& bytes = kinks[name];
    if (kink.kind == Kink::Kind::kArg || kink.kind == Kink::Kind::kArg2) {
      bytes.resize(program_.list().buffers[kink.buffer].bytes);
      backend_->download(bytes.data(), program_.address(kink.buffer), bytes.size());
      if (kink.kind == Kink::Kind::kArg2) bytes = unpacked(bytes, kink.channels);
    } else {
      for (float y : read(kink.buffer)) bytes.push_back(passes(kink.kind, y) ? 1 : 0);
    }
  }
  return kinks;
}

void StepProbe::impose_kinks(const Kinks& kinks) {
  for (const auto& [name, bytes] : kinks) {
    const auto found = program_.list().kinks.find(name);
    if (found == program_.list().kinks.end()) fail_usage("impose_kinks: this program has no '" + name + "'");
    const Kink& kink = found->second;
    if (kink.kind == Kink::Kind::kArg || kink.kind == Kink::Kind::kArg2) {
      const std::vector<uint8_t> stored =
          kink.kind == Kink::Kind::kArg2 ? packed(bytes, kink.channels) : bytes;
      if (stored.size() != program_.list().buffers[kink.buffer].bytes) fail_usage(name + ": wrong size");
      backend_->upload(program_.address(kink.buffer), stored.data(), stored.size());
      continue;
    }
    std::vector<float> y = read(kink.buffer);
    if (bytes.size() != y.size()) fail_usage(name + ": wrong size");
    for (size_t i = 0; i < y.size(); ++i) y[i] = moved(kink.kind, y[i], bytes[i] != 0, dtype_);
    write(kink.buffer, y);
  }
}

void StepProbe::backward() {
  program_.launch(Phase::kBackward, Phase::kBackward);
  backend_->synchronize();
}

void StepProbe::update(float lr) {
  const StepState state = {.step = steps_++, .lr = lr};
  backend_->upload(step_state_.get(), &state, sizeof state);
  program_.launch(Phase::kUpdate, Phase::kUpdate);
  backend_->synchronize();
}

}  // namespace kiln
