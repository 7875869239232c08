#include "bench/layer_options.h"

#include <fstream>
#include <optional>

#include "kernels/common/error.h"

namespace kiln {

const char* const kLayerHelp =
    "bench_layers: the time of single passes, next to the vendor's, the naive kernel's and the hardware's "
    "limit.\n"
    "\n"
    "A row <op>_<pass>/<problem>/<dtype>/<implementation> appears only if that implementation's output on "
    "those\n"
    "buffers agrees with the reference. Bare: suite peers on the GPU, or without one on the CPU at batch 1 "
    "and 32.\n"
    "\n"
    "  --suite=peers|nets|test    peers: shapes compared with vendor libraries; nets: all layers of "
    "small_cnn and\n"
    "                             resnet18 at batch 512; test: the small problems of the tests\n"
    "  --device=cuda|cpu\n"
    "  --dtype=bf16,fp32,tf32     default: bf16 on the GPU, fp32 on the CPU\n"
    "  --problem=P[,P...]|@FILE   these instead of a suite: conv2d.fwd:n512_h32_w32_c64_k64_r3 for one "
    "pass,\n"
    "                             conv2d:... for all of them; FILE has one a line\n"
    "  --impl=CHOICE              rows of these implementations only: conv2d.fwd=naive|cudnn,relu.*=naive\n"
    "\n";

namespace {

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

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

void add_problems(const std::string& value, std::vector<NamedProblem>& problems) {
  if (value.empty() || value[0] != '@') {
    for (const std::string& text : split(value)) problems.push_back(explicit_problem(text));
    return;
  }
  std::ifstream file(value.substr(1));
  if (!file) fail_usage("--problem: cannot open " + value.substr(1));
  for (std::string line; std::getline(file, line);) {
    line = line.substr(0, line.find('#'));
    while (!line.empty() && (line.back() == ' ' || line.back() == '\r')) line.pop_back();
    if (!line.empty()) problems.push_back(explicit_problem(line));
  }
}

// "--name=value" or "--name value"; advances i over a value of its own.
std::optional<std::string> flag_value(const std::string& name, int argc, char** argv, int& i) {
  const std::string word = argv[i];
  if (word.rfind(name + "=", 0) == 0) return word.substr(name.size() + 1);
  if (word != name) return std::nullopt;
  if (i + 1 >= argc) fail_usage(name + " needs a value");
  return argv[++i];
}

}  // namespace

LayerOptions parse_layer_options(int& argc, char** argv) {
  LayerOptions options;
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    if (const auto suite = flag_value("--suite", argc, argv, i)) {
      options.suite = suite_from_name(*suite);
    } else if (const auto device = flag_value("--device", argc, argv, i)) {
      options.device = *device;
    } else if (const auto dtypes = flag_value("--dtype", argc, argv, i)) {
      for (const std::string& name : split(*dtypes)) options.dtypes.push_back(dtype_from_name(name));
    } else if (const auto problem = flag_value("--problem", argc, argv, i)) {
      add_problems(*problem, options.problems);
    } else if (const auto impl = flag_value("--impl", argc, argv, i)) {
      options.impl = ImplChoice(*impl);
    } else {
      const std::string word = argv[i];
      options.help = options.help || word == "--help" || word == "-h";
      const std::string filter = "--benchmark_filter=";
      if (word.rfind(filter, 0) == 0) options.filter = word.substr(filter.size());
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
  return options;
}

}  // namespace kiln
