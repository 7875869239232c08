#include "tests/support/shapes.h"

#include <algorithm>
#include <set>

#include "kernels/common/error.h"
#include "tests/support/shape_lists.h"

namespace kiln {
namespace {

// Each problem and pass list once, the first label wins and counts those that share it.
std::vector<NamedProblem> unique(const std::vector<NamedProblem>& all) {
  std::vector<NamedProblem> list;
  std::vector<int> counts;
  for (const NamedProblem& p : all) {
    const auto same = std::find_if(list.begin(), list.end(), [&](const NamedProblem& q) {
      return q.op == p.op && q.text == p.text && q.passes == p.passes;
    });
    if (same == list.end()) {
      list.push_back(p);
      counts.push_back(1);
    } else {
      ++counts[static_cast<size_t>(same - list.begin())];
    }
  }
  for (size_t i = 0; i < list.size(); ++i) {
    if (counts[i] > 1) list[i].label += " (x" + std::to_string(counts[i]) + ")";
  }
  return list;
}

void append(std::vector<NamedProblem>& list, std::vector<NamedProblem> more) {
  list.insert(list.end(), more.begin(), more.end());
}

std::vector<NamedProblem> nets() {
  std::vector<NamedProblem> list = network_problems("small_cnn", 512);
  append(list, network_problems("resnet18", 512));
  append(list, network_problems("mobilenet_v1", 512));
  append(list, network_problems("mobilenet_v2", 512));
  return unique(list);
}

// The peers' rows, and the networks' layers at three batch sizes.
std::vector<NamedProblem> full(const std::vector<NamedProblem>& peers,
                               const std::vector<NamedProblem>& nets) {
  std::vector<NamedProblem> list = peers;
  for (const int batch : {128, 512, 2000}) {
    for (const NamedProblem& p : nets) {
      const bool slab = p.label.ends_with(".parameters");  // n is no batch there
      append(list, {{p.label, p.op, slab ? p.text : with_batch(p.text, batch), p.passes}});
    }
  }
  append(list, {{"mlp.n512_c25088_k4096", "linear", "n512_c25088_k4096", ""},
                {"mlp.n8192_c1024_k1000.f32out", "linear", "n8192_c1024_k1000_f32out", "fwd,dgrad"}});
  return unique(list);
}

std::vector<NamedProblem> tests() {
  std::vector<NamedProblem> list;
  append(list, test_convolutions());
  append(list, test_depthwise_convolutions());
  append(list, test_other_layers());
  append(list, test_updates());
  // Real layers: small ones at batch 2, large ones at batch 1 (resnet18's convolutions: 37.7 MMAC an image).
  append(list, network_problems("small_cnn", 2));
  append(list, network_problems("resnet18", 1));
  append(list, network_problems("mobilenet_v1", 1));
  append(list, network_problems("mobilenet_v2", 1));
  for (const NamedProblem& p : peer_problems()) {
    const bool convolution = p.op == "conv2d" || p.op == "depthwise_conv2d";
    append(list, {{p.label, p.op, with_batch(p.text, convolution ? 1 : 2), p.passes}});
  }
  // Slabs of whole networks are for the bench.
  std::erase_if(list, [](const NamedProblem& p) { return p.label.ends_with(".parameters"); });
  return unique(list);
}

}  // namespace

bool NamedProblem::has_pass(std::string_view pass) const {
  return passes.empty() || ("," + passes + ",").find("," + std::string(pass) + ",") != std::string::npos;
}

Suite suite_from_name(std::string_view name) {
  if (name == "peers") return Suite::kPeers;
  if (name == "nets") return Suite::kNets;
  if (name == "full") return Suite::kFull;
  if (name == "test") return Suite::kTest;
  fail_usage(unknown_name_message("suite", name, {"peers", "nets", "full", "test"}));
}

const std::vector<NamedProblem>& suite_problems(Suite suite) {
  static const std::vector<NamedProblem> kPeers = unique(peer_problems()), kNets = nets(), kTests = tests();
  static const std::vector<NamedProblem> kFull = full(kPeers, kNets);
  switch (suite) {
    case Suite::kPeers:
      return kPeers;
    case Suite::kNets:
      return kNets;
    case Suite::kFull:
      return kFull;
    default:
      return kTests;
  }
}

std::string with_batch(const std::string& text, long long n) {
  return "n" + std::to_string(n) + (text.find('_') == std::string::npos ? "" : text.substr(text.find('_')));
}

const Device& nominal_cuda_device() {
  static const Device device = {.kind = DeviceKind::kCuda,
                                .name = "nominal sm_90",
                                .uuid = "",
                                .sm = 90,
                                .multiprocessors = 132,
                                .l2_bytes = size_t{50} << 20,
                                .smem_per_block = 227 * 1024,
                                .memory_bytes = size_t{80} << 30,
                                .threads = 1,
                                .isa = ""};
  return device;
}

std::string ImplCase::name() const { return impl.name + "/" + name_of(dtype) + "/" + problem.text; }

std::vector<ImplCase> test_cases(const std::vector<std::string>& ops) {
  return test_cases(ops, suite_problems(Suite::kTest));
}

std::vector<ImplCase> test_cases(const std::vector<std::string>& ops,
                                 const std::vector<NamedProblem>& problems) {
  std::vector<ImplCase> list;
  std::set<std::string> seen;
  for (const PassInfo& pass : all_passes()) {
    if (!ops.empty() && std::find(ops.begin(), ops.end(), pass.op) == ops.end()) continue;
    for (const NamedProblem& named : problems) {
      if (named.op != pass.op || !named.has_pass(pass.pass)) continue;
      for (const DType dtype : {DType::kF32, DType::kBF16, DType::kTF32}) {
        AnyProblem problem;
        try {
          problem = pass.parse(named.text, dtype);
        } catch (const Error&) {
          if (dtype == DType::kF32) throw;  // the table is wrong; other dtypes an op may lack
          continue;
        }
        for (const DeviceKind kind : {DeviceKind::kCpu, DeviceKind::kCuda}) {
          for (const ImplInfo& impl : pass.impls(kind)) {
            const Device& device = kind == DeviceKind::kCpu ? cpu_device() : nominal_cuda_device();
            if (!pass.supports(problem, device, impl.name)) continue;
            ImplCase c{&pass, named, dtype, kind, impl};
            c.problem.text = problem.text;
            if (seen.insert(pass.id() + "/" + c.name()).second) list.push_back(c);
          }
        }
      }
    }
  }
  return list;
}

}  // namespace kiln
