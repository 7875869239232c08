// parity_dump: runs a network on inputs drawn from a seed and writes everything that
// bench/peers/torch_parity.py compares with PyTorch into one safetensors file.
//
//   weight:<name>  before:<statistic>  after:<statistic>   parameters, running statistics around the step
//   images [N,H,W,C]  labels [N]  logits [N,classes]  loss []
//   grad:<name>    the loss's gradient, PyTorch's layout
//   kink:<layer>   relu, relu6 [N,H,W,C]: 0 below, 1 passes, 2 above; max_pool2d [N,P,Q,C]: r * S + s
//   steps.images [T,N,H,W,C]  steps.labels [T,N]  steps.losses [T]   with --steps: SGD from the first weights
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>

#include "data/safetensors.h"
#include "kernels/common/error.h"
#include "nn/checkpoint.h"
#include "nn/probe.h"
#include "tests/support/parity_inputs.h"

namespace kiln {
namespace {

using test::kParityClasses;
using test::kParityImage;
using test::parity_batch;
using test::ParityBatch;

struct Flags {
  std::string network = "small_cnn", device = "cpu", precision = "fp32", impl;
  std::vector<std::string> fusions_off;
  int batch = 8, steps = 0;
  uint64_t seed = 0;
  float lr = 0.01f;
  std::string weights, inputs, checkpoint, out;
  bool inference = false;
};

template <class T>
SafeTensor tensor(const std::string& name, const char* dtype, std::vector<int64_t> shape,
                  const std::vector<T>& values) {
  SafeTensor t = {.name = name, .dtype = dtype, .shape = std::move(shape), .data = {}};
  t.data.resize(values.size() * sizeof(T));
  std::memcpy(t.data.data(), values.data(), t.data.size());
  return t;
}

std::vector<int64_t> image_shape(int64_t n, const ValueShape& s) { return {n, s.h, s.w, s.c}; }

class Dump {
 public:
  explicit Dump(const Flags& flags)
      : flags_(flags),
        network_(load(flags.network)),
        shaped_(infer_shapes(network_, kParityImage, kParityClasses)),
        layout_(shaped_) {
    if (flags.weights.empty()) return;
    const WeightTensors read = read_weights(layout_, flags.weights);
    for (const auto* tensors : {&read.parameters, &read.statistics}) {
      for (const NamedTensor& t : *tensors) weights_[t.name] = t.values;
    }
    batches_tracked_ = read.tracked;
  }

  void run() {
    file_.metadata = {{"network", network_.name}, {"device", flags_.device}, {"precision", flags_.precision}};
    if (flags_.inference) {
      infer();
    } else {
      step();
      if (flags_.steps > 0 || !flags_.checkpoint.empty()) train();
    }
    if (!flags_.out.empty()) write_safetensors(flags_.out, file_);
  }

 private:
  static NetworkDescription load(const std::string& name) {
    if (!name.ends_with(".json")) return builtin_network(name);
    std::ifstream in(name, std::ios::binary);
    if (!in) fail_usage("--network '" + name + "': the file cannot be read");
    return parse_network(std::string(std::istreambuf_iterator<char>(in), {}));
  }

  StepProbe probe(bool training, int batch) const {
    StepProbe::Options options;
    options.precision = dtype_from_name(flags_.precision);
    options.impl = ImplChoice(flags_.impl);
    options.fusions_off = flags_.fusions_off;
    options.training = training;
    options.seed = flags_.seed;
    StepProbe probe(network_, kParityImage, kParityClasses, batch, device_from_name(flags_.device), options);
    if (!weights_.empty()) probe.set_parameters(weights_);
    return probe;
  }

  void add_parameters(const std::string& prefix, const StepProbe::Tensors& tensors) {
    for (const Parameter& p : layout_.parameters()) {
      file_.tensors.push_back(f32_tensor(prefix + p.name, p.shape, tensors.at(p.name)));
    }
  }
  void add_statistics(const std::string& prefix, const StepProbe::Tensors& tensors) {
    for (const Statistic& s : layout_.statistics()) {
      file_.tensors.push_back(f32_tensor(prefix + s.name, {s.channels}, tensors.at(s.name)));
    }
  }

  // One side an element of layer `i`, from those of the windows of 2x2 of the max_pool2d that alone reads it:
  // where that is fused too, only the maxima exist. The others' sides decide nothing.
  std::vector<uint8_t> unpooled(int i, const std::vector<uint8_t>& of_windows,
                                const StepProbe::Kinks& kinks) const {
    const int pool = shaped_.consumers[i + 1].at(0);
    const std::vector<uint8_t>& positions = kinks.at(shaped_.layer(pool).id + ".arg");
    const ValueShape &in = shaped_.out(i), &out = shaped_.out(pool);
    std::vector<uint8_t> side(static_cast<size_t>(flags_.batch) * in.elements());
    for (size_t w = 0; w < of_windows.size(); ++w) {
      const size_t c = w % out.c, q = w / out.c % out.w, p = w / out.c / out.w % out.h,
                   n = w / out.elements();
      const size_t row = n * in.h + 2 * p + positions[w] / 2, column = 2 * q + positions[w] % 2;
      side[(row * in.w + column) * in.c + c] = of_windows[w];
    }
    return side;
  }

  // The side on which each element of a kink lies. Taken from the outputs, so that a relu that is fused into
  // its batchnorm has one too.
  void add_kinks(const StepProbe& probe) {
    const StepProbe::Kinks saved = probe.kinks();
    for (int i = 0; i < shaped_.layers(); ++i) {
      const LayerDescription& layer = shaped_.layer(i);
      std::vector<uint8_t> side;
      if (layer.type == "max_pool2d") {
        side = saved.at(layer.id + ".arg");
      } else if (layer.type == "relu" || layer.type == "relu6") {
        const bool capped = layer.type == "relu6";
        for (const float y : probe.activation(layer.id))
          side.push_back(!(y > 0) ? 0 : capped && y >= 6 ? 2 : 1);
        if (side.size() != static_cast<size_t>(flags_.batch) * shaped_.out(i).elements()) {
          side = unpooled(i, side, saved);
        }
      } else {
        continue;
      }
      file_.tensors.push_back(
          tensor("kink:" + layer.id, "U8", image_shape(flags_.batch, shaped_.out(i)), side));
    }
  }

  void step() {
    StepProbe p = probe(true, flags_.batch);
    const ParityBatch b = parity_batch(flags_.seed, flags_.batch, 0);
    const StepProbe::Tensors before = p.parameters();
    p.forward(b.images, b.labels);
    p.backward();
    add_parameters("weight:", before);
    add_statistics("before:", before);
    add_statistics("after:", p.parameters());
    file_.tensors.push_back(f32_tensor("images", image_shape(flags_.batch, kParityImage), b.images));
    file_.tensors.push_back(tensor("labels", "I32", {flags_.batch}, b.labels));
    file_.tensors.push_back(f32_tensor("logits", {flags_.batch, kParityClasses}, p.logits()));
    file_.tensors.push_back(tensor<double>("loss", "F64", {}, {p.loss()}));
    add_parameters("grad:", p.gradients());
    add_kinks(p);
  }

  // --steps of plain SGD, each on a new batch; then the checkpoint.
  void train() {
    StepProbe p = probe(true, flags_.batch);
    std::vector<float> images;
    std::vector<int32_t> labels;
    std::vector<double> losses;
    for (int t = 0; t < flags_.steps; ++t) {
      const ParityBatch b = parity_batch(flags_.seed, flags_.batch, t);
      p.forward(b.images, b.labels);
      losses.push_back(p.loss());
      p.backward();
      p.update(flags_.lr);
      images.insert(images.end(), b.images.begin(), b.images.end());
      labels.insert(labels.end(), b.labels.begin(), b.labels.end());
    }
    std::vector<int64_t> shape = image_shape(flags_.batch, kParityImage);
    shape.insert(shape.begin(), flags_.steps);
    file_.tensors.push_back(f32_tensor("steps.images", shape, images));
    file_.tensors.push_back(tensor("steps.labels", "I32", {flags_.steps, flags_.batch}, labels));
    file_.tensors.push_back(tensor("steps.losses", "F64", {flags_.steps}, losses));
    if (!flags_.checkpoint.empty()) save(p.parameters());
  }

  void save(const StepProbe::Tensors& tensors) const {
    const std::unique_ptr<Backend> backend = make_backend(cpu_device());
    Network network(backend.get(), shaped_, DType::kF32, 0);
    std::vector<NamedTensor> masters = network.read_slab(Home::kMaster);
    std::vector<NamedTensor> statistics = network.read_statistics();
    for (NamedTensor& t : masters) t.values = tensors.at(t.name);
    for (NamedTensor& t : statistics) t.values = tensors.at(t.name);
    network.write_slab(Home::kMaster, masters);
    network.write_statistics(statistics);
    if (!batches_tracked_.empty()) network.set_batches_tracked(batches_tracked_);
    for (int t = 0; t < flags_.steps; ++t) network.count_batch();
    save_weights(network, flags_.checkpoint);
  }

  // The images of --inputs, else one batch from the seed.
  std::vector<float> inference_images() const {
    if (flags_.inputs.empty()) return parity_batch(flags_.seed, flags_.batch, 0).images;
    const SafeTensors file = read_safetensors(flags_.inputs);
    for (const SafeTensor& t : file.tensors) {
      if (t.name != "images") continue;
      if (t.dtype != "F32" || t.shape.empty() || t.shape != image_shape(t.shape[0], kParityImage)) {
        fail_usage(flags_.inputs + ": 'images' must be F32 [n, 32, 32, 3]");
      }
      std::vector<float> images(t.data.size() / sizeof(float));
      std::memcpy(images.data(), t.data.data(), t.data.size());
      return images;
    }
    fail_usage(flags_.inputs + ": has no tensor 'images'");
  }

  // Logits with the running statistics, batch by batch; the last batch is filled up with its first image.
  void infer() {
    StepProbe p = probe(false, flags_.batch);
    const std::vector<float> images = inference_images();
    const size_t image = static_cast<size_t>(kParityImage.elements()), count = images.size() / image;
    const std::vector<int32_t> labels(flags_.batch, 0);
    std::vector<float> logits;
    for (size_t first = 0; first < count; first += flags_.batch) {
      const size_t here = std::min<size_t>(flags_.batch, count - first);
      const auto begin = images.begin() + static_cast<std::ptrdiff_t>(first * image);
      std::vector<float> batch(begin, begin + static_cast<std::ptrdiff_t>(here * image));
      for (size_t i = here; i < static_cast<size_t>(flags_.batch); ++i) {
        batch.insert(batch.end(), begin, begin + static_cast<std::ptrdiff_t>(image));
      }
      p.forward(batch, labels);
      const std::vector<float> all = p.logits();
      logits.insert(logits.end(), all.begin(),
                    all.begin() + static_cast<std::ptrdiff_t>(here * kParityClasses));
    }
    file_.tensors.push_back(f32_tensor("logits", {static_cast<int64_t>(count), kParityClasses}, logits));
  }

  const Flags& flags_;
  NetworkDescription network_;
  ShapedNetwork shaped_;
  ParameterLayout layout_;
  StepProbe::Tensors weights_;            // of --weights
  std::vector<int64_t> batches_tracked_;  // likewise
  SafeTensors file_;
};

void add_flags(CLI::App& app, Flags& f) {
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);  // a flag may be given again
  app.add_option("--network", f.network, "a built-in network, or a JSON file")->capture_default_str();
  app.add_option("--device", f.device, "cpu or cuda")->capture_default_str();
  app.add_option("--precision", f.precision, "fp32 or bf16 (cuda)")->capture_default_str();
  app.add_option("--batch", f.batch, "images a batch")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--seed", f.seed, "of weights, images and labels")->capture_default_str();
  app.add_option("--fusions-off", f.fusions_off, "fusions not to make, comma-separated; all: none is made")
      ->delimiter(',')
      ->take_all();
  app.add_option("--impl", f.impl, "implementations, as in `kiln train --impl`");
  app.add_option("--weights", f.weights,
                 "start from this safetensors checkpoint instead of the seed's weights");
  app.add_option("--steps", f.steps, "also train this many steps of plain SGD and write their losses")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--lr", f.lr, "learning rate of --steps")->capture_default_str();
  app.add_option("--checkpoint", f.checkpoint, "write the weights after --steps as a checkpoint");
  app.add_flag("--inference", f.inference, "only logits, with the running statistics");
  app.add_option("--inputs", f.inputs, "safetensors file with normalised 'images' for --inference");
  app.add_option("--out", f.out, "safetensors file to write");
}

int run(int argc, char** argv) {
  CLI::App app("parity_dump: one training step of a network in numbers, for bench/peers/torch_parity.py.");
  Flags flags;
  add_flags(app, flags);
  CLI11_PARSE(app, argc, argv);
  try {
    Dump(flags).run();
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "parity_dump: %s\n", error.what());
    return error.exit_status();
  }
}

}  // namespace
}  // namespace kiln

int main(int argc, char** argv) { return kiln::run(argc, argv); }
