// What this binary is: version, commit, and what was compiled in.
#pragma once

#include <string>
#include <vector>

#include "kernels/common/device.h"

namespace kiln {

std::string version();  // "0.1.0"

// KILN_COMMIT from the environment, else git's HEAD of the source tree ("-dirty" where tracked files differ),
// else
// "" where neither is there.
std::string commit();

// {"compiler", "gcc 12.2.0"}, {"CUDA", "13.0, code for sm_80, sm_90, compute_90 PTX"}, ... for `kiln info`.
std::vector<std::pair<std::string, std::string>> build_rows();

// Which of the compiled architectures this GPU runs: "sm_90 (and sm_90a where a kernel needs it)", or
// "compute_90 PTX, compiled by the driver at the first start".
std::string code_used(const Device& cuda);

// The command line, quoted so that a shell reads it back.
std::string join_command_line(int argc, const char* const* argv);

}  // namespace kiln
