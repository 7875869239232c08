// The subcommands of `kiln`, one file each.
#pragma once

#include <functional>
#include <string>

namespace CLI {
class App;
}

namespace kiln {

struct Command {
  CLI::App* app;             // where its flags were declared
  std::function<int()> run;  // does the work once they are parsed; returns the exit status
};

// `command_line` is recorded in the run's files.
Command add_train_command(CLI::App& app, const std::string& command_line);
Command add_eval_command(CLI::App& app, const std::string& command_line);
Command add_info_command(CLI::App& app);
Command add_import_command(CLI::App& app);
Command add_op_command(CLI::App& app);
Command add_predict_command(CLI::App& app);
Command add_swap_command(CLI::App& app, const std::string& command_line);
Command add_tune_command(CLI::App& app);

}  // namespace kiln
