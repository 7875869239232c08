#include "kernels/augment/augment.h"

#include <algorithm>
#include <cstring>

#include "kernels/common/error.h"
#include "kernels/common/philox.h"
#include "kernels/common/problem_string.h"

namespace kiln {

Flip flip_from_name(const std::string& name) {
  for (const Flip known : {Flip::kNone, Flip::kRandom, Flip::kAlternate}) {
    if (name == name_of(known)) return known;
  }
  fail_usage(unknown_name_message("flip", name, {"random", "alternate", "none"}));
}

const char* name_of(Flip flip) {
  return flip == Flip::kNone ? "none" : flip == Flip::kRandom ? "random" : "alternate";
}

PadMode pad_mode_from_name(const std::string& name) {
  for (const PadMode known : {PadMode::kZero, PadMode::kReflect}) {
    if (name == name_of(known)) return known;
  }
  fail_usage(unknown_name_message("pad mode", name, {"zero", "reflect"}));
}

const char* name_of(PadMode mode) { return mode == PadMode::kZero ? "zero" : "reflect"; }

std::string AugmentProblem::str() const {
  ProblemWriter out;
  out.field("n", n).field("h", h).field("w", w).field("c", c).field("m", m);
  if (pad) out.field("pad", pad);
  out.flag("reflect", pad_mode == PadMode::kReflect);
  out.flag("flip", flip == Flip::kRandom).flag("altflip", flip == Flip::kAlternate);
  if (cut) out.field("cut", cut);
  if (c_stride) out.field("cs", c_stride);
  return out.str();
}

AugmentProblem AugmentProblem::parse(std::string_view text, DType dtype) {
  const ProblemReader in("augment", text, {"n", "h", "w", "c", "m", "pad", "cut", "cs"},
                         {"reflect", "flip", "altflip"});
  AugmentProblem p;
  p.n = static_cast<int>(in.integer("n"));
  p.h = static_cast<int>(in.integer("h"));
  p.w = static_cast<int>(in.integer("w", p.h));
  p.c = static_cast<int>(in.integer("c"));
  p.m = in.integer("m");
  p.pad = static_cast<int>(in.integer("pad", 0));
  p.pad_mode = in.flag("reflect") ? PadMode::kReflect : PadMode::kZero;
  p.flip = in.flag("altflip") ? Flip::kAlternate : in.flag("flip") ? Flip::kRandom : Flip::kNone;
  if (in.flag("altflip") && in.flag("flip")) {
    fail_problem("augment", std::string(text), "flip and altflip exclude each other");
  }
  p.cut = static_cast<int>(in.integer("cut", 0));
  p.c_stride = static_cast<int>(in.integer("cs", 0));
  p.dtype = dtype;
  p.validate();
  return p;
}

void AugmentProblem::validate() const {
  const std::string text = str();
  const auto rule = [&](bool holds, const char* what) {
    if (!holds) fail_problem("augment", text, what);
  };
  for (const auto& [name, value] : {std::pair{"n", 1LL * n}, {"h", h}, {"w", w}, {"c", c}, {"m", m}}) {
    require_positive("augment", text, name, value);
  }
  rule(dtype == DType::kF32 || dtype == DType::kBF16, "dtype must be fp32 or bf16");
  rule(n <= m, "a batch must not be larger than the data set: n at most m");
  // The draws are 16-bit: see uniform_below.
  rule(h <= 65535 && w <= 65535, "h and w must be at most 65535");
  rule(pad >= 0 && pad <= 32767, "pad must be 0 to 32767");
  rule(pad_mode == PadMode::kZero || (pad > 0 && pad < h && pad < w),
       "reflect needs a pad of at least 1, smaller than h and w");
  rule(cut >= 0 && cut <= 65535, "cut must be 0 to 65535");
  rule(c_stride == 0 || c_stride >= c, "cs must be at least c");
  require_indexable("augment", text, "of one image", {h, w, c});
  require_indexable("augment", text, "y", {n, h, w, y_channels()});
}

std::vector<TensorSpec> AugmentFwd::tensors(const AugmentProblem& p) {
  const int64_t step_bytes = static_cast<int64_t>(sizeof(StepState));
  return {
      {.name = "step", .shape = {step_bytes}, .dtype = DType::kU8, .fill = Fill::kDerived},
      {.name = "images", .shape = {p.m, p.h, p.w, p.c}, .dtype = DType::kU8, .fill = Fill::kBytes},
      {.name = "labels", .shape = {p.m}, .dtype = DType::kI32, .fill = Fill::kLabels, .limit = 10},
      {.name = "order", .shape = {p.m}, .dtype = DType::kI32, .fill = Fill::kDerived},
      {.name = "mean", .shape = {p.c}, .fill = Fill::kDerived},
      {.name = "std", .shape = {p.c}, .fill = Fill::kDerived},
      {.name = "y",
       .shape = {p.n, p.h, p.w, p.y_channels()},
       .dtype = p.dtype,
       .role = Role::kOut,
       .check = Check::kExact},
      {.name = "y_labels", .shape = {p.n}, .dtype = DType::kI32, .role = Role::kOut, .check = Check::kExact}};
}

double AugmentFwd::compulsory_bytes(const AugmentProblem& p) {
  const double pixels = 1.0 * p.n * p.h * p.w;
  const double per_image = 3.0 * size_of(DType::kI32);  // order, labels, y_labels
  return pixels * p.c + pixels * p.y_channels() * static_cast<double>(size_of(p.dtype)) + p.n * per_image +
         8.0 * p.c + sizeof(StepState);
}

void AugmentFwd::derive(const AugmentProblem& p, HostTensors& tensors) {
  constexpr uint64_t kSeed = 1;
  StepState step;
  step.seed = kSeed;
  step.epoch = 3;
  step.batch_offset = static_cast<uint32_t>((p.m - p.n + 1) / 2);  // not 0 where the data set leaves room
  step.step = static_cast<uint32_t>(step.epoch * (p.m / p.n));
  std::memcpy(tensors[0].data.data(), &step, sizeof step);

  int32_t* order = tensors[3].as<int32_t>();
  for (long long i = 0; i < p.m; ++i) order[i] = static_cast<int32_t>(i);
  for (long long i = p.m - 1; i > 0; --i) {
    const uint64_t bits = philox(kSeed, PhiloxStream::kTest, static_cast<uint64_t>(i)).v[0];
    std::swap(order[i], order[bits * static_cast<uint64_t>(i + 1) >> 32]);
  }
  float* mean = tensors[4].as<float>();  // near CIFAR-10's, different from channel to channel
  float* std = tensors[5].as<float>();
  for (int c = 0; c < p.c; ++c) {
    mean[c] = 0.49f - 0.015f * static_cast<float>(c % 8);
    std[c] = 0.24f + 0.01f * static_cast<float>(c % 5);
  }
}

}  // namespace kiln
