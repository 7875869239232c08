// batchnorm forward on all cores. Rows ([N*H*W] of C channels) are split over the threads in contiguous
// parts; a part goes through blocks of rows that stay in cache (two passes about the block's mean), and
// blocks and then parts are merged in order with the formula of Chan, Golub and LeVeque, "Updating formulae
// and a pairwise algorithm for computing sample variances" (1979). All of it is of x - pivot, where the pivot
// is the channel's first value: a mean far larger than the deviation then costs no digits. Inner loops run
// along the channels.
#include "cpu_reference/batchnorm_fast.h"

namespace kiln {
namespace {

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

// (count, mean, m2) with (more, mean_b, m2_b) merged in; in double, as merges are long chains.
template <class T>
KILN_CPU_CLONES void merge_moments(long long count, long long more, int channels,
                                   double* __restrict mean,     // [C]
                                   double* __restrict m2,       // [C]
                                   const T* __restrict mean_b,  // [C]
                                   const T* __restrict m2_b)    // [C]
{
  const double fraction = static_cast<double>(more) / static_cast<double>(count + more);
  const double weight = static_cast<double>(count) * fraction;
  for (int c = 0; c < channels; ++c) {
    const double delta = mean_b[c] - mean[c];
    mean[c] += delta * fraction;
    m2[c] += m2_b[c] + delta * weight * delta;
  }
}

// y = act((x - mean) * scale + beta + residual); residual may be null.
template <class Lane>
KILN_CPU_CLONES void normalise_rows(const float* x,         // [rows,C]
                                    const float* residual,  // [rows,C]
                                    long long rows, int channels, Lane lane,
                                    const float* mean,    // [C]
                                    const float* scale,   // [C]
                                    const float* beta,    // [C]
                                    float* __restrict y)  // [rows,C]
{
  for (long long r = 0; r < rows; ++r) {
    const float* row = x + r * channels;
    float* __restrict out = y + r * channels;
    if (residual) {
      const float* added = residual + r * channels;
      for (int c = 0; c < channels; ++c) {
        const float pre = batchnorm_pre(batchnorm_centre(row[c], mean[c]), scale[c], beta[c]);
        out[c] = lane.fwd(batchnorm_join(pre, added[c]));
      }
    } else {
      for (int c = 0; c < channels; ++c) {
        out[c] = lane.fwd(batchnorm_pre(batchnorm_centre(row[c], mean[c]), scale[c], beta[c]));
      }
    }
  }
}

KILN_CPU_CLONES void mask_rows(const float* y,  // [rows,C]
                               long long rows, int channels, BatchnormClamp clamp,
                               unsigned char* __restrict mask)  // [rows,ceil(C/8)]
{
  for (long long r = 0; r < rows; ++r) {
    const float* row = y + r * channels;
    for (int c = 0; c < channels; c += 8) {
      const int here = std::min(8, channels - c);
      unsigned bits = 0;
      for (int j = 0; j < here; ++j) bits |= static_cast<unsigned>(clamp.passes(row[c + j])) << j;
      *mask++ = static_cast<unsigned char>(bits);
    }
  }
}

// The maxima of one row of windows over two rows of activated values, and their positions.
KILN_CPU_CLONES void pool_rows(const float* upper,  // [W,C]
                               const float* lower,  // [W,C]
                               int windows, int channels,
                               float* __restrict y,                  // [windows,C]
                               unsigned char* __restrict positions)  // [windows,C]
{
  for (int q = 0; q < windows; ++q) {
    const long long left = 2LL * q * channels;
    for (int c = 0; c < channels; ++c) {
      const float values[4] = {upper[left + c], upper[left + channels + c], lower[left + c],
                               lower[left + channels + c]};
      float best = values[0];
      unsigned char position = 0;
      for (int k = 1; k < 4; ++k) {
        const bool more = (values[k] > best) | (values[k] != values[k]);
        best = more ? values[k] : best;
        position = more ? static_cast<unsigned char>(k) : position;
      }
      y[1LL * q * channels + c] = best;
      positions[1LL * q * channels + c] = position;
    }
  }
}

// Four positions a byte, unused bits 0.
void pack_positions(const unsigned char* positions,  // [pixels,C]
                    long long pixels, int channels,
                    unsigned char* arg)  // [pixels,ceil(C/4)]
{
  for (long long i = 0; i < pixels; ++i) {
    for (int c = 0; c < channels; c += 4) {
      unsigned bits = 0;
      for (int j = 0; j < std::min(4, channels - c); ++j) bits |= positions[i * channels + c + j] << 2 * j;
      *arg++ = static_cast<unsigned char>(bits);
    }
  }
}

// Floats of scratch a thread needs to pool: two rows of values, the positions of a row of windows.
size_t pool_floats(const BatchnormProblem& p) {
  const size_t row = static_cast<size_t>(p.w) * p.c;
  return p.pool ? 2 * row + (row + 3) / 4 : 0;
}
size_t pool_bytes(const BatchnormProblem& p) {
  return sizeof(float) * pool_floats(p) * static_cast<size_t>(std::max(1, cpu_device().threads));
}

// normalise() with windows of 2x2 behind it; scratch: pool_bytes(). arg may be null.
void normalise_windows(const BatchnormProblem& p, const float* x, const float* mean, const float* scale,
                       const float* beta, float* y, unsigned char* arg, float* scratch) {
  const long long rows = 1LL * p.n * p.out_h(), row = 1LL * p.w * p.c;
  const int parts = static_cast<int>(std::min<long long>(rows, std::max(1, cpu_device().threads)));
  const BatchnormClampLane lane = {batchnorm_clamp(p.act)};
#pragma omp parallel for schedule(static) if (parts > 1)
  for (int part = 0; part < parts; ++part) {
    float* values = scratch + part * pool_floats(p);  // [2,W,C]
    auto* positions = reinterpret_cast<unsigned char*>(values + 2 * row);
    for (long long i = rows * part / parts; i < rows * (part + 1) / parts; ++i) {
      const long long first = i / p.out_h() * p.h + i % p.out_h() * 2, out = i * p.out_w();
      normalise_rows(x + first * row, nullptr, 2LL * p.w, p.c, lane, mean, scale, beta, values);
      pool_rows(values, values + row, p.out_w(), p.c, y + out * p.c, positions);
      if (arg) pack_positions(positions, p.out_w(), p.c, arg + out * p.arg_bytes_per_pixel());
    }
  }
}

// mask: [N,H,W,ceil(C/8)], null where it is not wanted; arg, [N,H/2,W/2,ceil(C/4)], likewise.
void normalise(const BatchnormProblem& p, const float* x, const float* residual, const float* mean,
               const float* scale, const float* beta, float* y, float* scratch, unsigned char* mask = nullptr,
               unsigned char* arg = nullptr) {
  if (p.pool) return normalise_windows(p, x, mean, scale, beta, y, arg, scratch);
  const int parts = batchnorm_parts(p);
#pragma omp parallel for schedule(static) if (parts > 1)
  for (int part = 0; part < parts; ++part) {
    const long long end = batchnorm_part_begin(p, part + 1);
    for (long long row = batchnorm_part_begin(p, part); row < end; row += batchnorm_block_rows(p)) {
      const long long rows = std::min(batchnorm_block_rows(p), end - row), at = row * p.c;
      with_batchnorm_lane(p.act, [&](auto lane) {
        normalise_rows(x + at, residual ? residual + at : nullptr, rows, p.c, lane, mean, scale, beta,
                       y + at);
      });
      if (mask) {
        mask_rows(y + at, rows, p.c, batchnorm_clamp(p.act), mask + row * p.mask_bytes_per_pixel());
      }
    }
  }
}

// The running statistics after a batch.
void update_running(const BatchnormProblem& p, float mean, float var, float& running_mean,
                    float& running_var) {
  const float unbiased = static_cast<float>(batchnorm_unbiased(p.per_channel()));
  running_mean = (1.0f - p.momentum) * running_mean + p.momentum * mean;
  running_var = (1.0f - p.momentum) * running_var + p.momentum * var * unbiased;
}

// Workspace of fwd_train: mean and m2 of each part; the same and scratch of its current block; scale;
// pooling.
size_t fwd_train_bytes(const BatchnormProblem& p) {
  return p.c * (batchnorm_parts(p) * (2 * sizeof(double) + 3 * sizeof(float)) + sizeof(float)) +
         pool_bytes(p);
}

void fwd_train(const BatchnormProblem& p, const BatchnormFwdTrain::Args& a, void* workspace) {
  const size_t channels = static_cast<size_t>(p.c);
  const int parts = batchnorm_parts(p);
  const float* pivot = f32(a.x);                                             // [C], the first row
  double* moments = static_cast<double*>(workspace);                         // [parts,2,C]
  float* blocks = reinterpret_cast<float*>(moments + 2 * channels * parts);  // [parts,3,C]
  float* scale = blocks + 3 * channels * parts;                              // [C]
#pragma omp parallel for schedule(static) if (parts > 1)
  for (int part = 0; part < parts; ++part) {
    double *mean = moments + 2 * channels * part, *m2 = mean + channels;
    float* block = blocks + 3 * channels * part;
    const long long begin = batchnorm_part_begin(p, part), end = batchnorm_part_begin(p, part + 1);
    std::fill_n(mean, 2 * channels, 0.0);
    for (long long row = begin; row < end; row += batchnorm_block_rows(p)) {
      const long long rows = std::min(batchnorm_block_rows(p), end - row);
      block_moments(f32(a.x) + row * p.c, rows, p.c, pivot, block, block + channels, block + 2 * channels);
      merge_moments(row - begin, rows, p.c, mean, m2, block, block + channels);
    }
  }
  double *mean = moments, *m2 = moments + channels;
  for (int part = 1; part < parts; ++part) {
    const double* other = moments + 2 * channels * part;
    merge_moments(batchnorm_part_begin(p, part),
                  batchnorm_part_begin(p, part + 1) - batchnorm_part_begin(p, part), p.c, mean, m2, other,
                  other + channels);
  }
  const double inverse = 1.0 / static_cast<double>(p.per_channel());
  for (int c = 0; c < p.c; ++c) {
    const float var = static_cast<float>(m2[c] * inverse);
    const float batch_mean = static_cast<float>(pivot[c] + mean[c]);
    f32(a.saved_mean)[c] = batch_mean;
    f32(a.saved_rstd)[c] = batchnorm_rstd(var, p.eps);
    update_running(p, batch_mean, var, f32(a.running_mean)[c], f32(a.running_var)[c]);
    scale[c] = batchnorm_scale(f32(a.gamma)[c], f32(a.saved_rstd)[c]);
  }
  normalise(p, f32(a.x), f32(a.residual), f32(a.saved_mean), scale, f32(a.beta), f32(a.y), scale + p.c,
            static_cast<unsigned char*>(a.mask), static_cast<unsigned char*>(a.arg));
}

// Workspace of the others: scale, pooling.
size_t channel_bytes(const BatchnormProblem& p) { return sizeof(float) * p.c + pool_bytes(p); }

void fwd_given(const BatchnormProblem& p, const BatchnormFwdGiven::Args& a, void* workspace) {
  float* scale = f32(workspace);  // [C]
  for (int c = 0; c < p.c; ++c) {
    const float mean = f32(a.mean)[c], var = f32(a.var)[c];
    f32(a.saved_rstd)[c] = batchnorm_rstd(var, p.eps);
    update_running(p, mean, var, f32(a.running_mean)[c], f32(a.running_var)[c]);
    scale[c] = batchnorm_scale(f32(a.gamma)[c], f32(a.saved_rstd)[c]);
  }
  normalise(p, f32(a.x), f32(a.residual), f32(a.mean), scale, f32(a.beta), f32(a.y), scale + p.c,
            static_cast<unsigned char*>(a.mask), static_cast<unsigned char*>(a.arg));
}

void fwd_apply(const BatchnormProblem& p, const BatchnormFwdApply::Args& a, void* workspace) {
  float* scale = f32(workspace);  // [C]
  for (int c = 0; c < p.c; ++c) scale[c] = batchnorm_scale(f32(a.gamma)[c], f32(a.rstd)[c]);
  normalise(p, f32(a.x), f32(a.residual), f32(a.mean), scale, f32(a.beta), f32(a.y), scale + p.c);
}

void fwd_infer(const BatchnormProblem& p, const BatchnormFwdInfer::Args& a, void* workspace) {
  float* scale = f32(workspace);  // [C]
  for (int c = 0; c < p.c; ++c) {
    scale[c] = batchnorm_scale(f32(a.gamma)[c], batchnorm_rstd(f32(a.running_var)[c], p.eps));
  }
  normalise(p, f32(a.x), f32(a.residual), f32(a.running_mean), scale, f32(a.beta), f32(a.y), scale + p.c);
}

}  // namespace

extern const Impl<BatchnormFwdTrain> batchnorm_fwd_train_cpu_fast =
    cpu_impl<BatchnormFwdTrain, fwd_train_bytes, fwd_train>("cpu_fast");
extern const Impl<BatchnormFwdGiven> batchnorm_fwd_given_cpu_fast =
    cpu_impl<BatchnormFwdGiven, channel_bytes, fwd_given>("cpu_fast");
extern const Impl<BatchnormFwdApply> batchnorm_fwd_apply_cpu_fast =
    cpu_impl<BatchnormFwdApply, channel_bytes, fwd_apply>("cpu_fast");
extern const Impl<BatchnormFwdInfer> batchnorm_fwd_infer_cpu_fast =
    cpu_impl<BatchnormFwdInfer, channel_bytes, fwd_infer>("cpu_fast");

}  // namespace kiln
