// Properties of optimizer steps, the gradient's norm and augmentation.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/augment/augment.h"
#include "kernels/common/step_state.h"
#include "tests/support/properties.h"
#include "tests/support/random_problems.h"

namespace kiln {
namespace {

void scale(HostTensor& tensor, float factor) {
  float* values = tensor.as<float>();
  for (int64_t i = 0; i < tensor.spec.elements(); ++i) values[i] *= factor;
}

// Where the step is not finite nothing changes, to the bit.
std::string update_skipped(const Trial& trial) {
  Draws d(trial.seed + 8000009);
  const bool sgd = trial.op == "sgd";
  Probe probe(trial, "step",
              random_problem(trial.op, trial.seed) + "_wd0.01" + (sgd && d.chance(60) ? "_m0.9" : "") +
                  (d.chance(40) ? "_clip0.5" : ""),
              true);
  StepState step;
  std::memcpy(&step, probe.in("step").data.data(), sizeof step);
  step.finite = 0;
  std::memcpy(probe.in("step").data.data(), &step, sizeof step);
  for (const std::string& impl : probe.impls()) {
    const HostTensors out = probe.run(impl);
    for (const HostTensor& tensor : out) {
      if (tensor.spec.role != Role::kInOut) continue;
      if (tensor.data != probe.in(tensor.spec.name).data) {
        return probe.label(impl) + ": '" + tensor.spec.name + "' changed in a step that is not finite";
      }
    }
  }
  return "";
}

// Beyond the clipping norm the size of the gradient does not matter.
std::string update_clipped(const Trial& trial) {
  Probe plain(trial, "step", random_problem(trial.op, trial.seed) + "_wd0.01_clip0.25", true), scaled = plain;
  const HostTensor& grad = plain.in("grad");
  double squares = 0;
  for (int64_t i = 0; i < grad.spec.elements(); ++i) squares += value(grad, i) * value(grad, i);
  const float norm = static_cast<float>(std::sqrt(squares));
  const float factor = 8 * std::max(1.0f, 1 / norm);  // the scaled and the plain norm are both beyond 0.25
  scale(plain.in("grad"), factor);
  plain.in("norm").as<float>()[0] = norm * factor;
  scale(scaled.in("grad"), factor * 4);
  scaled.in("norm").as<float>()[0] = norm * factor * 4;
  for (const std::string& impl : plain.impls()) {
    const HostTensors out = plain.run(impl), out_scaled = scaled.run(impl);
    const HostTensor &before = plain.in("param"), &param = output(out, "param");
    for (int64_t i = 0; i < param.spec.elements(); ++i) {
      const double got = value(output(out_scaled, "param"), i), wanted = value(param, i);
      // 1e-6 in the clipping formula, against a norm of at least 8.
      const double tolerance = 4e-6 * (std::abs(wanted - value(before, i)) + std::abs(wanted)) + 1e-7;
      if (!near(got, wanted, tolerance)) {
        return differs(plain.label(impl), "param[" + std::to_string(i) + "] for a gradient 4 times as long",
                       got, wanted, tolerance);
      }
    }
  }
  return "";
}

// |2 g| = 2 |g|; |g|^2 is the sum over a part and the rest.
std::string norm_of_parts(const Trial& trial) {
  Draws d(trial.seed + 9000011);
  Probe whole(trial, "fwd", random_problem(trial.op, trial.seed), true), twice = whole, front = whole,
                                                                         back = whole;
  const int64_t n = whole.in("grad").spec.elements(), cut = d.below(static_cast<int>(n) + 1);
  scale(twice.in("grad"), 2);
  std::fill_n(front.in("grad").as<float>() + cut, n - cut, 0.0f);
  std::fill_n(back.in("grad").as<float>(), cut, 0.0f);
  for (const std::string& impl : whole.impls()) {
    const auto norm = [&](const Probe& probe) { return value(output(probe.run(impl), "norm"), 0); };
    const double all = norm(whole), tolerance = growth(static_cast<double>(n));
    if (!near(norm(twice), 2 * all, tolerance * all)) {
      return differs(whole.label(impl), "the norm of 2 g", norm(twice), 2 * all, tolerance * all);
    }
    const double parts = std::sqrt(std::pow(norm(front), 2) + std::pow(norm(back), 2));
    if (!near(parts, all, 3 * tolerance * all)) {
      return differs(whole.label(impl), "the norm of both parts", parts, all, 3 * tolerance * all);
    }
  }
  return "";
}

// Padding of 1 to 5, reflected where the image allows it.
std::string pad_of(const std::string& problem, Draws& d) {
  const AugmentProblem p = AugmentProblem::parse(problem, DType::kF32);
  const int pad = d.between(1, 5);
  return "_pad" + std::to_string(pad) + (pad < std::min(p.h, p.w) && d.chance(50) ? "_reflect" : "");
}

std::string augmentation(const Trial& trial, Draws& d, bool moves) {
  std::string text = random_problem(trial.op, trial.seed);
  if (moves && d.chance(60)) text += pad_of(text, d);
  if (moves && d.chance(40)) text += "_cut" + std::to_string(d.between(1, 6));
  if (d.chance(70)) text += d.chance(50) ? "_flip" : "_altflip";
  if (d.chance(30)) text += "_cs8";
  return text;
}

// Images `from` ... of `a` are images 0 ... of `b`, where `place` maps an element of one image of b to a's.
template <class Place>
std::string compare_images(const std::string& label, const HostTensor& a, const HostTensor& b, int64_t from,
                           const Place& place) {
  const int64_t n = a.spec.shape[0], size = a.spec.elements() / n;
  for (int64_t i = 0; i + from < n; ++i) {
    for (int64_t j = 0; j < size; ++j) {
      const double wanted = value(a, (i + from) * size + place(j)), got = value(b, i * size + j);
      if (!(got == wanted)) {
        return differs(label, "'" + a.spec.name + "' of image " + std::to_string(i), got, wanted, 0);
      }
    }
  }
  return "";
}

// What chance does to an image depends on its place in the epoch alone: a batch that begins one image later
// holds the same images, one place earlier.
std::string augment_batches(const Trial& trial) {
  Draws d(trial.seed + 10000019);
  Probe first(trial, "fwd", augmentation(trial, d, true)), second = first;
  StepState step;
  std::memcpy(&step, first.in("step").data.data(), sizeof step);
  step.batch_offset = 0;
  std::memcpy(first.in("step").data.data(), &step, sizeof step);
  step.batch_offset = 1;
  std::memcpy(second.in("step").data.data(), &step, sizeof step);
  for (const std::string& impl : first.impls()) {
    const HostTensors a = first.run(impl), b = second.run(impl);
    for (const char* name : {"y", "y_labels"}) {
      const std::string wrong =
          compare_images(first.label(impl), output(a, name), output(b, name), 1, [](int64_t j) { return j; });
      if (!wrong.empty()) return wrong;
    }
  }
  return "";
}

// Mirrored images give the mirrored output; without flips each pixel is normalised where it stands.
std::string augment_mirror(const Trial& trial) {
  Draws d(trial.seed + 11000027);
  const std::string text = augmentation(trial, d, false);
  const bool plain = text.find("flip") == std::string::npos;
  Probe straight(trial, "fwd", text), mirrored = straight;
  const std::vector<int64_t>& shape = straight.in("images").spec.shape;  // [M,H,W,C]
  const int64_t w = shape[2], c = shape[3], size = shape[1] * w * c;
  const auto mirror = [&](int64_t j, int64_t channels) {
    const int64_t column = j / channels % w;
    return j + (w - 1 - 2 * column) * channels;
  };
  const unsigned char* images = straight.in("images").data.data();
  for (int64_t i = 0; i < shape[0] * size; ++i)
    mirrored.in("images").data[static_cast<size_t>(mirror(i, c))] = images[i];
  StepState step;
  std::memcpy(&step, straight.in("step").data.data(), sizeof step);
  for (const std::string& impl : straight.impls()) {
    const HostTensors a = straight.run(impl), b = mirrored.run(impl);
    const HostTensor& y = output(a, "y");
    const int64_t stride = y.spec.shape[3];
    const std::string wrong = compare_images(straight.label(impl), y, output(b, "y"), 0,
                                             [&](int64_t j) { return mirror(j, stride); });
    if (!wrong.empty()) return wrong;
    for (int64_t i = 0; plain && i < y.spec.elements(); ++i) {
      const int64_t channel = i % stride, pixel = i / stride;
      double wanted = 0;
      if (channel < c) {
        const int64_t image = straight.in("order").as<int32_t>()[step.batch_offset + pixel / (size / c)];
        const double mean = value(straight.in("mean"), channel), std = value(straight.in("std"), channel);
        wanted = (images[image * size + pixel % (size / c) * c + channel] / 255.0 - mean) / std;
      }
      const double tolerance = straight.unit_rounding("y") * std::abs(wanted) + 32 * kFp32;
      if (!near(value(y, i), wanted, tolerance)) {
        return differs(straight.label(impl), "y[" + std::to_string(i) + "]", value(y, i), wanted, tolerance);
      }
    }
  }
  return "";
}

}  // namespace

std::vector<Property> update_properties() {
  std::vector<Property> list;
  for (const char* op : {"sgd", "adamw"}) {
    list.push_back({op, "skipped", {"step"}, update_skipped});
    list.push_back({op, "clipped", {"step"}, update_clipped});
  }
  list.push_back({"grad_norm", "parts", {"fwd"}, norm_of_parts});
  list.push_back({"augment", "batches", {"fwd"}, augment_batches, 2});
  list.push_back({"augment", "mirror", {"fwd"}, augment_mirror});
  return list;
}

}  // namespace kiln
