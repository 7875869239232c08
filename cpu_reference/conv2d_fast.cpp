// conv2d on all cores as matrix products: a chunk of output rows is gathered into a matrix of patches
// ("im2col", one row of R*S*C floats a pixel) small enough to stay in the second-level cache, and multiplied
// by the filter with a single-threaded sgemm. Threads own contiguous ranges of chunks.
//
//   fwd    y = patches(x) * w^T
//   dgrad  stride 1: the forward of dy with the filter turned by 180 degrees and its channels exchanged;
//          strided: patches = dy * w, added back into dx ("col2im"), a thread owning whole images
//   wgrad  dw = dy^T * patches(x), one partial sum a thread, added in thread order
#include <algorithm>
#include <cstring>

#include "cpu_reference/blas.h"
#include "cpu_reference/conv2d_epilogue.h"
#include "cpu_reference/conv2d_pool.h"
#include "cpu_reference/conv2d_stats.h"
#include "cpu_reference/cpu_support.h"
#include "kernels/conv2d/conv2d.h"
#include "kernels/conv2d/conv2d_gate.h"

namespace kiln {

extern const Impl<MaxPool2dFwd> max_pool2d_fwd_cpu_fast;

namespace {

constexpr long long kChunkBytes = 256 * 1024;  // patches of one chunk: a quarter of a common L2
constexpr long long kLeastPixels = 128;        // below this sgemm spends its time packing the filter

int patch_size(const Conv2dProblem& p) { return p.r * p.s * p.c; }
long long output_rows(const Conv2dProblem& p) { return 1LL * p.n * p.p(); }
size_t filter_size(const Conv2dProblem& p) { return static_cast<size_t>(p.k) * patch_size(p); }
size_t padded(size_t floats) { return (floats + 15) / 16 * 16; }

// A patch is a pixel of the input: no gather is needed.
bool is_pointwise(const Conv2dProblem& p) {
  return p.r == 1 && p.s == 1 && p.stride_h == 1 && p.stride_w == 1 && p.pad_h == 0 && p.pad_w == 0;
}

// How output rows are cut into chunks and given to threads. Depends on the problem and the thread count
// alone.
struct Schedule {
  int parts;             // contiguous ranges of rows, one a thread
  long long chunk_rows;  // output rows gathered at a time
  size_t patch_floats;   // gathered floats of a part
  long long begin(long long rows, int part) const { return rows * part / parts; }
};

Schedule schedule(const Conv2dProblem& p, long long items, long long chunk_limit) {
  Schedule s;
  s.parts = static_cast<int>(std::min<long long>(cpu_device().threads, items));
  const long long row_bytes = 4LL * p.q() * patch_size(p);
  const long long wanted = std::max(kChunkBytes / row_bytes, (kLeastPixels + p.q() - 1) / p.q());
  s.chunk_rows = std::clamp(wanted, 1LL, chunk_limit);
  s.patch_floats = padded(static_cast<size_t>(s.chunk_rows) * p.q() * patch_size(p));
  return s;
}

Schedule row_schedule(const Conv2dProblem& p) {
  const long long rows = output_rows(p), threads = cpu_device().threads;
  Schedule s = schedule(p, rows, (rows + threads - 1) / threads);
  if (is_pointwise(p)) s.patch_floats = 0;
  return s;
}

// Images have 3 channels, too few for a loop of unknown length.
inline void copy_pixel(const float* pixel, int channels, float* out) {
  if (channels == 3) {
    out[0] = pixel[0], out[1] = pixel[1], out[2] = pixel[2];
  } else {
    std::memcpy(out, pixel, sizeof(float) * channels);
  }
}

// patches[pixel][r,s,c] of the output rows [begin, end), counted over all images; zeros for taps on the
// padding.
KILN_CPU_CLONES void gather_patches(const Conv2dProblem& p,
                                    const float* x,  // [N,H,W,c_stride]
                                    long long begin, long long end,
                                    float* patches) {  // [end-begin,Q,R,S,C]
  const int P = p.p(), Q = p.q(), ld = p.x_channels();
  for (long long row = begin; row < end; ++row) {
    const float* image = x + row / P * p.h * p.w * ld;
    const int top = static_cast<int>(row % P) * p.stride_h - p.pad_h;
    for (int q = 0; q < Q; ++q) {
      const int left = q * p.stride_w - p.pad_w;
      const int first = std::max(0, -left), last = std::min(p.s, p.w - left);  // taps inside the image
      for (int r = 0; r < p.r; ++r, patches += p.s * p.c) {
        const int h = top + r;
        if (h < 0 || h >= p.h) {
          std::fill_n(patches, p.s * p.c, 0.0f);
          continue;
        }
        const float* pixel = image + (static_cast<long long>(h) * p.w + left + first) * ld;
        float* out = patches + first * p.c;
        std::fill(patches, out, 0.0f);
        if (ld == p.c) {
          std::memcpy(out, pixel, sizeof(float) * (last - first) * p.c);
          out += (last - first) * p.c;
        } else {
          for (int s = first; s < last; ++s, pixel += ld, out += p.c) copy_pixel(pixel, p.c, out);
        }
        std::fill(out, patches + p.s * p.c, 0.0f);
      }
    }
  }
}

// The inverse: adds the patches of the output rows [begin, end) of one image to its gradient.
KILN_CPU_CLONES void scatter_patches(const Conv2dProblem& p,
                                     const float* patches,  // [end-begin,Q,R,S,C]
                                     int begin, int end,
                                     float* image) {  // [H,W,c_stride]
  const int Q = p.q(), ld = p.x_channels();
  for (int row = begin; row < end; ++row) {
    const int top = row * p.stride_h - p.pad_h;
    for (int q = 0; q < Q; ++q) {
      const int left = q * p.stride_w - p.pad_w;
      const int first = std::max(0, -left), last = std::min(p.s, p.w - left);
      for (int r = 0; r < p.r; ++r, patches += p.s * p.c) {
        const int h = top + r;
        if (h < 0 || h >= p.h) continue;
        for (int s = first; s < last; ++s) {
          float* pixel = image + (static_cast<long long>(h) * p.w + left + s) * ld;
          const float* tap = patches + s * p.c;
          for (int c = 0; c < p.c; ++c) pixel[c] += tap[c];
        }
      }
    }
  }
}

// Calls body(part, begin row, end row, matrix of patches, its row length) for every chunk, parts in parallel
// and the chunks of a part in order.
template <class Body>
void for_each_chunk(const Conv2dProblem& p, const Schedule& plan, const float* x, float* workspace,
                    const Body& body) {
  const long long rows = output_rows(p);
#pragma omp parallel for schedule(static) if (plan.parts > 1)
  for (int part = 0; part < plan.parts; ++part) {
    float* patches = workspace + part * plan.patch_floats;
    const long long last = plan.begin(rows, part + 1);
    for (long long row = plan.begin(rows, part); row < last; row += plan.chunk_rows) {
      const long long end = std::min(last, row + plan.chunk_rows);
      if (is_pointwise(p)) {
        body(part, row, end, x + row * p.q() * p.x_channels(), p.x_channels());
      } else {
        gather_patches(p, x, row, end, patches);
        body(part, row, end, patches, patch_size(p));
      }
    }
  }
}

// --- fwd
// ----------------------------------------------------------------------------------------------------

size_t fwd_workspace(const Conv2dProblem& p) {
  const Schedule plan = row_schedule(p);
  const size_t statistics = p.stats ? static_cast<size_t>(plan.parts) * kStatisticRows * p.k : 0;
  return sizeof(float) * plan.parts * plan.patch_floats + sizeof(double) * statistics;
}

void fwd(const Conv2dProblem& p, const Conv2dFwd::Args& a, void* workspace) {
  const float* bias = p.bias && !p.has_epilogue() ? f32(a.bias) : nullptr;  // [K]
  const Schedule plan = row_schedule(p);
  auto* statistics = reinterpret_cast<double*>(f32(workspace) + plan.parts * plan.patch_floats);
  const auto multiply = [&](int part, long long row, long long end, const float* patches, int ld) {
    float* y = f32(a.y) + row * p.q() * p.k;
    const int pixels = static_cast<int>((end - row) * p.q());
    for (int i = 0; bias && i < pixels; ++i) std::copy_n(bias, p.k, y + static_cast<size_t>(i) * p.k);
    sgemm(false, true, pixels, p.k, patch_size(p), 1, patches, ld, f32(a.w), patch_size(p), bias ? 1 : 0, y,
          p.k);
    if (p.has_epilogue()) conv2d_finish(p, a, static_cast<size_t>(y - f32(a.y)), pixels);
    if (p.stats) {
      add_statistics(y, pixels, p.k, row == plan.begin(output_rows(p), part),
                     statistics + static_cast<size_t>(part) * kStatisticRows * p.k);
    }
  };
  for_each_chunk(p, plan, f32(a.x), f32(workspace), multiply);
  if (p.stats) {
    const auto pixels = [&](int part) {
      return (plan.begin(output_rows(p), part + 1) - plan.begin(output_rows(p), part)) * p.q();
    };
    merge_statistics(statistics, plan.parts, p.k, pixels, f32(a.mean), f32(a.var));
  }
}

size_t fwd_any_workspace(const Conv2dProblem& p) {
  return conv2d_unpooled_bytes(p) + fwd_workspace(conv2d_unpooled(p));
}

void fwd_any(const Conv2dProblem& p, const Conv2dFwd::Args& a, void* workspace) {
  conv2d_fwd_with_pool(p, a, workspace, max_pool2d_fwd_cpu_fast, fwd);
}

// --- dgrad
// --------------------------------------------------------------------------------------------------

// The convolution of dy that gives dx where the stride is 1.
Conv2dProblem turned(const Conv2dProblem& p) {
  return {.n = p.n,
          .h = p.p(),
          .w = p.q(),
          .c = p.k,
          .k = p.c,
          .r = p.r,
          .s = p.s,
          .pad_h = p.r - 1 - p.pad_h,
          .pad_w = p.s - 1 - p.pad_w};
}

bool unstrided(const Conv2dProblem& p) { return p.stride_h == 1 && p.stride_w == 1; }
Schedule image_schedule(const Conv2dProblem& p) { return schedule(p, p.n, p.p()); }

size_t dgrad_workspace(const Conv2dProblem& p) {
  const Schedule plan = unstrided(p) ? row_schedule(turned(p)) : image_schedule(p);
  return sizeof(float) * (plan.parts * plan.patch_floats + padded(unstrided(p) ? filter_size(p) : 0));
}

void dgrad_unstrided(const Conv2dProblem& p, const Conv2dDgrad::Args& a, float* workspace) {
  const Conv2dProblem conv = turned(p);
  const int ld_dx = p.x_channels(), taps = p.r * p.s;
  float* filter = workspace;  // [R,S,K,C], taps in reverse order
  for (int tap = 0; tap < taps; ++tap) {
    for (int k = 0; k < p.k; ++k) {
      std::copy_n(f32(a.w) + (static_cast<size_t>(k) * taps + taps - 1 - tap) * p.c, p.c,
                  filter + (static_cast<size_t>(tap) * p.k + k) * p.c);
    }
  }
  const auto multiply = [&](int, long long row, long long end, const float* patches, int ld) {
    float* dx = f32(a.dx) + row * p.w * ld_dx;
    const int pixels = static_cast<int>((end - row) * p.w);
    sgemm(false, false, pixels, p.c, patch_size(conv), 1, patches, ld, filter, p.c, p.accumulate ? 1 : 0, dx,
          ld_dx);
    for (int i = 0; ld_dx > p.c && i < pixels; ++i) {
      std::fill_n(dx + static_cast<size_t>(i) * ld_dx + p.c, ld_dx - p.c, 0.0f);
    }
  };
  for_each_chunk(conv, row_schedule(conv), f32(a.dy), workspace + padded(filter_size(p)), multiply);
}

void dgrad_strided(const Conv2dProblem& p, const Conv2dDgrad::Args& a, float* workspace) {
  const Schedule plan = image_schedule(p);
  const size_t image_size = static_cast<size_t>(p.h) * p.w * p.x_channels();
#pragma omp parallel for schedule(static) if (plan.parts > 1)
  for (int part = 0; part < plan.parts; ++part) {
    float* patches = workspace + part * plan.patch_floats;
    for (long long n = plan.begin(p.n, part); n < plan.begin(p.n, part + 1); ++n) {
      float* image = f32(a.dx) + n * image_size;
      if (!p.accumulate) std::fill_n(image, image_size, 0.0f);
      for (int row = 0; row < p.p(); row += static_cast<int>(plan.chunk_rows)) {
        const int end = std::min(p.p(), row + static_cast<int>(plan.chunk_rows));
        const float* dy = f32(a.dy) + (n * p.p() + row) * p.q() * p.k;
        sgemm(false, false, (end - row) * p.q(), patch_size(p), p.k, 1, dy, p.k, f32(a.w), patch_size(p), 0,
              patches, patch_size(p));
        scatter_patches(p, patches, row, end, image);
      }
    }
  }
}

// dx = 0 where x has no slope.
KILN_CPU_CLONES void gate_range(const float* x, float* dx, long long begin, long long end,
                                const Conv2dGate& gate) {
  for (long long i = begin; i < end; ++i) dx[i] = gate.passes(x[i]) ? dx[i] : 0.0f;
}

void dgrad(const Conv2dProblem& p, const Conv2dDgrad::Args& a, void* workspace) {
  (unstrided(p) ? dgrad_unstrided : dgrad_strided)(p, a, f32(workspace));
  if (p.dact == ActKind::kNone) return;
  parallel_ranges(1LL * p.n * p.h * p.w * p.x_channels(), [&](long long begin, long long end) {
    gate_range(f32(a.x), f32(a.dx), begin, end, conv2d_gate(p.dact));
  });
}

// --- wgrad
// --------------------------------------------------------------------------------------------------

constexpr size_t kPartialFloats = 64 << 20;  // most memory for partial filters, 256 MiB

Schedule wgrad_schedule(const Conv2dProblem& p) {
  Schedule plan = row_schedule(p);
  plan.parts = static_cast<int>(std::min<size_t>(plan.parts, 1 + kPartialFloats / filter_size(p)));
  return plan;
}

size_t wgrad_workspace(const Conv2dProblem& p) {
  const Schedule plan = wgrad_schedule(p);
  const size_t partials = (plan.parts - 1) * padded(filter_size(p));
  return sizeof(float) * (plan.parts * plan.patch_floats + partials) +
         sizeof(double) * plan.parts * padded(p.k);
}

KILN_CPU_CLONES void add_columns(const float* matrix, long long rows, int columns, double* sums) {
  for (long long i = 0; i < rows; ++i, matrix += columns) {
    for (int j = 0; j < columns; ++j) sums[j] += matrix[j];
  }
}

KILN_CPU_CLONES void add_range(float* sum, const float* part, long long begin, long long end) {
  for (long long i = begin; i < end; ++i) sum[i] += part[i];
}

void wgrad(const Conv2dProblem& p, const Conv2dWgrad::Args& a, void* workspace) {
  const Schedule plan = wgrad_schedule(p);
  float* patches = f32(workspace);
  float* partials =
      patches + plan.parts * plan.patch_floats;  // [parts-1,K,R,S,C]; the first part's is dw itself
  auto* bias_sums =
      reinterpret_cast<double*>(partials + (plan.parts - 1) * padded(filter_size(p)));  // [parts,K]
  const auto partial = [&](int part) {
    return part ? partials + (part - 1) * padded(filter_size(p)) : f32(a.dw);
  };
  const auto multiply = [&](int part, long long row, long long end, const float* columns, int ld) {
    const long long pixels = (end - row) * p.q();
    const float* dy = f32(a.dy) + row * p.q() * p.k;
    const bool first = row == plan.begin(output_rows(p), part);
    sgemm(true, false, p.k, patch_size(p), static_cast<int>(pixels), 1, dy, p.k, columns, ld, first ? 0 : 1,
          partial(part), patch_size(p));
    if (!p.bias) return;
    double* sums = bias_sums + part * padded(p.k);
    if (first) std::fill_n(sums, p.k, 0.0);
    add_columns(dy, pixels, p.k, sums);
  };
  for_each_chunk(p, plan, f32(a.x), patches, multiply);
  parallel_ranges(static_cast<long long>(filter_size(p)), [&](long long begin, long long end) {
    for (int part = 1; part < plan.parts; ++part) add_range(f32(a.dw), partial(part), begin, end);
  });
  for (int k = 0; p.bias && k < p.k; ++k) {
    double sum = 0;
    for (int part = 0; part < plan.parts; ++part) sum += bias_sums[part * padded(p.k) + k];
    f32(a.dbias)[k] = static_cast<float>(sum);
  }
}

}  // namespace

extern const Impl<Conv2dFwd> conv2d_fwd_cpu_fast =
    cpu_impl<Conv2dFwd, fwd_any_workspace, fwd_any>("cpu_fast");
extern const Impl<Conv2dDgrad> conv2d_dgrad_cpu_fast =
    cpu_impl<Conv2dDgrad, dgrad_workspace, dgrad>("cpu_fast");
extern const Impl<Conv2dWgrad> conv2d_wgrad_cpu_fast =
    cpu_impl<Conv2dWgrad, wgrad_workspace, wgrad>("cpu_fast");

}  // namespace kiln
