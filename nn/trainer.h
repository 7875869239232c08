// Training and evaluating a network on a device: what `kiln train`, `kiln eval` and bench_epoch drive.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "kernels/augment/augment.h"
#include "kernels/common/device.h"
#include "kernels/common/dtype.h"
#include "kernels/common/impl_choice.h"
#include "nn/description.h"
#include "nn/optimizer_options.h"
#include "nn/step_profile.h"

namespace kiln {

enum class Schedule { kConstant, kCosine, kOneCycle, kLinear, kStep };
// "constant", "cosine", "one_cycle", "linear", "step"; throws Error for any other.
Schedule schedule_from_name(const std::string& name);
const char* name_of(Schedule);

constexpr double kMostEpochs = 1e6;

struct TrainOptions {
  DType precision = DType::kF32;  // fp32 or bf16 (CUDA only)
  ImplChoice impl;
  uint64_t seed = 0;
  bool zero_init_residual = false;  // see ParameterLayout::initial_parameters
  int batch = 512;
  int eval_batch = 0;       // images a step of evaluation, 0: the larger of batch and 500
  double epochs = 1;        // may be fractional, at most kMostEpochs
  long long max_steps = 0;  // stop after this many, 0: no limit
  Schedule schedule = Schedule::kCosine;
  float lr = 0.1f;               // peak
  double warmup_epochs = 0;      // linear from 0
  float final_lr_factor = 0.0f;  // lr at the end / peak
  double step_epochs = 10;       // schedule step: epochs from one drop to the next
  float step_factor = 0.1f;      // schedule step: what a drop multiplies the rate with
  Optimizer optimizer = Optimizer::kSgd;
  float momentum = 0.9f;                                 // sgd
  bool nesterov = true;                                  // sgd
  float beta1 = 0.9f, beta2 = 0.999f, adam_eps = 1e-8f;  // adamw
  float clip_norm = 0.0f;                                // largest gradient norm, 0: no clipping
  float weight_decay = 5e-4f;  // on conv and linear weights; biases and batchnorm parameters have none
  float label_smoothing = 0.0f;
  int augment_pad = 4;
  PadMode augment_pad_mode = PadMode::kZero;
  Flip augment_flip = Flip::kRandom;
  int augment_cutout = 0;
  bool shuffle = true;
  std::vector<std::string> fusions_off;  // names of fusions that lower() must not do, "all" for every one
  std::vector<std::string> fusions_on;   // of those that it only does when told to
  int drain_every = 50;                  // steps between metric drains
  bool cuda_graph = true;
  bool nvtx_ranges = false;  // name each step to NVIDIA's tools; they see it without cuda_graph
};

// Averages over the steps since the last drain.
struct DrainRecord {
  long long step = 0;  // steps done
  double epoch = 0;    // epochs done, fractional
  double loss = 0, accuracy = 0;
  double lr = 0;
  double images_per_s = 0;
  long long skipped_updates = 0;   // not finite, since the start
  std::vector<float> step_losses;  // each step's mean loss since the last drain
};

struct EvalResult {
  double loss = 0, accuracy = 0;
  long long images = 0, correct = 0;
  double seconds = 0;
};

class Trainer {
 public:
  // Builds network, programs and device data. Throws Error for shapes that do not fit (naming the layer), for
  // implementations that do not support a layer, and for too little memory. `data` must outlive the trainer.
  Trainer(const NetworkDescription& network, const DataPair& data, const Device& device,
          const TrainOptions& options);
  ~Trainer();

  long long steps_per_epoch() const;  // ceil: an epoch is all the images, the last batch may be small
  long long total_steps() const;
  long long steps_done() const;  // by train() and, after load_state(), by the run that goes on
  long long parameter_count() const;

  // Trains to the end, or until on_drain returns false. May be called once.
  void train(const std::function<bool(const DrainRecord&)>& on_drain,
             const std::function<void(int epochs_done)>& on_epoch = {});
  // Before train(): has some of its steps profiled, which changes nothing of what they do, and gives the
  // result to `on_profile` (never where the run stops earlier). Throws Error where the run has too few steps.
  void profile(const ProfileOptions& options, std::function<void(const StepProfile&)> on_profile);
  EvalResult evaluate();  // all test images, running statistics

  // safetensors in PyTorch's names and layouts; written to a temporary name, then renamed.
  void save_weights(const std::string& path);
  // Throws Error for a file that is damaged or does not match (naming the first tensor, its shape and ours).
  void load_weights(const std::string& path);
  // Optimizer state, step and seed, beside the weights.
  void save_state(const std::string& path);
  void load_state(const std::string& path);

  // What lower() made: one line a step ("conv2d.fwd n512_... smem_tile", fusions named), for `--print-plan`.
  std::vector<std::string> plan_lines();
  // What --impl or the tuning cache named and did not get: "max_pool2d.fwd n512_...: vectorized (--impl's
  // cudnn: <rule>)".
  std::set<std::string> impl_notes();
  // "<op>.<pass> <problem> -> <implementation[:config]>", unique, for config.json.
  std::vector<std::pair<std::string, std::string>> chosen_impls();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kiln
