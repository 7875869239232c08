#include "nn/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "kernels/common/error.h"
#include "nn/trainer_state.h"

namespace kiln {
namespace {

constexpr int kStepSlots = 64;              // steps the host may be ahead of the device
constexpr long long kLeastEvalBatch = 500;  // a small training batch need not slow evaluation down

const TrainOptions& checked(const TrainOptions& o) {
  const auto rule = [](bool holds, const char* what) {
    if (!holds) fail_usage(std::string("training options: ") + what);
  };
  rule(o.batch >= 1, "batch must be at least 1");
  rule(o.eval_batch >= 0, "eval_batch must not be negative");
  rule(o.epochs >= 0 && o.epochs <= kMostEpochs, "epochs must be 0 to 1,000,000");
  rule(o.max_steps >= 0, "max_steps must not be negative");
  rule(std::isfinite(o.lr) && o.lr >= 0, "lr must be finite and not negative");
  rule(o.warmup_epochs >= 0, "warmup_epochs must not be negative");
  rule(o.final_lr_factor >= 0, "final_lr_factor must not be negative");
  rule(std::isfinite(o.step_epochs) && o.step_epochs > 0, "step_epochs must be above 0");
  rule(std::isfinite(o.step_factor) && o.step_factor >= 0, "step_factor must not be negative");
  rule(std::isfinite(o.clip_norm) && o.clip_norm >= 0, "clip_norm must be finite and not negative");
  rule(o.momentum >= 0 && o.momentum < 1, "momentum must be at least 0 and below 1");
  rule(o.weight_decay >= 0, "weight_decay must not be negative");
  rule(o.label_smoothing >= 0 && o.label_smoothing < 1, "label_smoothing must be at least 0 and below 1");
  rule(o.augment_pad >= 0 && o.augment_cutout >= 0, "augmentation sizes must not be negative");
  rule(o.drain_every >= 1, "drain_every must be at least 1");
  return o;
}

ShapedNetwork shaped_for(const NetworkDescription& description, const DataPair& data) {
  const Dataset& train = data.train;
  const Dataset& test = data.test;
  if (test.count() > 0 && (test.height != train.height || test.width != train.width ||
                           test.channels != train.channels || test.classes != train.classes)) {
    fail_usage("data set '" + train.name + "': training and test images differ in shape or classes");
  }
  return infer_shapes(description, {.h = train.height, .w = train.width, .c = train.channels}, train.classes);
}

}  // namespace

Trainer::State::State(const NetworkDescription& description, const DataPair& data, const Device& device,
                      const TrainOptions& wanted)
    : options(checked(wanted)),
      backend(make_backend(device)),
      network(backend.get(), shaped_for(description, data), options.precision, options.seed,
              options.optimizer, options.zero_init_residual),
      train(backend.get(), data.train, data.mean, data.std),
      batch(static_cast<int>(std::min<long long>(options.batch, train.count()))) {
  if (data.test.count() > 0)
    test = std::make_unique<ResidentData>(backend.get(), data.test, data.mean, data.std);
  const long long test_count = test ? test->count() : 1;
  const long long wanted_eval =
      options.eval_batch > 0 ? options.eval_batch : std::max<long long>(batch, kLeastEvalBatch);
  eval_batch = static_cast<int>(std::min(test_count, wanted_eval));
  step_state = backend->allocate(sizeof(StepState));
  train_ring = backend->allocate(sizeof(StepRecord) * options.drain_every);
  eval_ring = backend->allocate(sizeof(StepRecord) * eval_batches());
  step_uploads = backend->make_upload_ring(sizeof(StepState), kStepSlots);
  rate = {.schedule = options.schedule,
          .peak = options.lr,
          .final_factor = options.final_lr_factor,
          .warmup = options.warmup_epochs * static_cast<double>(steps_per_epoch()),
          .total = static_cast<double>(scheduled_steps()),
          .step_every = options.step_epochs * static_cast<double>(steps_per_epoch()),
          .step_factor = options.step_factor};
  position = {.step = 0, .seed = options.seed, .batch = batch, .train_images = train.count()};

  add_program(true, batch);
  add_program(true, batch_of_step(steps_per_epoch() - 1));
  if (test) {
    add_program(false, eval_batch);
    add_program(false, static_cast<int>(test->count() - (eval_batches() - 1) * eval_batch));
  }
  bind_programs();
}

long long Trainer::State::scheduled_steps() const {
  const double steps = std::ceil(options.epochs * static_cast<double>(steps_per_epoch()) - 1e-6);
  return std::max(static_cast<long long>(steps), options.epochs > 0 ? 1LL : 0LL);
}

long long Trainer::State::total_steps() const {
  return options.max_steps > 0 ? std::min(options.max_steps, scheduled_steps()) : scheduled_steps();
}

int Trainer::State::batch_of_step(long long step) const {
  const long long first = step % steps_per_epoch() * batch;
  return static_cast<int>(std::min<long long>(batch, train.count() - first));
}

long long Trainer::State::eval_batches() const {
  return test ? (test->count() + eval_batch - 1) / eval_batch : 1;
}

LowerOptions Trainer::State::lower_options(bool training, int size) const {
  LowerOptions o = {.batch = size,
                    .training = training,
                    .dtype = options.precision,
                    .fusions = Fusions::without(options.fusions_off, options.fusions_on),
                    .impl = options.impl,
                    .label_smoothing = training ? options.label_smoothing : 0.0f,
                    .optimizer = {.kind = options.optimizer,
                                  .weight_decay = options.weight_decay,
                                  .momentum = options.momentum,
                                  .nesterov = options.nesterov,
                                  .beta1 = options.beta1,
                                  .beta2 = options.beta2,
                                  .eps = options.adam_eps,
                                  .clip_norm = options.clip_norm},
                    .ring_capacity = static_cast<uint32_t>(training ? options.drain_every : eval_batches())};
  o.augment.m = training ? train.count() : test->count();
  if (training) {
    o.augment.pad = options.augment_pad;
    o.augment.pad_mode = options.augment_pad_mode;
    o.augment.flip = options.augment_flip;
    o.augment.cut = options.augment_cutout;
  }
  return o;
}

void Trainer::State::add_program(bool training, int size) {
  std::unique_ptr<Program>& program = programs[{training, size}];
  if (program) return;
  program = std::make_unique<Program>(backend.get(), lower(network.shaped(), network.layout(),
                                                           backend->device(), lower_options(training, size)));
  if (options.nvtx_ranges) program->show_ranges();
}

// One arena serves all programs: they run one after the other and leave nothing in it.
void Trainer::State::bind_programs() {
  size_t bytes = 0;
  for (const auto& [key, program] : programs) bytes = std::max(bytes, program->arena_bytes());
  try {
    arena = backend->allocate(bytes);
  } catch (const Error& error) {
    throw Error("network '" + network.shaped().description.name + "' at batch " + std::to_string(batch) +
                    " needs " + std::to_string(bytes >> 20) +
                    " MiB for activations; a smaller batch needs less: " + error.what(),
                error.kind());
  }
  for (const auto& [key, program] : programs) {
    Bases bases{};
    network.set_bases(&bases);
    (key.training ? train : *test).set_bases(&bases);
    bases[static_cast<size_t>(Home::kArena)] = arena.get();
    bases[static_cast<size_t>(Home::kStepState)] = step_state.get();
    bases[static_cast<size_t>(Home::kRing)] = (key.training ? train_ring : eval_ring).get();
    program->bind(bases);
  }
}

void Trainer::State::start_epoch() {
  const long long epoch = position.step / steps_per_epoch();
  if (epoch == order_epoch) return;
  train.start_epoch(position.seed, epoch, options.shuffle);
  order_epoch = epoch;
}

void Trainer::State::enqueue_step(const StepProfiler::Launch& launch) {
  const long long step = position.step;
  const StepState state = {.seed = position.seed,
                           .step = static_cast<uint32_t>(step),
                           .epoch = static_cast<uint32_t>(step / steps_per_epoch()),
                           .batch_offset = static_cast<uint32_t>(step % steps_per_epoch() * batch),
                           .lr = static_cast<float>(rate.at(step))};
  step_uploads->push(step_state.get(), &state, sizeof state);
  launch(programs.at({true, batch_of_step(step)}).get());
  network.count_batch();
  ++position.step;
}

void Trainer::State::launch_train_step() {
  if (profiler) return launch_profiled_step();
  start_epoch();
  enqueue_step([this](Program* program) { program->launch(options.cuda_graph); });
}

void Trainer::State::launch_profiled_step() {
  if (position.step / steps_per_epoch() != order_epoch) profiler->pause();  // the order's upload is no step
  start_epoch();
  profiler->step(programs.at({true, batch_of_step(position.step)}).get(),
                 [this](const StepProfiler::Launch& launch) { enqueue_step(launch); });
  if (profiler->done()) stop_profiling();
}

void Trainer::State::stop_profiling() {
  if (!profiler) return;
  profiler->stop();
  const std::optional<StepProfile> profile = profiler->take();
  profiler.reset();
  if (profile && on_profile) on_profile(*profile);
}

std::vector<StepRecord> Trainer::State::read_records(long long count) {
  const long long capacity = options.drain_every;
  std::vector<StepRecord> ring(capacity), records;
  backend->download(ring.data(), train_ring.get(), sizeof(StepRecord) * capacity);
  for (long long step = position.step - count; step < position.step; ++step) {
    records.push_back(ring[static_cast<uint32_t>(step) % static_cast<uint32_t>(capacity)]);
  }
  return records;
}

EvalResult Trainer::State::evaluate() {
  EvalResult result;
  if (!test) return result;
  const auto start = std::chrono::steady_clock::now();
  const auto size_of_batch = [&](long long i) {
    return std::min<long long>(eval_batch, test->count() - i * eval_batch);
  };
  for (long long i = 0; i < eval_batches(); ++i) {
    const StepState state = {.seed = position.seed,
                             .step = static_cast<uint32_t>(i),
                             .batch_offset = static_cast<uint32_t>(i * eval_batch)};
    step_uploads->push(step_state.get(), &state, sizeof state);
    programs.at({false, static_cast<int>(size_of_batch(i))})->launch(options.cuda_graph);
  }
  std::vector<StepRecord> ring(eval_batches());
  backend->download(ring.data(), eval_ring.get(), sizeof(StepRecord) * ring.size());
  double loss = 0;
  for (size_t i = 0; i < ring.size(); ++i) {
    loss += static_cast<double>(ring[i].loss) * static_cast<double>(size_of_batch(i));
    result.correct += std::llround(ring[i].correct);
  }
  result.images = test->count();
  result.loss = loss / static_cast<double>(result.images);
  result.accuracy = static_cast<double>(result.correct) / static_cast<double>(result.images);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace kiln
