#include "kernels/batchnorm/batchnorm.h"

#include <cmath>
#include <utility>

#include "kernels/batchnorm/batchnorm_math.h"
#include "kernels/common/philox.h"
#include "kernels/common/problem_string.h"

namespace kiln {
namespace {

constexpr std::pair<BatchnormAct, const char*> kActs[] = {{BatchnormAct::kRelu, "relu"},
                                                          {BatchnormAct::kRelu6, "relu6"},
                                                          {BatchnormAct::kGelu, "gelu"},
                                                          {BatchnormAct::kSilu, "silu"}};

TensorSpec image(const BatchnormProblem& p, const char* name, Role role = Role::kIn) {
  return {.name = name,
          .shape = {p.n, p.h, p.w, p.c},
          .dtype = p.dtype,
          .role = role,
          .check = Check::kReal,
          .terms = static_cast<double>(p.per_channel())};
}

TensorSpec channel(const BatchnormProblem& p, const char* name, Role role = Role::kIn,
                   Fill fill = Fill::kReal) {
  return {.name = name,
          .shape = {p.c},
          .role = role,
          .fill = fill,
          .check = Check::kReal,
          .terms = static_cast<double>(p.per_channel())};
}

// y, and its gradient.
TensorSpec pooled(const BatchnormProblem& p, const char* name, Role role) {
  TensorSpec spec = image(p, name, role);
  spec.shape = {p.n, p.out_h(), p.out_w(), p.c};
  return spec;
}

// dx is rstd times a difference of gradients. Few values a channel may lie close together, and rstd reaches
// 1/sqrt(eps). Of two values the difference is 0 but for eps: the terms are 1/(eps * rstd^2) times what
// remains.
TensorSpec input_gradient(const BatchnormProblem& p) {
  TensorSpec spec = image(p, "dx", Role::kOut);
  const long long m = p.per_channel();
  spec.magnitude = m >= 16 ? 4.0 : m == 2 ? 1.0 / p.eps : 1.0 / std::sqrt(p.eps);
  return spec;
}

TensorSpec residual(const BatchnormProblem& p) {
  return image(p, "residual", p.residual ? Role::kIn : Role::kAbsent);
}

// Read by backward, written by forward: `present` says which. Bits of no channel are 0.
TensorSpec mask(const BatchnormProblem& p, Role present) {
  return {.name = "mask",
          .shape = {p.n, p.h, p.w, p.mask_bytes_per_pixel()},
          .dtype = DType::kU8,
          .role = p.masked() ? present : Role::kAbsent,
          .fill = Fill::kDerived,
          .limit = p.act == BatchnormAct::kRelu6 ? 6 : 0,
          .check = Check::kMask};
}

// Read by backward, written by forward. Bits of no channel are 0.
TensorSpec arg(const BatchnormProblem& p, Role present) {
  return {.name = "arg",
          .shape = {p.n, p.out_h(), p.out_w(), p.arg_bytes_per_pixel()},
          .dtype = DType::kU8,
          .role = p.pool ? present : Role::kAbsent,
          .fill = Fill::kDerived,
          .check = Check::kOwn};
}

// A selection of dy.
TensorSpec residual_gradient(const BatchnormProblem& p) {
  TensorSpec spec = image(p, "dresidual", p.masked() ? Role::kOut : Role::kAbsent);
  spec.check = Check::kExact;
  return spec;
}

// Mean and biased variance of x, [N,H,W,C].
struct ChannelStatistics {
  std::vector<double> mean, var;

  ChannelStatistics(const BatchnormProblem& p, const float* x) : mean(p.c), var(p.c) {
    const long long elements = p.per_channel() * p.c;
    const double m = static_cast<double>(p.per_channel());
    for (long long i = 0; i < elements; ++i) mean[i % p.c] += x[i];
    for (int c = 0; c < p.c; ++c) mean[c] /= m;
    for (long long i = 0; i < elements; ++i) var[i % p.c] += (x[i] - mean[i % p.c]) * (x[i] - mean[i % p.c]);
    for (int c = 0; c < p.c; ++c) var[c] /= m;
  }
};

// Random bits in rows of `row` bytes, of which the last has `used` bits.
void fill_bits(unsigned char* bytes, long long rows, int row, int used, uint32_t stream) {
  const unsigned char last = static_cast<unsigned char>(0xff >> (8 - used));
  for (long long i = 0; i < rows * row; ++i) {
    const Philox4 draw = philox(1, PhiloxStream::kTest, static_cast<uint64_t>(i), stream);
    bytes[i] = static_cast<unsigned char>(draw.v[0] >> 24);
    if (i % row == row - 1) bytes[i] &= last;
  }
}

// The positions that a forward with these statistics must save: those of the activated values as the dtype
// stores them, by the shared fp32 arithmetic.
std::vector<unsigned char> positions_of(const BatchnormProblem& p,
                                        const float* x,      // [N,H,W,C]
                                        const float* gamma,  // [C]
                                        const float* beta,   // [C]
                                        const float* mean,   // [C]
                                        const float* rstd)   // [C]
{
  const BatchnormClamp clamp = batchnorm_clamp(p.act);
  std::vector<unsigned char> arg(static_cast<size_t>(p.n) * p.out_h() * p.out_w() * p.arg_bytes_per_pixel());
#pragma omp parallel for schedule(static)
  for (int n = 0; n < p.n; ++n) {
    for (int i = 0; i < p.out_h() * p.out_w(); ++i) {
      const BatchnormWindow at = batchnorm_window(p, n, i / p.out_w(), i % p.out_w());
      unsigned char* out = arg.data() + at.out * p.arg_bytes_per_pixel();
      for (int c = 0; c < p.c; ++c) {
        BatchnormMaximum best;
        for (int k = 0; k < 4; ++k) {
          const float centred = batchnorm_centre(x[at.pixel[k] * p.c + c], mean[c]);
          const float u = batchnorm_pre(centred, batchnorm_scale(gamma[c], rstd[c]), beta[c]);
          const float y = clamp.activate(u);
          best.take(p.dtype == DType::kBF16 ? round_to_bf16(y) : y, k);
        }
        out[c / 4] = static_cast<unsigned char>(out[c / 4] | best.position << c % 4 * 2);
      }
    }
  }
  return arg;
}

}  // namespace

std::string BatchnormProblem::str() const {
  ProblemWriter out;
  out.field("n", n).field("h", h).field("w", w).field("c", c).flag("res", residual);
  for (const auto& [value, name] : kActs) out.flag(name, act == value);
  out.flag("max2", pool);
  const BatchnormProblem defaults;
  if (eps != defaults.eps) out.real("eps", eps);
  if (momentum != defaults.momentum) out.real("mom", momentum);
  return out.str();
}

BatchnormProblem BatchnormProblem::parse(std::string_view text, DType dtype) {
  const ProblemReader in("batchnorm", text, {"n", "h", "w", "c", "eps", "mom"},
                         {"res", "relu", "relu6", "gelu", "silu", "max2"});
  BatchnormProblem p;
  p.n = static_cast<int>(in.integer("n"));
  p.h = static_cast<int>(in.integer("h", 1));
  p.w = static_cast<int>(in.integer("w", p.h));
  p.c = static_cast<int>(in.integer("c"));
  p.residual = in.flag("res");
  p.pool = in.flag("max2");
  for (const auto& [value, name] : kActs) {
    if (!in.flag(name)) continue;
    if (p.act != BatchnormAct::kNone) {
      fail_problem("batchnorm", std::string(text.substr(text.find(':') + 1)),
                   "has two activations, at most one goes");
    }
    p.act = value;
  }
  if (in.has("eps")) p.eps = static_cast<float>(in.real("eps", 0));
  if (in.has("mom")) p.momentum = static_cast<float>(in.real("mom", 0));
  p.dtype = dtype;
  p.validate();
  return p;
}

void BatchnormProblem::validate() const {
  const std::string text = str();
  const auto rule = [&](bool holds, const char* what) {
    if (!holds) fail_problem("batchnorm", text, what);
  };
  for (const auto& [name, value] : {std::pair{"n", n}, {"h", h}, {"w", w}, {"c", c}}) {
    require_positive("batchnorm", text, name, value);
  }
  rule(dtype == DType::kF32 || dtype == DType::kBF16, "dtype must be fp32 or bf16");
  rule(eps > 0 && std::isfinite(eps), "eps must be positive and finite");
  rule(momentum >= 0 && momentum <= 1, "mom must be within 0 and 1");
  rule(!residual || act == BatchnormAct::kNone || act == BatchnormAct::kRelu || act == BatchnormAct::kRelu6,
       "a residual goes with no activation, relu or relu6");
  rule(!pool || (!residual && !batchnorm_is_smooth(act)),
       "max2 goes with no activation, relu or relu6, and with no residual");
  rule(!pool || (h >= 2 && w >= 2), "max2 needs h and w of at least 2");
  require_indexable("batchnorm", text, "x", {n, h, w, c});
}

std::vector<TensorSpec> BatchnormFwdTrain::tensors(const BatchnormProblem& p) {
  return {image(p, "x"),
          channel(p, "gamma", Role::kIn, Fill::kPositive),
          channel(p, "beta"),
          residual(p),
          channel(p, "running_mean", Role::kInOut),
          channel(p, "running_var", Role::kInOut, Fill::kPositive),
          pooled(p, "y", Role::kOut),
          channel(p, "saved_mean", Role::kOut),
          channel(p, "saved_rstd", Role::kOut),
          mask(p, Role::kOut),
          arg(p, Role::kOut)};
}

std::vector<unsigned char> BatchnormFwdTrain::positions(const BatchnormProblem& p,
                                                        const std::vector<const void*>& tensors) {
  const auto at = [&](size_t i) { return static_cast<const float*>(tensors[i]); };
  return positions_of(p, at(0), at(1), at(2), at(7), at(8));
}

std::vector<TensorSpec> BatchnormFwdGiven::tensors(const BatchnormProblem& p) {
  return {image(p, "x"),
          channel(p, "gamma", Role::kIn, Fill::kPositive),
          channel(p, "beta"),
          residual(p),
          channel(p, "mean", Role::kIn, Fill::kDerived),
          channel(p, "var", Role::kIn, Fill::kDerived),
          channel(p, "running_mean", Role::kInOut),
          channel(p, "running_var", Role::kInOut, Fill::kPositive),
          pooled(p, "y", Role::kOut),
          channel(p, "saved_rstd", Role::kOut),
          mask(p, Role::kOut),
          arg(p, Role::kOut)};
}

void BatchnormFwdGiven::derive(const BatchnormProblem& p, HostTensors& tensors) {
  const ChannelStatistics statistics(p, tensors[0].as<float>());
  for (int c = 0; c < p.c; ++c) {
    tensors[4].as<float>()[c] = static_cast<float>(statistics.mean[c]);
    tensors[5].as<float>()[c] = static_cast<float>(statistics.var[c]);
  }
}

std::vector<unsigned char> BatchnormFwdGiven::positions(const BatchnormProblem& p,
                                                        const std::vector<const void*>& tensors) {
  const auto at = [&](size_t i) { return static_cast<const float*>(tensors[i]); };
  return positions_of(p, at(0), at(1), at(2), at(4), at(9));
}

std::vector<TensorSpec> BatchnormFwdApply::tensors(const BatchnormProblem& p) {
  TensorSpec y = pooled(p, "y", Role::kOut);
  y.terms = 1;
  return {image(p, "x"),
          channel(p, "gamma", Role::kIn, Fill::kPositive),
          channel(p, "beta"),
          channel(p, "mean"),
          channel(p, "rstd", Role::kIn, Fill::kPositive),
          residual(p),
          y};
}

std::vector<TensorSpec> BatchnormFwdInfer::tensors(const BatchnormProblem& p) {
  TensorSpec y = pooled(p, "y", Role::kOut);
  y.terms = 1;
  return {image(p, "x"),
          channel(p, "gamma", Role::kIn, Fill::kPositive),
          channel(p, "beta"),
          channel(p, "running_mean"),
          channel(p, "running_var", Role::kIn, Fill::kPositive),
          residual(p),
          y};
}

std::vector<TensorSpec> BatchnormBwd::tensors(const BatchnormProblem& p) {
  return {pooled(p, "dy", Role::kIn),
          image(p, "x"),
          channel(p, "gamma", Role::kIn, Fill::kPositive),
          channel(p, "beta"),
          channel(p, "saved_mean", Role::kIn, Fill::kDerived),
          channel(p, "saved_rstd", Role::kIn, Fill::kDerived),
          mask(p, Role::kIn),
          arg(p, Role::kIn),
          input_gradient(p),
          channel(p, "dgamma", Role::kOut),
          channel(p, "dbeta", Role::kOut),
          residual_gradient(p)};
}

void BatchnormBwd::derive(const BatchnormProblem& p, HostTensors& tensors) {
  const ChannelStatistics statistics(p, tensors[1].as<float>());
  for (int c = 0; c < p.c; ++c) {
    tensors[4].as<float>()[c] = static_cast<float>(statistics.mean[c]);
    tensors[5].as<float>()[c] = static_cast<float>(1.0 / std::sqrt(statistics.var[c] + p.eps));
  }
  if (p.masked()) {
    fill_bits(tensors[6].data.data(), p.per_channel(), p.mask_bytes_per_pixel(), (p.c - 1) % 8 + 1, 0);
  }
  if (p.pool) {
    fill_bits(tensors[7].data.data(), 1LL * p.n * p.out_h() * p.out_w(), p.arg_bytes_per_pixel(),
              2 * ((p.c - 1) % 4 + 1), 0);
  }
}

}  // namespace kiln
