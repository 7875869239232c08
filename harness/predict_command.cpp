// `kiln predict`: which classes image files show.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <memory>

#include "harness/commands.h"
#include "harness/count_progress.h"
#include "harness/image_file.h"
#include "harness/number_flags.h"
#include "harness/predict_model.h"
#include "kernels/common/error.h"
#include "nn/inference.h"

namespace kiln {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct PredictFlags {
  PredictModelFlags model;
  std::vector<std::string> files;
  int top = 5, batch = 256;
  bool json = false, no_fold = false, skip_bad = false;
};

// Every image at the network's size, and what is wrong with the files that could not be read.
struct Images {
  std::vector<std::string> files;   // the good ones, in the order given
  std::vector<uint8_t> pixels;      // [files, h, w, c]
  std::vector<std::string> errors;  // of the bad ones
  std::vector<std::string> bad;     // [errors]
};

void refuse_folders(const std::vector<std::string>& files) {
  for (const std::string& file : files) {
    std::error_code error;
    if (fs::is_directory(file, error)) {
      fail_usage("'" + file + "' is a folder; name the image files in it, for example " +
                 (fs::path(file) / "*.png").string());
    }
  }
}

Images read_images(const std::vector<std::string>& files, const ValueShape& shape) {
  const size_t image_bytes = static_cast<size_t>(shape.elements());
  std::vector<uint8_t> pixels(files.size() * image_bytes);
  std::vector<std::string> errors(files.size());
  CountProgress progress(stderr, "images read", static_cast<long long>(files.size()));
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 8)
  for (size_t i = 0; i < files.size(); ++i) {
    try {
      const Image image = resize_image(read_image(files[i], shape.c), shape.h, shape.w);
      std::copy(image.pixels.begin(), image.pixels.end(), pixels.begin() + i * image_bytes);
    } catch (const Error& error) {
      errors[i] = error.what();
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
#pragma omp critical
    progress.add(1);
  }
  progress.finish();
  if (failure) std::rethrow_exception(failure);

  Images result;
  size_t good = 0;
  for (size_t i = 0; i < files.size(); ++i) {
    if (!errors[i].empty()) {
      result.errors.push_back(errors[i]);
      result.bad.push_back(files[i]);
      continue;
    }
    const auto image = pixels.begin() + static_cast<std::ptrdiff_t>(i * image_bytes);
    if (good != i) std::copy(image, image + image_bytes, pixels.begin() + good * image_bytes);
    result.files.push_back(files[i]);
    ++good;
  }
  pixels.resize(good * image_bytes);
  result.pixels = std::move(pixels);
  return result;
}

// Bad files are an error, or with --skip-bad a line each.
void report_bad(const Images& images, bool skip_bad) {
  if (images.errors.empty()) return;
  const std::string all = std::to_string(images.files.size() + images.errors.size());
  if (!skip_bad) {
    fail_usage(images.errors.front() +
               (images.errors.size() == 1
                    ? ""
                    : "; " + std::to_string(images.errors.size()) + " of " + all + " files cannot be read") +
               "; --skip-bad leaves such files out");
  }
  for (const std::string& error : images.errors) std::fprintf(stderr, "skipped: %s\n", error.c_str());
  if (images.files.empty()) fail_usage("none of the " + all + " files can be read");
}

struct Prediction {
  size_t index;
  double probability;
};

// The softmax's `top` largest, largest first; of equal ones the first class first.
std::vector<Prediction> top_predictions(const float* logits, size_t classes, size_t top,
                                        const std::string& file) {
  const double largest = *std::max_element(logits, logits + classes);
  double sum = 0;
  std::vector<Prediction> all;
  for (size_t i = 0; i < classes; ++i) {
    if (!std::isfinite(logits[i])) fail_failure(file + ": the network's logits are not finite");
    all.push_back({i, std::exp(logits[i] - largest)});
    sum += all.back().probability;
  }
  for (Prediction& p : all) p.probability /= sum;
  std::stable_sort(all.begin(), all.end(),
                   [](const Prediction& a, const Prediction& b) { return a.probability > b.probability; });
  all.resize(std::min(top, classes));
  return all;
}

void print_text(const PredictModel& model, const std::string& file, const std::vector<Prediction>& found) {
  if (found.size() == 1) {
    std::printf("%s: %s %.2f %%\n", file.c_str(), model.class_name(found[0].index).c_str(),
                100 * found[0].probability);
    return;
  }
  std::printf("%s\n", file.c_str());
  for (const Prediction& p : found) {
    std::printf("  %6.2f %%  %s\n", 100 * p.probability, model.class_name(p.index).c_str());
  }
}

Json predictions_json(const PredictModel& model, const std::vector<Prediction>& found) {
  Json list = Json::array();
  for (const Prediction& p : found) {
    list.push_back(
        {{"class", model.class_name(p.index)}, {"index", p.index}, {"probability", p.probability}});
  }
  return list;
}

DType precision_for(const PredictFlags& f, const PredictModel& model, const Device& device) {
  std::string name = f.model.common.precision;
  if (name.empty() && device.is_cuda()) name = model.precision;
  return select_precision(name, device);
}

int predict(const PredictFlags& f) {
  refuse_folders(f.files);
  const PredictModel model = find_predict_model(f.model);
  const Device& device = select_device(f.model.common, stderr);
  const DType precision = precision_for(f, model, device);
  InferenceSession session(
      model.network, model.weights, model.input, model.classes, model.mean, model.std, device,
      {.precision = precision, .impl = select_impl(f.model.common, device, stderr), .fold = !f.no_fold});
  const Images images = read_images(f.files, model.input);
  report_bad(images, f.skip_bad);

  const size_t count = images.files.size(), classes = static_cast<size_t>(model.classes);
  const size_t image_bytes = static_cast<size_t>(model.input.elements());
  std::vector<float> logits;
  CountProgress progress(stderr, "images", static_cast<long long>(count));
  const auto start = std::chrono::steady_clock::now();
  for (size_t first = 0; first < count; first += static_cast<size_t>(f.batch)) {
    const long long here = std::min<long long>(f.batch, static_cast<long long>(count - first));
    const std::vector<float> part =
        session.predict(images.pixels.data() + first * image_bytes, here, f.batch);
    logits.insert(logits.end(), part.begin(), part.end());
    progress.add(here);
  }
  progress.finish();
  for (const std::string& note : session.impl_notes()) std::fprintf(stderr, "note: %s\n", note.c_str());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();

  Json list = Json::array();
  for (size_t i = 0; i < count; ++i) {
    const std::vector<Prediction> found =
        top_predictions(logits.data() + i * classes, classes, static_cast<size_t>(f.top), images.files[i]);
    if (f.json) {
      list.push_back({{"file", images.files[i]}, {"predictions", predictions_json(model, found)}});
    } else {
      print_text(model, images.files[i], found);
    }
  }
  if (!f.json) return 0;
  Json skipped = Json::array();
  for (size_t i = 0; i < images.bad.size(); ++i) {
    skipped.push_back({{"file", images.bad[i]}, {"error", images.errors[i]}});
  }
  const Json json = {
      {"network", model.network.name},
      {"weights", model.weights},
      {"device", device_json(device, "")},
      {"precision", name_of(precision)},
      {"batchnorm_folded", !f.no_fold},
      {"batch", f.batch},
      {"input", {{"height", model.input.h}, {"width", model.input.w}, {"channels", model.input.c}}},
      {"classes", model.classes},
      {"seconds", seconds},
      {"images", list},
      {"skipped", skipped}};
  std::printf("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  return 0;
}

}  // namespace

Command add_predict_command(CLI::App& app) {
  CLI::App* sub = app.add_subcommand("predict", "the most likely classes of image files");
  auto flags = std::make_shared<PredictFlags>();
  PredictFlags& f = *flags;
  sub->add_option("images", f.files,
                  "PNG, JPEG, PPM or PGM files; another size is resized as `kiln import` does (antialiased, "
                  "squeezed), grey and colour are converted to what the network takes")
      ->required()
      ->type_name("IMAGE")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  add_predict_model_options(*sub, f.model);
  sub->add_option("--top", f.top, "classes printed for each image")
      ->check(above_zero())
      ->capture_default_str();
  sub->add_option("--batch", f.batch, "images that run at once; beyond rounding it changes no result")
      ->check(above_zero())
      ->capture_default_str();
  sub->add_flag("--json", f.json, "print one JSON object");
  sub->add_flag(
      "--no-fold", f.no_fold,
      "keep batch normalisations as steps of their own (they are folded into the layers before them)");
  sub->add_flag("--skip-bad", f.skip_bad, "leave out files that cannot be read, and list them");
  sub->footer(
      "Examples:\n"
      "  kiln predict --run runs/first cat.png dog.jpg\n"
      "  kiln predict --run runs/first --top 1 photos/*.png\n"
      "  kiln predict --checkpoint w.safetensors --model resnet18 --data cifar10 --json cat.png\n"
      "  kiln predict --checkpoint w.safetensors --classes cat,dog --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25 "
      "cat.png");
  return {sub, [flags, sub] {
            flags->model.model_given = sub->count("--model") > 0;
            return predict(*flags);
          }};
}

}  // namespace kiln
