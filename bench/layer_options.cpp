#include "bench/layer_options.h"

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <fstream>

#include "harness/number_flags.h"
#include "kernels/common/error.h"
#include "kernels/common/tune_cache.h"

namespace kiln {
namespace {

NamedProblem explicit_problem(const std::string& text) {
  const size_t colon = text.find(':');
  if (colon == std::string::npos) {
    fail_usage("--problem '" + text +
               "': expected <op>:<problem> or <op>.<pass>:<problem>, for example "
               "conv2d.fwd:n512_h32_w32_c64_k64_r3");
  }
  const std::string id = text.substr(0, colon);
  const size_t dot = id.find('.');
  NamedProblem p{"", id.substr(0, dot), text.substr(colon + 1),
                 dot == std::string::npos ? "" : id.substr(dot + 1)};
  std::vector<std::string> ids;
  bool known = false;
  for (const PassInfo& pass : all_passes()) {
    ids.push_back(pass.id());
    known = known || (pass.op == p.op && p.has_pass(pass.pass));
  }
  if (!known) fail_usage("--problem: " + unknown_name_message("op.pass", id, ids));
  return p;
}

// "3/8": the third of eight parts.
void read_shard(const std::string& text, LayerOptions& options) {
  int index = 0, count = 0;
  char end = 0;
  if (std::sscanf(text.c_str(), "%d/%d%c", &index, &count, &end) != 2 || index < 1 || index > count) {
    fail_usage("--shard '" + text + "': expected I/N with 1 <= I <= N, for example 3/8");
  }
  options.shard = index - 1;
  options.shards = count;
}

}  // namespace

std::vector<NamedProblem> problems_from_text(const std::string& text) {
  if (text.empty() || text[0] != '@') return {explicit_problem(text)};
  std::ifstream file(text.substr(1));
  if (!file) fail_usage("--problem: cannot open " + text.substr(1));
  std::vector<NamedProblem> problems;
  for (std::string line; std::getline(file, line);) {
    line = line.substr(0, line.find('#'));
    while (!line.empty() && (line.back() == ' ' || line.back() == '\r')) line.pop_back();
    if (!line.empty()) problems.push_back(explicit_problem(line));
  }
  if (problems.empty()) fail_usage("--problem: " + text.substr(1) + " holds no problem");
  return problems;
}

LayerOptions parse_layer_options(int& argc, char** argv) {
  LayerOptions options;
  std::string suite = "peers", shard = "1/1", impl;
  std::vector<std::string> dtypes, problems;
  options.cudnn_plans = default_tune_cache();
  options.cudnn_plans.replace(options.cudnn_plans.rfind('/') + 1, std::string::npos, "cudnn_plans.json");

  CLI::App app(
      "bench_layers: the time of single passes, next to the vendor's, the naive kernel's and the hardware's "
      "limit.\n"
      "A row <op>_<pass>/<problem>/<dtype>/<implementation> appears only if that implementation's output on "
      "those\n"
      "buffers agrees with the reference.");
  app.add_option(
         "--suite", suite,
         "peers: shapes compared with vendor libraries (on a CPU at batch 1, 32 and 128); nets: all layers "
         "of the built-in networks at batch 512; full: both, the layers at batch 128, 512 and 2000; test: "
         "the small problems of the tests")
      ->capture_default_str();
  app.add_option("--shard", shard, "I/N: the I-th of N parts of the suite")->capture_default_str();
  app.add_option("--device", options.device, "cuda or cpu (default: cuda where there is a GPU)");
  app.add_option("--dtype", dtypes, "bf16, fp32, tf32, comma-separated (default: bf16 on cuda, fp32 on cpu)")
      ->delimiter(',');
  app.add_option(
         "--problem", problems,
         "instead of a suite, may be repeated or comma-separated: conv2d.fwd:n512_h32_w32_c64_k64_r3 for "
         "one pass, conv2d:... for all of them, @FILE for one a line")
      ->delimiter(',');
  app.add_option("--impl", impl,
                 "rows of these implementations only: 'conv2d.fwd=naive|wgmma:128x256x64_s4,relu.*=naive'");
  app.add_option("--target-spread", options.timing.target_pct,
                 "sample until the median is known to this many percent (half its 95 % interval) ...")
      ->check(above_zero())
      ->capture_default_str();
  app.add_option("--max-seconds", options.max_seconds,
                 "... or for this long a row (default: 0.05 on cuda, where a sample is a millisecond or all "
                 "rotated buffers once, whichever is longer; 0.3 on cpu)")
      ->check(above_zero());
  app.add_option("--cudnn-plans", options.cudnn_plans,
                 "file that remembers how fast each of cuDNN's plans is; '' tries them all again")
      ->capture_default_str();
  app.add_option("--tune-cache", options.tune_cache,
                 "cache of `kiln tune`: where its choice has a config, that is a row beside the heuristic's")
      ->check(CLI::ExistingFile);
  app.add_flag(
      "--profile", options.profile,
      "time nothing: launch each row once between cudaProfilerStart and cudaProfilerStop (scripts/ncu)");
  app.footer(
      "Google Benchmark's flags too: --benchmark_filter=REGEX, --benchmark_out=FILE "
      "--benchmark_out_format=json|csv,\n"
      "--benchmark_list_tests, ...; rows that the filter drops are not measured. What the columns mean:\n"
      "docs/measuring.md.");
  app.allow_extras();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) std::exit(app.exit(error));
    fail_usage(error.what());
  }
  options.suite = suite_from_name(suite);
  read_shard(shard, options);
  for (const std::string& name : dtypes) options.dtypes.push_back(dtype_from_name(name));
  for (const std::string& text : problems) {
    for (NamedProblem& p : problems_from_text(text)) options.problems.push_back(std::move(p));
  }
  options.impl = ImplChoice(impl);
  const std::vector<std::string> rest = app.remaining();
  for (const std::string& word : rest) {
    const std::string filter = "--benchmark_filter=";
    if (word.rfind(filter, 0) == 0) options.filter = word.substr(filter.size());
  }
  // What is left keeps its place in argv.
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    if (std::find(rest.begin(), rest.end(), argv[i]) != rest.end()) argv[kept++] = argv[i];
  }
  argc = kept;
  return options;
}

}  // namespace kiln
