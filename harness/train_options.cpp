#include "harness/train_options.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>

#include "harness/number_flags.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr int kRecipeBatch = 512;  // a recipe's learning rate is for this batch and scales with it
constexpr int kDrainEveryCuda = 50,
              kDrainEveryCpu = 5;  // steps; a CPU step takes tens of milliseconds and more

template <class T>
void override_with(T& value, const std::optional<T>& given) {
  if (given) value = *given;
}

// 0.4f as 0.4, where a plain conversion gives 0.4000000059604645.
double decimal(float value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  double result = value;
  std::from_chars(text, end, result);
  return result;
}

void require_flag(bool holds, const std::string& flag, const std::string& rule) {
  if (!holds) fail_usage(flag + " " + rule);
}

void check_train_options(const TrainOptions& o, const TrainFlags& f) {
  require_flag(o.epochs > 0 && o.epochs <= kMostEpochs, "--epochs", "must be above 0, at most 1,000,000");
  require_flag(o.batch > 0, "--batch", "must be at least 1");
  require_flag(std::isfinite(o.lr) && o.lr >= 0, "--lr", "must be a number of at least 0");
  require_flag(o.warmup_epochs >= 0 && o.warmup_epochs <= o.epochs, "--warmup",
               "must be between 0 and --epochs");
  require_flag(o.momentum >= 0 && o.momentum < 1, "--momentum", "must be in [0, 1)");
  const bool sgd = o.optimizer == Optimizer::kSgd;
  require_flag(!sgd || !o.nesterov || o.momentum > 0, "--momentum 0", "needs --no-nesterov");
  require_flag(sgd || !f.momentum, "--momentum", "is for --optimizer sgd; adamw has --beta1 and --beta2");
  require_flag(sgd || !f.no_nesterov, "--no-nesterov", "is for --optimizer sgd");
  require_flag(!sgd || !f.beta1, "--beta1", "needs --optimizer adamw");
  require_flag(!sgd || !f.beta2, "--beta2", "needs --optimizer adamw");
  require_flag(!sgd || !f.adam_eps, "--adam-eps", "needs --optimizer adamw");
  require_flag(o.beta1 >= 0 && o.beta1 < 1, "--beta1", "must be in [0, 1)");
  require_flag(o.beta2 >= 0 && o.beta2 < 1, "--beta2", "must be in [0, 1)");
  require_flag(std::isfinite(o.adam_eps) && o.adam_eps > 0, "--adam-eps", "must be above 0");
  require_flag(std::isfinite(o.clip_norm) && o.clip_norm >= 0, "--clip-norm", "must be at least 0");
  const bool steps = o.schedule == Schedule::kStep;
  require_flag(steps || !f.step_epochs, "--step-epochs", "needs --schedule step");
  require_flag(steps || !f.step_factor, "--step-factor", "needs --schedule step");
  require_flag(std::isfinite(o.step_epochs) && o.step_epochs > 0, "--step-epochs", "must be above 0");
  require_flag(std::isfinite(o.step_factor) && o.step_factor >= 0 && o.step_factor <= 1, "--step-factor",
               "must be in [0, 1]");
  require_flag(std::isfinite(o.weight_decay) && o.weight_decay >= 0, "--weight-decay", "must be at least 0");
  require_flag(o.label_smoothing >= 0 && o.label_smoothing < 1, "--label-smoothing", "must be in [0, 1)");
  require_flag(o.augment_pad >= 0, "--pad", "must be at least 0");
  require_flag(o.augment_pad_mode == PadMode::kZero || o.augment_pad > 0, "--pad-mode reflect",
               "needs --pad above 0");
  require_flag(o.augment_cutout >= 0, "--cutout", "must be at least 0");
  require_flag(f.profile || !f.profile_steps, "--profile-steps", "needs --profile");
  require_flag(!f.profile || o.cuda_graph, "--profile",
               "measures the recorded step: not with --no-cuda-graph");
}

}  // namespace

TrainOptions recipe_for(const std::string& network, Optimizer optimizer) {
  const std::string suffix = kSmoothSuffix;
  const std::string name =
      network.ends_with(suffix) ? network.substr(0, network.size() - suffix.size()) : network;
  TrainOptions o;
  o.batch = kRecipeBatch;
  o.schedule = Schedule::kCosine;
  o.optimizer = optimizer;
  o.momentum = 0.9f;
  o.nesterov = true;
  o.weight_decay = 5e-4f;
  o.label_smoothing = 0.1f;
  o.augment_pad = 4;
  o.augment_flip = Flip::kRandom;
  if (name == "resnet18") {
    o.epochs = 30;
    o.batch = 256;
    o.lr = 0.4f;
    o.warmup_epochs = 2;
    o.weight_decay = 1e-3f;
    o.augment_flip = Flip::kAlternate;
    o.augment_cutout = 8;
  } else if (name == "mobilenet_v1" || name == "mobilenet_v2") {
    o.epochs = 30;
    o.lr = 0.4f;
    o.warmup_epochs = 5;
    o.weight_decay = 2e-4f;  // few weights a filter: they need less
  } else {
    o.epochs = 20;
    // Its head reads 2,048 features: a steeper start throws the weights where they do not come back from.
    o.lr = 0.1f;
    o.warmup_epochs = 4;
  }
  if (optimizer == Optimizer::kAdamw) {
    o.lr = 2e-3f;
    o.weight_decay = 0.05f;
  }
  return o;
}

void add_train_options(CLI::App& app, TrainFlags& f) {
  add_common_options(app, f.common);
  app.add_option("--out", f.out,
                 "run folder, new or empty (default: runs/<network>-<device>-<precision>-e<epochs>-s<seed>)");
  app.add_flag("--overwrite", f.overwrite, "replace the run that is in --out");
  app.add_option(
      "--resume", f.resume,
      "go on from the checkpoint in this run folder, with its network, data, seed and options where they are "
      "not named here; writes into the same folder unless --out names another");
  app.add_option("--seed", f.seed, "seed of initial weights, order and augmentation")
      ->check(seed_number())
      ->capture_default_str();
  const std::string recipe = "Recipe (defaults: small_cnn / resnet18 / mobilenets)";
  const auto option = [&](const char* name, auto& value, const char* text) {
    return app.add_option(name, value, text)->group(recipe);
  };
  option("--epochs", f.epochs, "passes over the training images, may be fractional (20 / 30 / 30)");
  option("--batch", f.batch, "images a step (512 / 256 / 512)");
  option("--lr", f.lr,
         "peak learning rate, for the mean gradient of a batch (0.1 / 0.4 / 0.4, adamw 0.002; times batch / "
         "512)");
  option("--schedule", f.schedule, "constant, cosine, one_cycle, linear or step (cosine)");
  option("--step-epochs", f.step_epochs,
         "schedule step: epochs from one drop to the next (a third of --epochs)");
  option("--step-factor", f.step_factor, "schedule step: what a drop multiplies the rate with (0.1)");
  option("--warmup", f.warmup, "epochs of linear warm-up from 0 (4 / 2 / 5, at most a quarter of --epochs)");
  option("--optimizer", f.optimizer, "sgd or adamw (sgd)");
  option("--momentum", f.momentum, "of sgd (0.9)");
  app.add_flag("--no-nesterov", f.no_nesterov, "sgd with plain momentum")->group(recipe);
  option("--beta1", f.beta1, "of adamw (0.9)");
  option("--beta2", f.beta2, "of adamw (0.999)");
  option("--adam-eps", f.adam_eps, "of adamw (1e-08)");
  option("--weight-decay", f.weight_decay,
         "on conv and linear weights (0.0005 / 0.001 / 0.0002; adamw 0.05)");
  option("--clip-norm", f.clip_norm, "largest norm of the whole gradient, 0: no clipping (0)");
  option("--label-smoothing", f.label_smoothing, "in [0, 1) (0.1)");
  option("--pad", f.pad, "random crop after padding by this many pixels (4)");
  option("--pad-mode", f.pad_mode,
         "what the padding shows: zero (the mean) or reflect, the image mirrored (zero)");
  option(
      "--flip", f.flip,
      "left-right mirroring: random, alternate (each image both ways in every two epochs) or none (random / "
      "alternate / random)");
  option("--cutout", f.cutout, "side of a random square set to the mean, pixels, 0: none (0 / 8 / 0)");
  app.add_flag("--zero-init-residual", f.zero_init_residual,
               "the last batchnorm of each residual branch starts with gamma 0")
      ->group(recipe);
  app.add_option("--max-steps", f.max_steps, "stop after this many steps (default: no limit)")
      ->check(above_zero());
  app.add_option("--eval-every", f.eval_every, "also evaluate after every N epochs; not in train_seconds")
      ->check(above_zero());
  app.add_option("--drain-every", f.drain_every,
                 "steps between lines of metrics.jsonl (50 on cuda, 5 on cpu)")
      ->check(above_zero());
  app.add_option(
         "--fusions-off", f.fusions_off,
         "rewrites of the network not to make, comma-separated; all: none is made (list: docs/engine.md)")
      ->delimiter(',')
      ->take_all();
  app.add_option("--fusions-on", f.fusions_on,
                 "rewrites to make wherever they can be, gain or not: conv_stats")
      ->delimiter(',')
      ->take_all();
  app.add_flag("--no-cuda-graph", f.no_cuda_graph, "launch kernels one by one, for profilers and debuggers");
  const std::string profiling = "Profiling (docs/profiling.md)";
  app.add_flag(
         "--profile", f.profile,
         "print where the time of a step goes, by layer and pass; profile.json and trace.json in the run "
         "folder")
      ->group(profiling);
  app.add_option("--profile-steps", f.profile_steps, "steps to measure (20 on cuda, 5 on cpu)")
      ->check(above_zero())
      ->group(profiling);
  app.add_option("--profile-rows", f.profile_rows, "rows of the printed table")
      ->check(zero_or_above())
      ->capture_default_str()
      ->group(profiling);
  app.add_flag("--nvtx", f.nvtx,
               "name each step (\"<layer> <pass>\") to Nsight and ncu; with --no-cuda-graph, on cuda")
      ->group(profiling);
  app.add_flag("--print-plan", f.print_plan, "print the steps, their problems and implementations, and stop");
  app.footer(
      "Examples:\n"
      "  kiln train                                     small_cnn on the built-in images\n"
      "  kiln train --data ~/cifar-10-batches-bin --out runs/first\n"
      "  kiln train --model resnet18 --data DIR --precision bf16 --epochs 30 --seed 1\n"
      "  kiln train --model docs/examples/lenet.json --optimizer adamw\n"
      "  kiln train --device cpu --train-images 2000 --epochs 2 --impl 'conv2d.*=cpu_naive'\n"
      "  kiln train --model resnet18 --profile --max-steps 60\n"
      "The run folder gets config.json, metrics.jsonl, summary.json, weights.safetensors, "
      "state.safetensors.\n"
      "Ctrl-C stops at the next line of metrics and writes a checkpoint for --resume (exit status 130).");
}

TrainOptions make_train_options(const TrainFlags& f, const std::string& network, const Device& device,
                                DType precision) {
  TrainOptions o = recipe_for(network, f.optimizer ? optimizer_from_name(*f.optimizer) : Optimizer::kSgd);
  o.precision = precision;
  o.seed = f.seed;
  o.max_steps = f.max_steps;
  o.drain_every = f.drain_every > 0 ? f.drain_every : device.is_cuda() ? kDrainEveryCuda : kDrainEveryCpu;
  o.fusions_off = f.fusions_off;
  o.fusions_on = f.fusions_on;
  o.cuda_graph = !f.no_cuda_graph;
  o.nvtx_ranges = f.nvtx;
  override_with(o.epochs, f.epochs);
  override_with(o.batch, f.batch);
  o.lr *= static_cast<float>(o.batch) / kRecipeBatch;
  override_with(o.lr, f.lr);
  override_with(o.momentum, f.momentum);
  override_with(o.beta1, f.beta1);
  override_with(o.beta2, f.beta2);
  override_with(o.adam_eps, f.adam_eps);
  override_with(o.clip_norm, f.clip_norm);
  override_with(o.weight_decay, f.weight_decay);
  override_with(o.label_smoothing, f.label_smoothing);
  override_with(o.augment_pad, f.pad);
  override_with(o.augment_cutout, f.cutout);
  if (f.schedule) o.schedule = schedule_from_name(*f.schedule);
  if (f.no_nesterov) o.nesterov = false;
  o.zero_init_residual = f.zero_init_residual;
  if (f.pad_mode) o.augment_pad_mode = pad_mode_from_name(*f.pad_mode);
  if (f.flip) o.augment_flip = flip_from_name(*f.flip);
  // A shorter run than the recipe's warms up for the same share of it.
  if (f.epochs) o.warmup_epochs = std::min(o.warmup_epochs, 0.25 * o.epochs);
  override_with(o.warmup_epochs, f.warmup);
  o.step_epochs = o.epochs / 3;
  override_with(o.step_epochs, f.step_epochs);
  override_with(o.step_factor, f.step_factor);
  require_flag(!f.nvtx || device.is_cuda(), "--nvtx", "needs --device cuda");
  check_train_options(o, f);
  return o;
}

nlohmann::ordered_json options_json(const TrainOptions& o) {
  nlohmann::ordered_json json = {{"precision", name_of(o.precision)},
                                 {"impl", o.impl.str()},
                                 {"seed", o.seed},
                                 {"batch", o.batch},
                                 {"epochs", o.epochs},
                                 {"max_steps", o.max_steps},
                                 {"schedule", name_of(o.schedule)},
                                 {"lr", decimal(o.lr)},
                                 {"warmup_epochs", o.warmup_epochs},
                                 {"final_lr_factor", decimal(o.final_lr_factor)},
                                 {"optimizer", name_of(o.optimizer)},
                                 {"weight_decay", decimal(o.weight_decay)},
                                 {"clip_norm", decimal(o.clip_norm)},
                                 {"label_smoothing", decimal(o.label_smoothing)},
                                 {"pad", o.augment_pad},
                                 {"pad_mode", name_of(o.augment_pad_mode)},
                                 {"flip", name_of(o.augment_flip)},
                                 {"cutout", o.augment_cutout},
                                 {"zero_init_residual", o.zero_init_residual},
                                 {"shuffle", o.shuffle},
                                 {"fusions_off", o.fusions_off},
                                 {"fusions_on", o.fusions_on},
                                 {"drain_every", o.drain_every},
                                 {"cuda_graph", o.cuda_graph}};
  if (o.optimizer == Optimizer::kSgd) {
    json["momentum"] = decimal(o.momentum);
    json["nesterov"] = o.nesterov;
  } else {
    json["beta1"] = decimal(o.beta1);
    json["beta2"] = decimal(o.beta2);
    json["adam_eps"] = decimal(o.adam_eps);
  }
  if (o.schedule == Schedule::kStep) {
    json["step_epochs"] = o.step_epochs;
    json["step_factor"] = decimal(o.step_factor);
  }
  return json;
}

}  // namespace kiln
