// batchnorm on all cores. Rows ([N*H*W] of C channels) are split over the threads in contiguous parts; a part
// goes through blocks of rows that stay in cache (two passes about the block's mean), and blocks and then
// parts are merged in order with the formula of Chan, Golub and LeVeque, "Updating formulae and a pairwise
// algorithm for computing sample variances" (1979). All of it is of x - pivot, where the pivot is the
// channel's first value: a mean far larger than the deviation then costs no digits. Inner loops run along the
// channels.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu_reference/cpu_support.h"
#include "kernels/batchnorm/batchnorm.h"
#include "kernels/batchnorm/batchnorm_math.h"

namespace kiln {
namespace {

constexpr int kBlockFloats = 8192;  // a block's part of x: 32 KiB

long long block_rows(const BatchnormProblem& p) { return std::max(16, kBlockFloats / p.c); }

// Parts of the rows, a function of the problem and the thread count alone.
int part_count(const BatchnormProblem& p) {
  const long long worth = p.per_channel() * p.c / kBlockFloats;
  return static_cast<int>(std::max(1LL, std::min({worth, p.per_channel(), 1LL * cpu_device().threads})));
}
long long part_begin(const BatchnormProblem& p, int part) { return p.per_channel() * part / part_count(p); }

// Mean of x - pivot and sum of squares about it, of `rows` rows.
KILN_CPU_CLONES void block_moments(const float* x,  // [rows,C]
                                   long long rows, int channels,
                                   const float* pivot,      // [C]
                                   float* __restrict mean,  // [C]
                                   float* __restrict m2,    // [C]
                                   float* __restrict rest)  // [C] scratch
{
  const float inverse = 1.0f / static_cast<float>(rows);
  std::fill_n(mean, channels, 0.0f);
  std::fill_n(m2, channels, 0.0f);
  std::fill_n(rest, channels, 0.0f);
  for (long long r = 0; r < rows; ++r) {
    for (int c = 0; c < channels; ++c) mean[c] += x[r * channels + c] - pivot[c];
  }
  for (int c = 0; c < channels; ++c) mean[c] *= inverse;
  for (long long r = 0; r < rows; ++r) {
    for (int c = 0; c < channels; ++c) {
      const float d = (x[r * channels + c] - pivot[c]) - mean[c];
      rest[c] += d;
      m2[c] += d * d;
    }
  }
  for (int c = 0; c < channels; ++c) {  // what rounding left out of the mean
    m2[c] = std::max(m2[c] - rest[c] * rest[c] * inverse, 0.0f);
    mean[c] += rest[c] * inverse;
  }
}

// (count, mean, m2) with (more, mean_b, m2_b) merged in.
KILN_CPU_CLONES void merge_moments(long long count, long long more, int channels,
                                   float* __restrict mean,          // [C]
                                   float* __restrict m2,            // [C]
                                   const float* __restrict mean_b,  // [C]
                                   const float* __restrict m2_b)    // [C]
{
  const float fraction = static_cast<float>(static_cast<double>(more) / static_cast<double>(count + more));
  const float weight = static_cast<float>(count) * fraction;
  for (int c = 0; c < channels; ++c) {
    const float delta = mean_b[c] - mean[c];
    mean[c] += delta * fraction;
    m2[c] += m2_b[c] + delta * weight * delta;
  }
}

KILN_CPU_CLONES void normalise_rows(const float* x,  // [rows,C]
                                    long long rows, int channels, bool relu,
                                    const float* mean,    // [C]
                                    const float* scale,   // [C]
                                    const float* beta,    // [C]
                                    float* __restrict y)  // [rows,C]
{
  for (long long r = 0; r < rows; ++r) {
    const float* row = x + r * channels;
    float* out = y + r * channels;
    for (int c = 0; c < channels; ++c) {
      out[c] = batchnorm_activate(batchnorm_pre(batchnorm_centre(row[c], mean[c]), scale[c], beta[c]), relu);
    }
  }
}

// Adds sum g and sum g * (x - mean) of `rows` rows.
KILN_CPU_CLONES void add_gradient_sums(const float* dy,  // [rows,C]
                                       const float* x,   // [rows,C]
                                       long long rows, int channels, bool relu,
                                       const float* mean,         // [C]
                                       const float* scale,        // [C]
                                       const float* beta,         // [C]
                                       float* __restrict block,   // [2,C] scratch
                                       double* __restrict total)  // [2,C]
{
  std::fill_n(block, 2LL * channels, 0.0f);
  float* __restrict sum_g = block;
  float* __restrict sum_gd = block + channels;
  for (long long r = 0; r < rows; ++r) {
    for (int c = 0; c < channels; ++c) {
      const float d = batchnorm_centre(x[r * channels + c], mean[c]);
      const bool passes = batchnorm_passes(batchnorm_pre(d, scale[c], beta[c]), relu);
      const float g = passes ? dy[r * channels + c] : 0.0f;
      sum_g[c] += g;
      sum_gd[c] += g * d;
    }
  }
  for (long long i = 0; i < 2LL * channels; ++i) total[i] += block[i];
}

// dx = scale * (g - mean_g - (x - mean) * slope)
KILN_CPU_CLONES void gradient_rows(const float* dy,  // [rows,C]
                                   const float* x,   // [rows,C]
                                   long long rows, int channels, bool relu,
                                   const float* mean,     // [C]
                                   const float* scale,    // [C]
                                   const float* beta,     // [C]
                                   const float* mean_g,   // [C]
                                   const float* slope,    // [C]
                                   float* __restrict dx)  // [rows,C]
{
  for (long long r = 0; r < rows; ++r) {
    for (int c = 0; c < channels; ++c) {
      const float d = batchnorm_centre(x[r * channels + c], mean[c]);
      const bool passes = batchnorm_passes(batchnorm_pre(d, scale[c], beta[c]), relu);
      const float g = passes ? dy[r * channels + c] : 0.0f;
      dx[r * channels + c] = scale[c] * (g - mean_g[c] - d * slope[c]);
    }
  }
}

void normalise(const BatchnormProblem& p, const float* x, const float* mean, const float* scale,
               const float* beta, float* y) {
#pragma omp parallel for schedule(static) if (part_count(p) > 1)
  for (int part = 0; part < part_count(p); ++part) {
    const long long begin = part_begin(p, part), rows = part_begin(p, part + 1) - begin;
    normalise_rows(x + begin * p.c, rows, p.c, p.relu, mean, scale, beta, y + begin * p.c);
  }
}

// Workspace of fwd_train: mean and m2 of each part, the same and scratch of its current block; scale.
size_t fwd_train_bytes(const BatchnormProblem& p) { return sizeof(float) * p.c * (5ull * part_count(p) + 1); }

void fwd_train(const BatchnormProblem& p, const BatchnormFwdTrain::Args& a, void* workspace) {
  const size_t channels = static_cast<size_t>(p.c);
  const int parts = part_count(p);
  const float* pivot = f32(a.x);                  // [C], the first row
  float* partial = f32(workspace);                // [parts,5,C]
  float* scale = partial + 5 * channels * parts;  // [C]
#pragma omp parallel for schedule(static) if (parts > 1)
  for (int part = 0; part < parts; ++part) {
    float* mean = partial + 5 * channels * part;
    float *m2 = mean + channels, *block = m2 + channels;
    const long long begin = part_begin(p, part), end = part_begin(p, part + 1);
    std::fill_n(mean, 2 * channels, 0.0f);
    for (long long row = begin; row < end; row += block_rows(p)) {
      const long long rows = std::min(block_rows(p), end - row);
      block_moments(f32(a.x) + row * p.c, rows, p.c, pivot, block, block + channels, block + 2 * channels);
      merge_moments(row - begin, rows, p.c, mean, m2, block, block + channels);
    }
  }
  float *mean = partial, *m2 = partial + channels;
  for (int part = 1; part < parts; ++part) {
    const float* other = partial + 5 * channels * part;
    merge_moments(part_begin(p, part), part_begin(p, part + 1) - part_begin(p, part), p.c, mean, m2, other,
                  other + channels);
  }
  const float inverse = static_cast<float>(1.0 / static_cast<double>(p.per_channel()));
  const float unbiased = static_cast<float>(batchnorm_unbiased(p.per_channel()));
  for (int c = 0; c < p.c; ++c) {
    const float var = m2[c] * inverse;
    float &running_mean = f32(a.running_mean)[c], &running_var = f32(a.running_var)[c];
    const float batch_mean = pivot[c] + mean[c];
    f32(a.saved_mean)[c] = batch_mean;
    f32(a.saved_rstd)[c] = batchnorm_rstd(var, p.eps);
    running_mean = (1.0f - p.momentum) * running_mean + p.momentum * batch_mean;
    running_var = (1.0f - p.momentum) * running_var + p.momentum * var * unbiased;
    scale[c] = batchnorm_scale(f32(a.gamma)[c], f32(a.saved_rstd)[c]);
  }
  normalise(p, f32(a.x), f32(a.saved_mean), scale, f32(a.beta), f32(a.y));
}

size_t channel_bytes(const BatchnormProblem& p) { return sizeof(float) * p.c; }

void fwd_apply(const BatchnormProblem& p, const BatchnormFwdApply::Args& a, void* workspace) {
  float* scale = f32(workspace);  // [C]
  for (int c = 0; c < p.c; ++c) scale[c] = batchnorm_scale(f32(a.gamma)[c], f32(a.rstd)[c]);
  normalise(p, f32(a.x), f32(a.mean), scale, f32(a.beta), f32(a.y));
}

void fwd_infer(const BatchnormProblem& p, const BatchnormFwdInfer::Args& a, void* workspace) {
  float* scale = f32(workspace);  // [C]
  for (int c = 0; c < p.c; ++c) {
    scale[c] = batchnorm_scale(f32(a.gamma)[c], batchnorm_rstd(f32(a.running_var)[c], p.eps));
  }
  normalise(p, f32(a.x), f32(a.running_mean), scale, f32(a.beta), f32(a.y));
}

// Workspace of bwd: sums of a part in double, a block's sums; scale, mean_g, slope.
size_t bwd_bytes(const BatchnormProblem& p) {
  return p.c * (2 * (sizeof(double) + sizeof(float)) * part_count(p) + 3 * sizeof(float));
}

void bwd(const BatchnormProblem& p, const BatchnormBwd::Args& a, void* workspace) {
  const size_t channels = static_cast<size_t>(p.c);
  const int parts = part_count(p);
  double* totals = static_cast<double*>(workspace);                         // [parts,2,C]
  float* blocks = reinterpret_cast<float*>(totals + 2 * channels * parts);  // [parts,2,C]
  float* scale = blocks + 2 * channels * parts;                             // [C]
  float *mean_g = scale + channels, *slope = scale + 2 * channels;          // [C]
  const float *dy = f32(a.dy), *x = f32(a.x), *mean = f32(a.saved_mean), *rstd = f32(a.saved_rstd);
  for (int c = 0; c < p.c; ++c) scale[c] = batchnorm_scale(f32(a.gamma)[c], rstd[c]);
#pragma omp parallel for schedule(static) if (parts > 1)
  for (int part = 0; part < parts; ++part) {
    double* total = totals + 2 * channels * part;
    const long long end = part_begin(p, part + 1);
    std::fill_n(total, 2 * channels, 0.0);
    for (long long row = part_begin(p, part); row < end; row += block_rows(p)) {
      add_gradient_sums(dy + row * p.c, x + row * p.c, std::min(block_rows(p), end - row), p.c, p.relu, mean,
                        scale, f32(a.beta), blocks + 2 * channels * part, total);
    }
  }
  for (int c = 0; c < p.c; ++c) {
    double dbeta = 0, dgamma = 0;
    for (int part = 0; part < parts; ++part) {
      dbeta += totals[2 * channels * part + c];
      dgamma += totals[2 * channels * part + channels + c];
    }
    dgamma *= rstd[c];
    f32(a.dbeta)[c] = static_cast<float>(dbeta);
    f32(a.dgamma)[c] = static_cast<float>(dgamma);
    mean_g[c] = static_cast<float>(dbeta / static_cast<double>(p.per_channel()));
    slope[c] = static_cast<float>(rstd[c] * dgamma / static_cast<double>(p.per_channel()));
  }
#pragma omp parallel for schedule(static) if (parts > 1)
  for (int part = 0; part < parts; ++part) {
    const long long begin = part_begin(p, part), rows = part_begin(p, part + 1) - begin;
    gradient_rows(dy + begin * p.c, x + begin * p.c, rows, p.c, p.relu, mean, scale, f32(a.beta), mean_g,
                  slope, f32(a.dx) + begin * p.c);
  }
}

}  // namespace

extern const Impl<BatchnormFwdTrain> batchnorm_fwd_train_cpu_fast =
    cpu_impl<BatchnormFwdTrain, fwd_train_bytes, fwd_train>("cpu_fast");
extern const Impl<BatchnormFwdApply> batchnorm_fwd_apply_cpu_fast =
    cpu_impl<BatchnormFwdApply, channel_bytes, fwd_apply>("cpu_fast");
extern const Impl<BatchnormFwdInfer> batchnorm_fwd_infer_cpu_fast =
    cpu_impl<BatchnormFwdInfer, channel_bytes, fwd_infer>("cpu_fast");
extern const Impl<BatchnormBwd> batchnorm_bwd_cpu_fast = cpu_impl<BatchnormBwd, bwd_bytes, bwd>("cpu_fast");

}  // namespace kiln
