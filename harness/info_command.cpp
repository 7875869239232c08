// `kiln info`: what this binary and this machine are.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "harness/build_info.h"
#include "harness/commands.h"
#include "harness/nvml.h"
#include "harness/progress.h"
#include "harness/tuning.h"
#include "kernels/common/registry.h"

namespace kiln {
namespace {

void row(const std::string& name, const std::string& value) {
  std::printf("  %-16s %s\n", name.c_str(), value.c_str());
}

void print_gpu() {
  std::printf("GPU\n");
  if (!cuda_available()) {
    row("none", cuda_unavailable_reason());
    return;
  }
  const Device& d = cuda_device();
  const Nvml nvml(d.uuid);
  row("model", d.name);
  row("uuid", d.uuid);
  row("compute", std::to_string(d.sm / 10) + "." + std::to_string(d.sm % 10) + ", " +
                     std::to_string(d.multiprocessors) + " multiprocessors");
  row("memory", with_thousands(static_cast<double>(d.memory_bytes >> 20)) + " MiB, L2 " +
                    with_thousands(static_cast<double>(d.l2_bytes >> 10)) + " KiB");
  row("driver", nvml.available() ? nvml.driver_version() : "version unknown (no NVML)");
  row("code used", code_used(d));
}

void print_info() {
  const std::string id = commit();
  std::printf("kiln %s%s\n", version().c_str(), id.empty() ? "" : (", commit " + id).c_str());
  std::printf("build\n");
  for (const auto& [name, value] : build_rows()) row(name, value);
  std::printf("CPU\n");
  row("model", cpu_device().name);
  row("threads", std::to_string(cpu_device().threads));
  row("vectors", cpu_device().isa);
  print_gpu();
}

// "vectorized, naive; peers: cudnn"
std::string table_text(const std::vector<ImplInfo>& impls) {
  std::string own, peers;
  for (const ImplInfo& impl : impls) {
    std::string& list = impl.peer ? peers : own;
    list += (list.empty() ? "" : ", ") + impl.name;
  }
  if (own.empty()) own = "(none)";
  return own + (peers.empty() ? "" : "; peers, by name only: " + peers);
}

void print_impls() {
  std::printf(
      "Implementations of each pass, in the order they are tried. The first that supports a problem and is "
      "not "
      "known to be\n"
      "slower on it than another is picked, unless --impl or the tuning cache names one. `kiln train "
      "--print-plan` "
      "shows\nwhat a network gets.\n\n");
#ifdef KILN_WITH_CUDA
  const std::vector<DeviceKind> kinds = {DeviceKind::kCuda, DeviceKind::kCpu};
#else
  const std::vector<DeviceKind> kinds = {DeviceKind::kCpu};
#endif
  for (const PassInfo& pass : all_passes()) {
    std::string id = pass.id();
    for (const DeviceKind kind : kinds) {
      std::printf("%-24s %-5s %s\n", id.c_str(), kind == DeviceKind::kCuda ? "cuda" : "cpu",
                  table_text(pass.impls(kind)).c_str());
      id.clear();
    }
  }
}

void print_tuned(const std::string& flag) {
  const TuneCache cache = load_tuned(flag);
  if (cache.devices().empty()) {
    std::printf("no tuned choices; `kiln tune` makes some\n");
    return;
  }
  for (const auto& [device, entries] : cache.devices()) {
    const bool here = cuda_available() ? device == cuda_device().name : device == cpu_device().name;
    std::printf("%s%s: %zu choices\n", device.c_str(), here ? " (this machine)" : "", entries.size());
    for (const auto& [key, choice] : entries) {
      std::printf("  %-76s %-34s %9.2f us", key.c_str(), choice.impl.c_str(), choice.us);
      if (choice.impl != choice.heuristic) {
        std::printf("   instead of %s, %.2f us", choice.heuristic.c_str(), choice.heuristic_us);
      }
      std::printf("\n");
    }
  }
  std::printf(
      "A choice counts on a GPU of that name while the implementations and configs to choose from are the "
      "ones it was\n"
      "measured among. A convolution or linear problem with an epilogue (..._scale_bias_relu) that has no "
      "choice of its own\n"
      "takes that of the same problem without it, if what it names supports the epilogue. `kiln train "
      "--print-plan` shows\nwhat a network gets.\n");
}

}  // namespace

Command add_info_command(CLI::App& app) {
  CLI::App* sub = app.add_subcommand("info", "this build, this machine, and the implementations compiled in");
  struct Flags {
    bool impls = false;
    std::string slug, tune_cache;
    bool tuned = false;
  };
  auto flags = std::make_shared<Flags>();
  sub->add_flag("--impls", flags->impls, "print every pass's implementations in the order they are tried");
  sub->add_flag("--tuned", flags->tuned,
                "print what the tuning cache holds: the user's over what is compiled in");
  sub->add_option("--tune-cache", flags->tune_cache, "the file that --tuned prints instead");
  sub->add_option("--slug", flags->slug,
                  "print only the name that results of this device, cpu or cuda, are filed under");
  return {sub, [flags] {
            if (!flags->slug.empty()) {
              std::printf("%s\n", device_slug(device_from_name(flags->slug)).c_str());
            } else if (flags->tuned) {
              print_tuned(flags->tune_cache);
            } else {
              flags->impls ? print_impls() : print_info();
            }
            return 0;
          }};
}

}  // namespace kiln
