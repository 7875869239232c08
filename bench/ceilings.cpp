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
#include <cmath>

#include "bench/timing.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr double kProbeSeconds = 0.02;
#ifdef KILN_WITH_CUDA
constexpr size_t kProbeBytes = size_t{1} << 29;  // far beyond any L2
#endif
#ifdef KILN_WITH_CUBLAS
constexpr int kMatmul = 6144;  // below the size where the power limit bites
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

#ifdef KILN_WITH_CUBLAS
double probe_matmul(const OwnedStream& stream) {
  const size_t bytes = size_t{2} * kMatmul * kMatmul;
  DeviceMemory a(DeviceKind::kCuda, bytes), b(DeviceKind::kCuda, bytes), c(DeviceKind::kCuda, bytes);
  a.fill(0x3c, 0, bytes);  // 0x3c3c: about 0.01
  b.fill(0x3c, 0, bytes);
  cublasHandle_t handle = nullptr;
  if (cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS) return Ceilings::kVoid;
  DeviceMemory workspace(DeviceKind::kCuda, size_t{32} << 20);  // so that nothing is allocated in a graph
  cublasSetStream(handle, cuda_stream(stream.get()));
  cublasSetWorkspace(handle, workspace.data(), workspace.bytes());
  bool good = true;
  const Bound multiply([&](Stream) {
    const float one = 1, zero = 0;
    good = good &&
           cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, kMatmul, kMatmul, kMatmul, &one, a.data(),
                        CUDA_R_16BF, kMatmul, b.data(), CUDA_R_16BF, kMatmul, &zero, c.data(), CUDA_R_16BF,
                        kMatmul, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT) == CUBLAS_STATUS_SUCCESS;
  });
  multiply.launch(stream.get());
  stream.synchronize();
  const double seconds =
      time_launches({&multiply, 1}, DeviceKind::kCuda, stream.get(), kProbeSeconds).seconds;
  cublasDestroy(handle);
  return good ? 2.0 * kMatmul * kMatmul * kMatmul / seconds * 1e-12 : Ceilings::kVoid;
}
#endif

}  // namespace

double Ceilings::mixed_rate(double written_share) const {
  // Seconds a gigabyte at shares 0, 0.5 and 1, and straight lines between them.
  const double read = 1 / read_gbps, copy = 1 / copy_gbps, write = 1 / write_gbps;
  const double at = 2 * std::clamp(written_share, 0.0, 1.0);
  return 1 / (at < 1 ? read + at * (copy - read) : copy + (at - 1) * (write - copy));
}

double Ceilings::specified_arithmetic_rate(const Device& device, DType dtype) const {
  const double clocks = device.multiprocessors * sm_mhz * 1e6;
  if (dtype == DType::kF32) return clocks * 2 * 128;
  return clocks * bf16_flops_per_clock(device.sm) / (dtype == DType::kTF32 ? 2 : 1);
}

double Ceilings::arithmetic_rate(const Device& device, DType dtype) const {
  if (dtype == DType::kF32 || std::isnan(matmul_bf16_tflops)) return specified_arithmetic_rate(device, dtype);
  return matmul_bf16_tflops * 1e12 / (dtype == DType::kTF32 ? 2 : 1);
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
  a.fill(1, 0, kProbeBytes);
  b.fill(1, 0, kProbeBytes);
  const auto gbps = [&](double bytes, auto launch) {
    const Bound bound([&](Stream s) { launch(s); });
    bound.launch(stream.get());
    stream.synchronize();
    return bytes / time_launches({&bound, 1}, DeviceKind::kCuda, stream.get(), kProbeSeconds).seconds * 1e-9;
  };
  const int blocks = device.multiprocessors * 16;
  ceilings.read_gbps =
      gbps(kProbeBytes, [&](Stream s) { probe_read(a.data(), b.data(), kProbeBytes, blocks, s); });
  ceilings.write_gbps = gbps(kProbeBytes, [&](Stream s) { probe_write(b.data(), kProbeBytes, s); });
  ceilings.copy_gbps =
      gbps(2.0 * kProbeBytes, [&](Stream s) { probe_copy(a.data(), b.data(), kProbeBytes, s); });
#ifdef KILN_WITH_CUBLAS
  ceilings.matmul_bf16_tflops = probe_matmul(stream);
#endif
  return ceilings;
}
#endif

}  // namespace kiln
