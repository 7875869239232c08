// `kiln op OP.PASS`: runs one pass of one op on .npy files. The order of --in and --out is that of the pass's
// Args, which op_help() lists.
#pragma once

#include <string>
#include <vector>

#include "kernels/common/registry.h"

namespace kiln {

struct OpCommand {
  std::string pass = {};              // "conv2d.dgrad"
  std::string problem = {};           // "n2_h8_w8_c16_k32_r3", or with "conv2d:" before it
  std::string impl = {};              // "name" or "name:config"; "" for the first that supports the problem
  std::string device = "cpu";         // "cpu", "cuda"
  std::string dtype = "fp32";         // "fp32", "bf16": inputs are rounded to it, outputs widened to float32
  std::vector<std::string> in = {};   // one file an input; "-" where the pass can derive it from the others
  std::vector<std::string> out = {};  // one file an output
};

// Runs it and writes the outputs; returns 0. Throws Error: a file's shape or type does not fit (names tensor,
// got and wanted), a wrong number of files, anything else that is wrong with the command.
int run_op_command(const OpCommand& command);

// What `kiln op <pass> --help` prints below the flags: problem, tensors in the order of --in and --out with
// their shapes for `problem` ("" for a small example), and the implementations. `pass` "" lists the passes.
std::string op_help(const std::string& pass, const std::string& problem = "",
                    const std::string& dtype = "fp32");

}  // namespace kiln
