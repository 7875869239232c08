#include "bench/ceilings.h"

#ifdef KILN_WITH_CUDA
#include "bench/ceiling_kernels.h"
#include "harness/device_memory.h"
#include "kernels/common/check.h"
#endif
#ifdef KILN_WITH_CUBLAS
#include <cublas_v2.h>
#endif

#include <algorithm>
#include <chrono>
#include <cmath>

#include "bench/timing.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr TimingOptions kProbe = {.sample_seconds = 0.01, .fewest = 7, .most_seconds = 0.15};
#ifdef KILN_WITH_CUDA
constexpr size_t kMib = size_t{1} << 20;
constexpr double kL2Rotation = 3;                // as the rows' buffers
constexpr size_t kProbeBytes = size_t{1} << 29;  // far beyond any L2
constexpr int kEmptyLaunches = 1000;
#endif
#ifdef KILN_WITH_CUBLAS
constexpr int kMatmul = 6144;  // below the size where the power limit bites
constexpr int kMatmulF32 = 4096;
#endif

// bf16 multiply-add FLOPs a clock and multiprocessor, dense, fp32 accumulation (NVIDIA's architecture
// papers).
double bf16_flops_per_clock(int sm) {
  switch (sm) {
    case 80:
      return 2048;
    case 86:
    case 89:
      return 1024;
    case 90:
      return 4096;
    case 100:
      return 8192;
    default:
      return Ceilings::kVoid;
  }
}

#ifdef KILN_WITH_CUDA
// Seconds of copying `bytes` from a to b, each time from and to another place, so that L2 holds neither.
double copy_seconds(const DeviceMemory& a, DeviceMemory& b, size_t bytes, const Device& device,
                    const OwnedStream& stream) {
  const auto wanted =
      static_cast<size_t>(kL2Rotation * static_cast<double>(device.l2_bytes)) / (2 * bytes) + 2;
  std::vector<Bound> copies;
  for (size_t i = 0; i < std::min(wanted, a.bytes() / bytes); ++i) {
    copies.emplace_back([from = a.data() + i * bytes, to = b.data() + i * bytes, bytes](Stream s) {
      probe_copy(from, to, bytes, s);
    });
    copies.back().launch(stream.get());
  }
  stream.synchronize();
  return time_launches(copies, DeviceKind::kCuda, stream.get()).seconds;
}

// Host seconds a launch of an empty kernel takes, one after another on a stream.
double launch_seconds(const OwnedStream& stream) {
  std::vector<double> samples;
  for (int i = 0; i < 9; ++i) {
    const auto start = std::chrono::steady_clock::now();
    for (int j = 0; j < kEmptyLaunches; ++j) probe_nothing(stream.get());
    stream.synchronize();
    samples.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() /
                      kEmptyLaunches);
  }
  return summarize(std::move(samples)).seconds;
}
#endif

#ifdef KILN_WITH_CUBLAS
// TFLOP/s of a product of square matrices of `type`.
double probe_matmul(const OwnedStream& stream, int size, cudaDataType_t type, cublasComputeType_t compute) {
  const size_t bytes = (type == CUDA_R_32F ? size_t{4} : size_t{2}) * size * size;
  DeviceMemory a(DeviceKind::kCuda, bytes), b(DeviceKind::kCuda, bytes), c(DeviceKind::kCuda, bytes);
  fill_noise(a.data(), bytes, type == CUDA_R_32F ? 4 : 2, type == CUDA_R_16BF, stream.get());
  fill_noise(b.data(), bytes, type == CUDA_R_32F ? 4 : 2, type == CUDA_R_16BF, stream.get());
  stream.synchronize();
  cublasHandle_t handle = nullptr;
  if (cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS) return Ceilings::kVoid;
  DeviceMemory workspace(DeviceKind::kCuda, size_t{32} << 20);  // so that nothing is allocated in a graph
  cublasSetStream(handle, cuda_stream(stream.get()));
  cublasSetWorkspace(handle, workspace.data(), workspace.bytes());
  bool good = true;
  const Bound multiply([&](Stream) {
    const float one = 1, zero = 0;
    good = good && cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, size, size, size, &one, a.data(), type,
                                size, b.data(), type, size, &zero, c.data(), type, size, compute,
                                CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS;
  });
  multiply.launch(stream.get());
  stream.synchronize();
  const double seconds = time_launches({&multiply, 1}, DeviceKind::kCuda, stream.get(), kProbe).seconds;
  cublasDestroy(handle);
  return good ? 2.0 * size * size * size / seconds * 1e-12 : Ceilings::kVoid;
}
#endif

}  // namespace

double Ceilings::mixed_rate(double written_share) const {
  // Seconds a gigabyte at shares 0, 0.5 and 1, and straight lines between them.
  const double read = 1 / read_gbps, copy = 1 / copy_gbps, write = 1 / write_gbps;
  const double at = 2 * std::clamp(written_share, 0.0, 1.0);
  return 1 / (at < 1 ? read + at * (copy - read) : copy + (at - 1) * (write - copy));
}

double Ceilings::copy_seconds(double bytes) const {
  size_t i = 1;  // the segment's upper end
  while (i + 1 < kCopyMib.size() && bytes > kCopyMib[i] * 0x1p20) ++i;
  const double last = kCopyMib.back() * 0x1p20;
  if (bytes > last) return copy_us.back() * 1e-6 * bytes / last;
  const double from = std::log(kCopyMib[i - 1] * 0x1p20), to = std::log(kCopyMib[i] * 0x1p20);
  const double at = (std::log(bytes) - from) / (to - from);
  return 1e-6 * std::exp((1 - at) * std::log(copy_us[i - 1]) + at * std::log(copy_us[i]));
}

double Ceilings::specified_arithmetic_rate(const Device& device, DType dtype) const {
  const double clocks = device.multiprocessors * sm_mhz * 1e6;
  if (dtype == DType::kF32) return clocks * 2 * 128;
  return clocks * bf16_flops_per_clock(device.sm) / (dtype == DType::kTF32 ? 2 : 1);
}

double Ceilings::arithmetic_rate(const Device& device, DType dtype) const {
  const double measured = dtype == DType::kF32    ? fma_fp32_tflops
                          : dtype == DType::kTF32 ? matmul_tf32_tflops
                                                  : matmul_bf16_tflops;
  return std::isnan(measured) ? specified_arithmetic_rate(device, dtype) : measured * 1e12;
}

std::vector<Ceilings::Line> Ceilings::lines(const Device& device) const {
  const auto specified = [&](DType dtype) { return specified_arithmetic_rate(device, dtype) * 1e-12; };
  std::vector<Line> lines = {{"sm_mhz", kVoid, sm_mhz},
                             {"dram_gbps", kVoid, dram_gbps},
                             {"copy_gbps", copy_gbps, dram_gbps},
                             {"read_gbps", read_gbps, dram_gbps},
                             {"write_gbps", write_gbps, dram_gbps},
                             {"l2_read_gbps", l2_read_gbps, kVoid},
                             {"matmul_bf16_tflops", matmul_bf16_tflops, specified(DType::kBF16)},
                             {"matmul_fp16_tflops", matmul_fp16_tflops, specified(DType::kBF16)},
                             {"matmul_tf32_tflops", matmul_tf32_tflops, specified(DType::kTF32)},
                             {"fma_fp32_tflops", fma_fp32_tflops, specified(DType::kF32)},
                             {"launch_us", launch_us, kVoid},
                             {"graph_node_us", graph_node_us, kVoid}};
  for (size_t i = 0; i < kCopyMib.size(); ++i) {
    lines.push_back({"copy_us_" + std::to_string(kCopyMib[i]) + "mb", copy_us[i], kVoid});
  }
  return lines;
}

#ifndef KILN_WITH_CUDA
Ceilings measure_ceilings(const Device&) { return {}; }
#else
Ceilings measure_ceilings(const Device& device) {
  Ceilings ceilings;
  if (!device.is_cuda()) return ceilings;
  int ordinal = 0, khz = 0, memory_khz = 0, bus_bits = 0;
  check_cuda(cudaGetDevice(&ordinal), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, ordinal), "clock rate");
  check_cuda(cudaDeviceGetAttribute(&memory_khz, cudaDevAttrMemoryClockRate, ordinal), "memory clock rate");
  check_cuda(cudaDeviceGetAttribute(&bus_bits, cudaDevAttrGlobalMemoryBusWidth, ordinal), "memory bus width");
  ceilings.sm_mhz = khz * 1e-3;
  if (memory_khz > 0 && bus_bits > 0) ceilings.dram_gbps = 2.0 * memory_khz * 1e3 * bus_bits / 8 * 1e-9;

  const OwnedStream stream(DeviceKind::kCuda);
  DeviceMemory a(DeviceKind::kCuda, kProbeBytes), b(DeviceKind::kCuda, kProbeBytes);
  fill_noise(a.data(), kProbeBytes, 4, false, stream.get());
  fill_noise(b.data(), kProbeBytes, 4, false, stream.get());
  const auto seconds = [&](auto launch) {
    const Bound bound([&](Stream s) { launch(s); });
    bound.launch(stream.get());
    stream.synchronize();
    return time_launches({&bound, 1}, DeviceKind::kCuda, stream.get(), kProbe).seconds;
  };
  const int blocks = device.multiprocessors * 16;
  const auto gbps = [&](double bytes, auto launch) { return bytes / seconds(launch) * 1e-9; };
  ceilings.read_gbps =
      gbps(kProbeBytes, [&](Stream s) { probe_read(a.data(), b.data(), kProbeBytes, blocks, s); });
  ceilings.write_gbps = gbps(kProbeBytes, [&](Stream s) { probe_write(b.data(), kProbeBytes, s); });
  ceilings.copy_gbps =
      gbps(2.0 * kProbeBytes, [&](Stream s) { probe_copy(a.data(), b.data(), kProbeBytes, s); });
  for (size_t i = 0; i < Ceilings::kCopyMib.size(); ++i) {
    ceilings.copy_us[i] = 1e6 * copy_seconds(a, b, Ceilings::kCopyMib[i] * kMib / 2, device, stream);
  }
  const size_t in_l2 = device.l2_bytes / 4 / 32768 * 32768;  // a quarter: one half of the L2 serves it
  if (in_l2 > 0) {
    ceilings.l2_read_gbps = gbps(16.0 * static_cast<double>(in_l2), [&](Stream s) {
      for (int i = 0; i < 16; ++i) probe_l2(a.data(), b.data(), in_l2, blocks / 2, s);
    });
  }
  ceilings.fma_fp32_tflops = probe_fma_flops(device.multiprocessors) /
                             seconds([&](Stream s) { probe_fma(b.data(), device.multiprocessors, s); }) *
                             1e-12;
  ceilings.graph_node_us = 1e6 / kEmptyLaunches * seconds([&](Stream s) {
                             for (int i = 0; i < kEmptyLaunches; ++i) probe_nothing(s);
                           });
  ceilings.launch_us = 1e6 * launch_seconds(stream);
#ifdef KILN_WITH_CUBLAS
  ceilings.matmul_bf16_tflops = probe_matmul(stream, kMatmul, CUDA_R_16BF, CUBLAS_COMPUTE_32F);
  ceilings.matmul_fp16_tflops = probe_matmul(stream, kMatmul, CUDA_R_16F, CUBLAS_COMPUTE_32F);
  ceilings.matmul_tf32_tflops = probe_matmul(stream, kMatmul, CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32);
  ceilings.fma_fp32_tflops = std::fmax(
      ceilings.fma_fp32_tflops, probe_matmul(stream, kMatmulF32, CUDA_R_32F, CUBLAS_COMPUTE_32F_PEDANTIC));
#endif
  return ceilings;
}
#endif

}  // namespace kiln
