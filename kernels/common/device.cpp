#include "kernels/common/device.h"

#ifdef KILN_WITH_OPENMP
#include <omp.h>
#endif

#include <cctype>
#include <fstream>

#include "kernels/common/error.h"

namespace kiln {
namespace {

std::string cpu_model() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) {
      const size_t colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
  }
  return "unknown CPU";
}

std::string widest_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return "AVX-512";
  if (__builtin_cpu_supports("avx2")) return "AVX2";
  return "SSE2";
#elif defined(__aarch64__)
  return "NEON";
#else
  return "scalar";
#endif
}

std::string slug(const std::string& text) {
  std::string out;
  for (const char ch : text) {
    const unsigned char u = static_cast<unsigned char>(ch);
    if (std::isalnum(u)) {
      out += static_cast<char>(std::tolower(u));
    } else if (!out.empty() && out.back() != '-') {
      out += '-';
    }
  }
  while (!out.empty() && out.back() == '-') out.pop_back();
  return out;
}

}  // namespace

const Device& cpu_device() {
  static const Device device = [] {
    Device d;
    d.kind = DeviceKind::kCpu;
    d.name = cpu_model();
    d.isa = widest_isa();
#ifdef KILN_WITH_OPENMP
    d.threads = omp_get_max_threads();
#endif
    return d;
  }();
  return device;
}

const Device& device_from_name(const std::string& name) {
  if (name == "cpu") return cpu_device();
  if (name == "cuda") return cuda_device();
  fail_usage(unknown_name_message("device", name, {"cpu", "cuda"}));
}

std::string device_slug(const Device& device) {
  const std::string text = slug(device.name);
  if (!device.is_cuda()) return "cpu-" + text;
  for (const char* known : {"h100", "h200", "gh200", "a100", "b200"}) {
    if (("-" + text + "-").find("-" + std::string(known) + "-") != std::string::npos) return known;
  }
  return text;
}

#ifndef KILN_WITH_CUDA
bool cuda_available() { return false; }
std::string cuda_unavailable_reason() {
  return "this build of kiln has no CUDA code (nvcc was not found, or the cpu preset)";
}
const Device& cuda_device() { fail_failure("no CUDA device: " + cuda_unavailable_reason()); }
#endif

}  // namespace kiln
