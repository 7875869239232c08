#include "harness/build_info.h"

#include <cstdio>
#include <cstdlib>
#include <sstream>

#ifndef KILN_CUDA_ARCHITECTURES
#define KILN_CUDA_ARCHITECTURES ""
#endif
#ifndef KILN_CUDA_VERSION
#define KILN_CUDA_VERSION ""
#endif
#ifndef KILN_CUDNN_VERSION_TEXT
#define KILN_CUDNN_VERSION_TEXT ""
#endif

namespace kiln {
namespace {

struct Architecture {
  int number = 0;
  bool real = false, ptx = false;
};

// CMake's list: "80-real 90-real 90-virtual"; a bare number is both.
std::vector<Architecture> architectures() {
  std::vector<Architecture> list;
  std::istringstream words(KILN_CUDA_ARCHITECTURES);
  for (std::string word; words >> word;) {
    const bool real_only = word.find("-real") != std::string::npos;
    const bool ptx_only = word.find("-virtual") != std::string::npos;
    list.push_back({std::atoi(word.c_str()), !ptx_only, !real_only});
  }
  return list;
}

// What a command prints, without the last newline; "" where it fails.
std::string output_of(const std::string& command) {
  std::FILE* pipe = popen((command + " 2>/dev/null").c_str(), "r");
  if (!pipe) return "";
  std::string text;
  char buffer[256];
  while (std::fgets(buffer, sizeof buffer, pipe)) text += buffer;
  if (pclose(pipe) != 0) return "";
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

std::string shell_quoted(const std::string& word) {
  const char* plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./:,@%";
  if (!word.empty() && word.find_first_not_of(plain) == std::string::npos) return word;
  std::string quoted = "'";
  for (const char ch : word) quoted += ch == '\'' ? std::string("'\\''") : std::string(1, ch);
  return quoted + "'";
}

}  // namespace

std::string version() { return KILN_VERSION; }

std::string commit() {
  if (const char* given = std::getenv("KILN_COMMIT"); given && *given) return given;
  static const std::string found = [] {
    const std::string git = "git -C " + shell_quoted(KILN_SOURCE_DIR) + " ";
    const std::string head = output_of(git + "rev-parse HEAD");
    if (head.empty()) return head;
    return output_of(git + "status --porcelain --untracked-files=no").empty() ? head : head + "-dirty";
  }();
  return found;
}

std::vector<std::pair<std::string, std::string>> build_rows() {
  std::vector<std::pair<std::string, std::string>> rows;
#if defined(__clang__)
  rows.push_back({"compiler", "clang " __clang_version__});
#else
  rows.push_back({"compiler", "gcc " __VERSION__});
#endif
#ifdef KILN_BUILD_TYPE
  rows.push_back({"build type", KILN_BUILD_TYPE});
#endif
#ifdef KILN_WITH_CUDA
  std::string code;
  for (const Architecture& a : architectures()) {
    if (a.real) code += (code.empty() ? "sm_" : ", sm_") + std::to_string(a.number);
    if (a.ptx) code += (code.empty() ? "compute_" : ", compute_") + std::to_string(a.number) + " PTX";
  }
  rows.push_back({"CUDA", std::string(KILN_CUDA_VERSION) + ", code for " + code});
#else
  rows.push_back({"CUDA", "not compiled in"});
#endif
#ifdef KILN_WITH_CUDNN
  rows.push_back({"cuDNN (peer)", KILN_CUDNN_VERSION_TEXT});
#else
  rows.push_back({"cuDNN (peer)", "not compiled in"});
#endif
#ifdef KILN_WITH_CUBLAS
  rows.push_back({"cuBLAS (peer)", "compiled in"});
#else
  rows.push_back({"cuBLAS (peer)", "not compiled in"});
#endif
  return rows;
}

std::string code_used(const Device& cuda) {
  int best = 0, best_ptx = 0;
  for (const Architecture& a : architectures()) {
    // Machine code runs on the same major version at the same or a newer minor one; PTX on everything newer.
    if (a.real && a.number / 10 == cuda.sm / 10 && a.number <= cuda.sm && a.number > best) best = a.number;
    if (a.ptx && a.number <= cuda.sm && a.number > best_ptx) best_ptx = a.number;
  }
  if (best) {
    return "sm_" + std::to_string(best) +
           (cuda.sm == 90 ? " (sm_90a for kernels that use wgmma or TMA)" : "");
  }
  if (best_ptx)
    return "compute_" + std::to_string(best_ptx) + " PTX, compiled by the driver at the first start";
  return "none: this build has no code for sm_" + std::to_string(cuda.sm);
}

std::string join_command_line(int argc, const char* const* argv) {
  std::string line;
  for (int i = 0; i < argc; ++i) {
    if (i > 0) line += ' ';
    line += shell_quoted(argv[i]);
  }
  return line;
}

}  // namespace kiln
