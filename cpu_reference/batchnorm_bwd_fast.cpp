// batchnorm backward on all cores: rows are split over the threads in contiguous parts; a part sums blocks of
// rows that stay in cache in fp32 and blocks in double, and parts are added in order. Behind a mask the first
// walk also writes dresidual, which from then on is the gradient; behind a pool both walks go over pairs of
// image rows, whose dy they lay out first. Inner loops run along the channels.

#include "cpu_reference/batchnorm_fast.h"

namespace kiln {
namespace {

const BatchnormClampLane kPasses = {batchnorm_clamp(BatchnormAct::kNone)};

// dresidual = dy where the mask's bit is set, else 0.
KILN_CPU_CLONES void select_rows(const float* dy,            // [rows,C]
                                 const unsigned char* mask,  // [rows,ceil(C/8)]
                                 long long rows, int channels,
                                 float* __restrict dresidual)  // [rows,C]
{
  for (long long r = 0; r < rows; ++r) {
    const float* row = dy + r * channels;
    float* __restrict out = dresidual + r * channels;
    for (int c = 0; c < channels; c += 8) {
      const int here = std::min(8, channels - c), bits = *mask++;
      for (int j = 0; j < here; ++j) out[c + j] = bits >> j & 1 ? row[c + j] : 0.0f;
    }
  }
}

// Adds sum g and sum g * (x - mean) of `rows` rows.
template <class Lane>
KILN_CPU_CLONES void add_gradient_sums(const float* dy,  // [rows,C]
                                       const float* x,   // [rows,C]
                                       long long rows, int channels, Lane lane,
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
      const float g = lane.bwd(dy[r * channels + c], batchnorm_pre(d, scale[c], beta[c]));
      sum_g[c] += g;
      sum_gd[c] += g * d;
    }
  }
  for (long long i = 0; i < 2LL * channels; ++i) total[i] += block[i];
}

// dx = scale * (g - mean_g - (x - mean) * slope)
template <class Lane>
KILN_CPU_CLONES void gradient_rows(const float* dy,  // [rows,C]
                                   const float* x,   // [rows,C]
                                   long long rows, int channels, Lane lane,
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
      const float g = lane.bwd(dy[r * channels + c], batchnorm_pre(d, scale[c], beta[c]));
      dx[r * channels + c] = scale[c] * (g - mean_g[c] - d * slope[c]);
    }
  }
}

// Workspace of bwd: sums of a part in double, a block's sums; scale, mean_g, slope; with pool two rows of dy
// a part.
size_t bwd_bytes(const BatchnormProblem& p) {
  const size_t rows = p.pool ? 2 * sizeof(float) * static_cast<size_t>(p.w) * batchnorm_parts(p) : 0;
  return p.c * (2 * (sizeof(double) + sizeof(float)) * batchnorm_parts(p) + 3 * sizeof(float) + rows);
}

// With pool the work is cut into pairs of image rows; the last of an odd map is alone.
struct RowPair {
  long long first, rows;  // of [N*H], 1 or 2
  long long windows;      // the row of windows over it in [N*H/2]; -1: none
};
RowPair row_pair(const BatchnormProblem& p, long long i) {
  const int pairs = (p.h + 1) / 2, pair = static_cast<int>(i % pairs);
  const long long n = i / pairs;
  const bool whole = pair < p.out_h();
  return {n * p.h + 2 * pair, whole ? 2 : 1, whole ? n * p.out_h() + pair : -1};
}
long long row_pairs(const BatchnormProblem& p) { return 1LL * p.n * ((p.h + 1) / 2); }

// dy of a pair's pixels, 0 but where a window has its maximum.
void unpool_rows(const BatchnormProblem& p, const RowPair& pair,
                 const float* dy,           // [N,H/2,W/2,C]
                 const unsigned char* arg,  // [N,H/2,W/2,ceil(C/4)]
                 float* out)                // [pair.rows,W,C]
{
  std::fill_n(out, pair.rows * p.w * p.c, 0.0f);
  for (int q = 0; pair.windows >= 0 && q < p.out_w(); ++q) {
    const long long window = pair.windows * p.out_w() + q;
    for (int c = 0; c < p.c; ++c) {
      const int position = arg[window * p.arg_bytes_per_pixel() + c / 4] >> c % 4 * 2 & 3;
      out[(position / 2 * p.w + 2LL * q + position % 2) * p.c + c] = dy[window * p.c + c];
    }
  }
}

// Calls body(pair, dy) for the row pairs of one part; dy: [pair.rows,W,C], laid out in `rows`.
template <class Body>
void each_pair(const BatchnormProblem& p, const BatchnormBwd::Args& a, int part, float* rows,
               const Body& body) {
  const long long count = row_pairs(p), parts = batchnorm_parts(p);
  for (long long i = count * part / parts; i < count * (part + 1) / parts; ++i) {
    const RowPair pair = row_pair(p, i);
    unpool_rows(p, pair, f32(a.dy), static_cast<const unsigned char*>(a.arg), rows);
    body(pair, rows);
  }
}

// The rows of one part: sums of g and g * (x - mean); behind a mask dresidual, which is g.
void sum_part(const BatchnormProblem& p, const BatchnormBwd::Args& a, const float* scale, int part,
              float* block, double* total, float* pair_rows) {
  const long long end = batchnorm_part_begin(p, part + 1);
  std::fill_n(total, 2LL * p.c, 0.0);
  if (p.pool) {
    const BatchnormClampLane lane = {batchnorm_clamp(p.act)};
    return each_pair(p, a, part, pair_rows, [&](const RowPair& pair, const float* dy) {
      add_gradient_sums(dy, f32(a.x) + pair.first * p.w * p.c, pair.rows * p.w, p.c, lane, f32(a.saved_mean),
                        scale, f32(a.beta), block, total);
    });
  }
  for (long long row = batchnorm_part_begin(p, part); row < end; row += batchnorm_block_rows(p)) {
    const long long rows = std::min(batchnorm_block_rows(p), end - row), at = row * p.c;
    const float *x = f32(a.x) + at, *mean = f32(a.saved_mean), *beta = f32(a.beta);
    if (p.masked()) {
      float* g = f32(a.dresidual) + at;
      select_rows(f32(a.dy) + at, static_cast<const unsigned char*>(a.mask) + row * p.mask_bytes_per_pixel(),
                  rows, p.c, g);
      add_gradient_sums(g, x, rows, p.c, kPasses, mean, scale, beta, block, total);
      continue;
    }
    with_batchnorm_lane(p.act, [&](auto lane) {
      add_gradient_sums(f32(a.dy) + at, x, rows, p.c, lane, mean, scale, beta, block, total);
    });
  }
}

void bwd(const BatchnormProblem& p, const BatchnormBwd::Args& a, void* workspace) {
  const size_t channels = static_cast<size_t>(p.c);
  const int parts = batchnorm_parts(p);
  double* totals = static_cast<double*>(workspace);                         // [parts,2,C]
  float* blocks = reinterpret_cast<float*>(totals + 2 * channels * parts);  // [parts,2,C]
  float* scale = blocks + 2 * channels * parts;                             // [C]
  float *mean_g = scale + channels, *slope = scale + 2 * channels;          // [C]
  const size_t pair_floats = 2 * static_cast<size_t>(p.w) * channels;
  float* pair_rows = scale + 3 * channels;  // [parts,2,W,C], with pool
  const float *mean = f32(a.saved_mean), *rstd = f32(a.saved_rstd);
  for (int c = 0; c < p.c; ++c) scale[c] = batchnorm_scale(f32(a.gamma)[c], rstd[c]);
#pragma omp parallel for schedule(static) if (parts > 1)
  for (int part = 0; part < parts; ++part) {
    sum_part(p, a, scale, part, blocks + 2 * channels * part, totals + 2 * channels * part,
             pair_rows + pair_floats * part);
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
    const long long begin = batchnorm_part_begin(p, part), rows = batchnorm_part_begin(p, part + 1) - begin;
    const long long at = begin * p.c;
    if (p.pool) {
      const BatchnormClampLane lane = {batchnorm_clamp(p.act)};
      each_pair(p, a, part, pair_rows + pair_floats * part, [&](const RowPair& pair, const float* dy) {
        const long long from = pair.first * p.w * p.c;
        gradient_rows(dy, f32(a.x) + from, pair.rows * p.w, p.c, lane, mean, scale, f32(a.beta), mean_g,
                      slope, f32(a.dx) + from);
      });
      continue;
    }
    const auto gradient = [&](const float* dy, auto lane) {
      gradient_rows(dy + at, f32(a.x) + at, rows, p.c, lane, mean, scale, f32(a.beta), mean_g, slope,
                    f32(a.dx) + at);
    };
    if (p.masked()) {
      gradient(f32(a.dresidual), kPasses);
    } else {
      with_batchnorm_lane(p.act, [&](auto lane) { gradient(f32(a.dy), lane); });
    }
  }
}

}  // namespace

extern const Impl<BatchnormBwd> batchnorm_bwd_cpu_fast = cpu_impl<BatchnormBwd, bwd_bytes, bwd>("cpu_fast");

}  // namespace kiln
