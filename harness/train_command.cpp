// `kiln train`: one training run and its folder.
#include <CLI/CLI.hpp>
#include <ctime>
#include <filesystem>
#include <memory>

#include "harness/build_info.h"
#include "harness/commands.h"
#include "harness/interrupt.h"
#include "harness/nvml.h"
#include "harness/profile_report.h"
#include "harness/progress.h"
#include "harness/run_config.h"
#include "harness/run_folder.h"
#include "harness/run_measured.h"
#include "harness/train_options.h"
#include "harness/tuning.h"
#include "kernels/common/error.h"
#include "nn/trainer.h"

namespace kiln {
namespace {

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  return text;
}

// A run's name where --out gives none: "small_cnn-cuda-bf16-e20-s0".
std::string run_name(const std::string& network, const Device& device, const TrainOptions& o) {
  char epochs[32];
  std::snprintf(epochs, sizeof epochs, "%.6g", o.epochs);
  return network + "-" + (device.is_cuda() ? "cuda" : "cpu") + "-" + name_of(o.precision) + "-e" + epochs +
         "-s" + std::to_string(o.seed);
}

// One training run from parsed flags to exit status.
class Run {
 public:
  Run(const TrainFlags& flags, const std::string& command_line)
      : flags_(flags),
        command_line_(command_line),
        network_(flags.resume.empty() ? load_network(flags.common.model)
                                      : network_of_run(read_run_config("--resume", flags.resume))),
        device_(select_device(flags.common, stderr)),
        nvml_(device_.uuid) {
    const DType precision = select_precision(flags.common.precision, device_);
    options_ = make_train_options(flags, network_.name, device_, precision);
    options_.impl = select_impl(flags.common, device_, stderr);
    if (!flags.resume.empty()) {  // what the run was tuned to then, whatever a cache says now
      use_recorded(implementations_of_run(read_run_config("--resume", flags.resume)), &options_.impl);
    }
    choose_folder();
    data_ = load_images(flags.common, stderr);
    trainer_ = std::make_unique<Trainer>(network_, data_, device_, options_);
    for (const std::string& note : trainer_->impl_notes()) {
      std::fprintf(stderr, "note: %s\n", note.c_str());
    }
    if (!flags.resume.empty()) load_checkpoint();
    if (flags.profile && !flags.print_plan) {
      trainer_->profile(profile_options(device_, flags.profile_steps),
                        [this](const StepProfile& profile) { write_profile(profile); });
    }
  }

  int execute() {
    if (flags_.print_plan) {
      for (const std::string& line : trainer_->plan_lines()) std::printf("%s\n", line.c_str());
      return 0;
    }
    folder_ = std::make_unique<RunFolder>(in_place_ ? RunFolder::reopen(out_, measured_.first_step)
                                                    : RunFolder::create(out_, flags_.overwrite));
    folder_->write_json("config.json", config());
    std::printf("%s (%s parameters) on %s, %s; %s: %s training images, %s steps of %d\n",
                network_.name.c_str(),
                with_thousands(static_cast<double>(trainer_->parameter_count())).c_str(),
                device_.name.c_str(), name_of(options_.precision), data_.train.name.c_str(),
                with_thousands(static_cast<double>(data_.train.count())).c_str(),
                with_thousands(static_cast<double>(trainer_->total_steps())).c_str(), options_.batch);
    std::fflush(stdout);
    if (flags_.profile) find_ceilings();
    train();
    if (flags_.profile && !profiled_) std::printf("no profile: the run ended before it was complete\n");
    return stopped_ ? finish_interrupted() : finish();
  }

 private:
  void choose_folder() {
    std::error_code ignored;
    in_place_ = !flags_.resume.empty() &&
                (flags_.out.empty() || std::filesystem::equivalent(flags_.out, flags_.resume, ignored));
    out_ = in_place_            ? flags_.resume
           : flags_.out.empty() ? RunFolder::first_free("runs", run_name(network_.name, device_, options_))
                                : flags_.out;
    if (!flags_.print_plan) RunFolder::check(out_, flags_.overwrite || in_place_);
  }

  void load_checkpoint() {
    const std::filesystem::path run = flags_.resume;
    measured_.first_step = measured_.steps = steps_of_run(flags_.resume);
    if (measured_.first_step >= trainer_->total_steps()) {
      fail_usage("--resume '" + flags_.resume + "': its " + std::to_string(measured_.first_step) +
                 " steps are done; more --epochs would continue it");
    }
    trainer_->load_weights((run / "weights.safetensors").string());
    trainer_->load_state((run / "state.safetensors").string());
    if (trainer_->steps_done() != measured_.first_step) {
      fail_usage("--resume '" + flags_.resume +
                 "': its files are not of one checkpoint: state.safetensors is of step " +
                 std::to_string(trainer_->steps_done()) + ", summary.json of step " +
                 std::to_string(measured_.first_step));
    }
  }

  // Both files are complete on the disk before the first takes its name, and the summary's step comes last: a
  // run that dies between leaves one whole checkpoint or what load_checkpoint() refuses.
  void save_checkpoint() {
    const std::string weights = folder_->file("weights.safetensors"),
                      state = folder_->file("state.safetensors");
    const std::string fresh = ".new";
    std::error_code ignored;
    try {
      trainer_->save_weights(weights + fresh);
      trainer_->save_state(state + fresh);
    } catch (...) {
      for (const std::string& file : {weights, state}) std::filesystem::remove(file + fresh, ignored);
      throw;
    }
    for (const std::string& file : {state, weights}) {
      std::error_code error;
      std::filesystem::rename(file + fresh, file, error);
      if (error) fail_failure("cannot write '" + file + "': " + error.message());
    }
  }

  Json config() {
    Json implementations = Json::object();
    for (const auto& [pass, impl] : trainer_->chosen_impls()) implementations[pass] = impl;
    Json json = {{"format", 1},
                 {"kiln_version", version()},
                 {"commit", commit()},
                 {"command_line", command_line_},
                 {"started", utc_now()},
                 {"model", flags_.common.model},
                 {"device", device_json(device_, nvml_.driver_version())},
                 {"data", data_json(data_, flags_.common.data)},
                 {"options", options_json(options_)}};
    json["data"]["mean"] = data_.mean;
    json["data"]["std"] = data_.std;
    json["network"] = Json::parse(network_to_json(network_));
    json["implementations"] = implementations;
    json["plan"] = trainer_->plan_lines();
    return json;
  }

  void train() {
    Progress progress(stderr, trainer_->total_steps(), options_.epochs);
    progress_ = &progress;
    catch_interrupt();
    measured_.start = Clock::now();
    trainer_->train(
        [&](const DrainRecord& record) {
          const GpuSample gpu = nvml_.sample();
          measured_.add(record, gpu);
          folder_->append_metrics(metrics_line(record, measured_.train_seconds(), gpu));
          progress.update(record);
          stopped_ = interrupted();
          return !stopped_;
        },
        [&](int epochs) {
          progress.epoch_done(epochs);
          if (!stopped_ && flags_.eval_every > 0 && epochs % flags_.eval_every == 0 &&
              epochs < options_.epochs) {
            evaluate_between(epochs, progress);
          }
        });
    train_seconds_ = measured_.train_seconds();
  }

  void find_ceilings() {
    try {
      ceilings_ = measure_ceilings(device_);
    } catch (const Error& error) {  // the network may have left no memory for it
      std::fprintf(stderr, "note: the device's ceilings are not known: %s\n", error.what());
    }
  }

  void write_profile(const StepProfile& profile) {
    const Clock::time_point start = Clock::now();
    const ProfileReport report(profile, device_, options_.precision, ceilings_);
    folder_->write_json("profile.json", profile_json(report));
    write_file_atomically(folder_->file("trace.json"), chrome_trace(profile, device_.name).dump() + "\n");
    progress_->finish();
    std::printf("%sprofile: %s, %s\n", profile_text(report, flags_.profile_rows).c_str(),
                folder_->file("profile.json").c_str(), folder_->file("trace.json").c_str());
    std::fflush(stdout);
    profiled_ = true;
    measured_.eval_seconds += seconds_since(start);
  }

  void evaluate_between(int epochs, Progress& progress) {
    const Clock::time_point start = Clock::now();
    const EvalResult result = trainer_->evaluate();
    evaluations_.push_back(
        {{"epoch", epochs}, {"test_loss", result.loss}, {"test_accuracy", result.accuracy}});
    char text[96];
    std::snprintf(text, sizeof text, "epoch %d: test accuracy %.2f %%, test loss %.4f", epochs,
                  100 * result.accuracy, result.loss);
    progress.note(text);
    measured_.eval_seconds += seconds_since(start);
  }

  Json summary(bool stopped_early) {
    const double resumed_epochs =
        static_cast<double>(measured_.first_step) / static_cast<double>(trainer_->steps_per_epoch());
    const double images = (measured_.epochs - resumed_epochs) * static_cast<double>(data_.train.count());
    Json json = {{"format", 1},
                 {"network", network_.name},
                 {"device", device_.is_cuda() ? "cuda" : "cpu"},
                 {"device_name", device_.name},
                 {"precision", name_of(options_.precision)},
                 {"impl", options_.impl.str()},
                 {"seed", options_.seed},
                 {"data", data_.train.name},
                 {"train_images", data_.train.count()},
                 {"test_images", data_.test.count()},
                 {"parameters", trainer_->parameter_count()},
                 {"batch", options_.batch},
                 {"epochs", measured_.epochs},
                 {"steps", measured_.steps},
                 {"skipped_updates", measured_.skipped_updates},
                 {"train_loss", measured_.train_loss(trainer_->steps_per_epoch())},
                 {"train_seconds", train_seconds_},
                 {"images_per_s", train_seconds_ > 0 ? images / train_seconds_ : 0}};
    if (measured_.first_step) json["resumed_from_step"] = measured_.first_step;
    if (!evaluations_.empty()) json["evaluations"] = evaluations_;
    if (measured_.device_bytes) json["device_memory_used_bytes"] = measured_.device_bytes;
    if (const auto& m = measured_.gpu_utilization; m.count) json["gpu_utilization_pct"] = m.sum / m.count;
    if (const auto& m = measured_.gpu_power; m.count) json["gpu_power_w"] = m.sum / m.count;
    json["host_peak_bytes"] = peak_host_bytes();
    if (const std::string driver = nvml_.driver_version(); !driver.empty()) json["driver"] = driver;
    json["kiln_version"] = version();
    json["commit"] = commit();
    json["command_line"] = command_line_;
    json["finished"] = utc_now();
    json["interrupted"] = stopped_early;
    return json;
  }

  int finish() {
    const EvalResult result = trainer_->evaluate();
    save_checkpoint();
    Json json = summary(false);
    json["test_accuracy"] = result.accuracy;
    json["test_loss"] = result.loss;
    json["eval_seconds"] = result.seconds;
    json["eval_images_per_s"] = result.seconds > 0 ? static_cast<double>(result.images) / result.seconds : 0;
    folder_->write_json("summary.json", json);
    std::printf(
        "trained %s steps in %s s (%s images/s); test accuracy %.2f %% (%lld of %lld), test loss %.4f\n",
        with_thousands(static_cast<double>(measured_.steps)).c_str(), seconds_text().c_str(),
        with_thousands(json["images_per_s"].get<double>()).c_str(), 100 * result.accuracy, result.correct,
        result.images, result.loss);
    if (measured_.skipped_updates > 0) {
      std::printf("warning: %lld updates were skipped because a gradient was not finite\n",
                  measured_.skipped_updates);
    }
    std::printf("run folder: %s\n", folder_->path().c_str());
    return 0;
  }

  int finish_interrupted() {
    save_checkpoint();
    folder_->write_json("summary.json", summary(true));
    std::printf("interrupted after %lld steps; to go on: kiln train --resume %s\n", measured_.steps,
                folder_->path().c_str());
    return kInterruptedStatus;
  }

  std::string seconds_text() const {
    char text[32];
    std::snprintf(text, sizeof text, "%.2f", train_seconds_);
    return text;
  }

  TrainFlags flags_;
  std::string command_line_;
  NetworkDescription network_;
  const Device& device_;
  Nvml nvml_;
  TrainOptions options_;
  std::string out_;
  bool in_place_ = false;  // goes on in the resumed run's folder
  DataPair data_;
  std::unique_ptr<Trainer> trainer_;
  std::unique_ptr<RunFolder> folder_;
  RunMeasured measured_;
  Json evaluations_ = Json::array();  // of --eval-every
  double train_seconds_ = 0;
  bool stopped_ = false;  // by Ctrl-C
  Progress* progress_ = nullptr;
  Ceilings ceilings_;  // of --profile
  bool profiled_ = false;
};

}  // namespace

Command add_train_command(CLI::App& app, const std::string& command_line) {
  CLI::App* sub = app.add_subcommand("train", "train a network and write a run folder");
  auto flags = std::make_shared<TrainFlags>();
  add_train_options(*sub, *flags);
  return {sub, [flags, sub, command_line] {
            if (sub->count("--out") && flags->out.empty())
              fail_usage("--out is empty; it names the run's folder");
            if (!flags->resume.empty()) {
              if (sub->count("--model")) fail_usage("--model: a resumed run keeps its network");
              fill_from_run(read_run_config("--resume", flags->resume), sub->count("--seed") > 0,
                            flags.get());
            }
            return Run(*flags, command_line).execute();
          }};
}

}  // namespace kiln
