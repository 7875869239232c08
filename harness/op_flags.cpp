// `kiln op`: the flags of op_command.h.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "harness/commands.h"
#include "harness/op_command.h"

namespace kiln {

Command add_op_command(CLI::App& app) {
  CLI::App* sub = app.add_subcommand("op", "run one pass of one op on .npy files");
  struct Flags {
    OpCommand command;
    bool help = false;
  };
  auto flags = std::make_shared<Flags>();
  OpCommand& c = flags->command;
  sub->set_help_flag();  // its own, which needs the pass
  sub->add_flag("-h,--help", flags->help, "print this help, and for a pass its tensors and implementations");
  sub->add_option("pass", c.pass, "<op>.<pass>, for example conv2d.dgrad");
  sub->add_option("--problem", c.problem, "problem string, for example n2_h8_w8_c16_k32_r3");
  sub->add_option("--impl", c.impl,
                  "implementation: name or name:config (default: the first that supports the problem)");
  sub->add_option("--device", c.device, "cpu or cuda")->capture_default_str();
  sub->add_option("--dtype", c.dtype, "fp32, bf16, tf32: what the pass computes in; the files are float32")
      ->capture_default_str();
  sub->add_option("--in", c.in, "input files, in the order that `kiln op <op>.<pass> --help` prints")
      ->take_all();
  sub->add_option("--out", c.out, "output files, likewise")->take_all();
  sub->footer(
      "Example:\n"
      "  kiln op conv2d.dgrad --help\n"
      "  kiln op conv2d.dgrad --problem n2_h8_w8_c16_k32_r3 --impl cpu_naive --in dy.npy w.npy --out dx.npy");
  return {sub, [flags, sub] {
            const OpCommand& command = flags->command;
            if (!flags->help && !command.pass.empty()) return run_op_command(command);
            const std::string about = op_help(command.pass, command.problem, command.dtype);
            std::printf("%s\n%s", sub->help("kiln").c_str(), about.c_str());
            return flags->help ? 0 : 2;
          }};
}

}  // namespace kiln
