// The `kiln` program: finds the subcommand, runs it, and turns errors into one sentence and an exit status.
//
//   0 done;  1 the work failed (CUDA error, out of memory, disk full);  2 the input is wrong;  130 Ctrl-C
#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <new>

#include "harness/build_info.h"
#include "harness/commands.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr int kFailureStatus = 1, kUsageStatus = 2;

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

// What CLI11 objects to, with the nearest flag where one was misspelt.
std::string usage_message(const CLI::ParseError& error, const CLI::App& app) {
  std::string message = error.what();
  for (size_t end; (end = message.find('\n')) != std::string::npos;) message.replace(end, 1, " ");
  if (dynamic_cast<const CLI::ConversionError*>(&error)) {
    return message + "; a number is expected (INT in `kiln " + app.get_name() +
           " --help`: a whole one, at most 2147483647)";
  }
  if (!dynamic_cast<const CLI::ExtrasError*>(&error)) return message;
  for (const std::string& word : app.remaining()) {
    const std::string flag = word.substr(0, word.find('='));
    if (flag.rfind("--", 0) != 0) continue;
    const std::string near = nearest_name(flag, option_names(app));
    return "unknown option '" + flag + "'" + (near.empty() ? "" : "; did you mean '" + near + "'?") +
           " `kiln " + app.get_name() + " --help` lists them";
  }
  return message;
}

int run(int argc, char** argv) {
  CLI::App app(
      "kiln: hand-written CUDA kernels for small-image convolutional networks, a training engine on them, "
      "and a\n"
      "CPU path that mirrors every kernel.");
  app.name("kiln");
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);  // a flag may be given again
  const std::string id = commit();
  app.set_version_flag("--version", "kiln " + version() + (id.empty() ? "" : " (" + id + ")"));
  app.footer("`kiln COMMAND --help` has the flags and examples of a command.");
  const std::string command_line = join_command_line(argc, argv);
  const std::vector<Command> commands = {add_train_command(app, command_line),
                                         add_eval_command(app, command_line),
                                         add_info_command(app),
                                         add_import_command(app),
                                         add_op_command(app),
                                         add_predict_command(app),
                                         add_swap_command(app, command_line),
                                         add_tune_command(app)};
  std::vector<std::string> names;
  for (const Command& command : commands) names.push_back(command.app->get_name());

  if (argc < 2) {
    std::cerr << app.help();
    return kUsageStatus;
  }
  if (argv[1][0] != '-' && std::find(names.begin(), names.end(), argv[1]) == names.end()) {
    fail_usage(unknown_name_message("command", argv[1], names));
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
    const CLI::App* used = &app;
    for (const CLI::App* sub : app.get_subcommands()) used = sub;
    fail_usage(usage_message(error, *used));
  }
  for (const Command& command : commands) {
    if (command.app->parsed()) return command.run();
  }
  fail_usage("no command given; `kiln --help` lists them");
}

}  // namespace
}  // namespace kiln

int main(int argc, char** argv) {
  try {
    return kiln::run(argc, argv);
  } catch (const kiln::Error& error) {
    std::fprintf(stderr, "kiln: %s\n", error.what());
    return error.exit_status();
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "kiln: out of host memory\n");
    return kiln::kFailureStatus;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kiln: %s\n", error.what());
    return kiln::kFailureStatus;
  }
}
