#include "harness/op_command.h"

#include <cstring>
#include <filesystem>
#include <set>
#include <sstream>

#include "harness/execute.h"
#include "harness/npy.h"
#include "kernels/common/error.h"
#include "kernels/common/step_state.h"

namespace kiln {
namespace {

// A small problem of each op for the help text.
const char* example_problem(const std::string& op) {
  static const std::pair<const char*, const char*> kExamples[] = {
      {"conv2d", "n2_h8_w8_c16_k32_r3"},
      {"depthwise_conv2d", "n2_h8_w8_c16_r3"},
      {"linear", "n4_c64_k10_bias"},
      {"batchnorm", "n2_h8_w8_c16_relu"},
      {"max_pool2d", "n2_h8_w8_c16_r2_st2_p0_arg8"},
      {"avg_pool2d", "n2_h8_w8_c16_r2_st2_p0"},
      {"global_max_pool", "n2_h4_w4_c16_arg32"},
      {"global_avg_pool", "n2_h4_w4_c16"},
      {"relu", "n2_h8_w8_c16"},
      {"relu6", "n2_h8_w8_c16"},
      {"gelu", "n2_h8_w8_c16"},
      {"silu", "n2_h8_w8_c16"},
      {"add", "n2_h8_w8_c16"},
      {"softmax_xent", "n4_c10_ls0.1"},
      {"sgd", "n1000_d900_m0.9_wd0.0005"},
      {"adamw", "n1000_d900_wd0.01_clip1"},
      {"grad_norm", "n1000"},
      {"augment", "n4_h32_w32_c3_m100_pad4_flip"}};
  for (const auto& [name, text] : kExamples) {
    if (op == name) return text;
  }
  return "";
}

// The type of a tensor's file: floating-point tensors are float32 whatever the dtype.
DType file_dtype(const TensorSpec& spec) {
  return spec.dtype == DType::kI32 || spec.dtype == DType::kU8 ? spec.dtype : DType::kF32;
}

std::string describe(const TensorSpec& spec) {
  return std::string(file_dtype(spec) == DType::kF32 ? "float32" : name_of(spec.dtype)) + " " +
         shape_text(spec.shape);
}

void check_count(const char* flag, const std::vector<std::string>& files,
                 const std::vector<TensorSpec>& specs, bool (TensorSpec::*wanted)() const,
                 const PassInfo& pass) {
  std::string names;
  size_t count = 0;
  for (const TensorSpec& spec : specs) {
    if (!(spec.*wanted)()) continue;
    ++count;
    names += " " + spec.name;
  }
  if (files.size() != count) {
    fail_usage(pass.id() + ": " + flag + " takes " + std::to_string(count) + " files (" +
               (names.empty() ? "" : names.substr(1)) + "), got " + std::to_string(files.size()));
  }
}

// Throws Error where a file could not be written because of its name, before any is.
void require_writable(const std::vector<std::string>& files) {
  std::set<std::string> seen;
  for (const std::string& file : files) {
    const std::filesystem::path folder = std::filesystem::path(file).parent_path();
    if (!folder.empty() && !std::filesystem::is_directory(folder)) {
      fail_usage("--out " + file + ": there is no folder " + folder.string());
    }
    if (std::filesystem::is_directory(file)) fail_usage("--out " + file + " is a folder");
    if (!seen.insert(file).second) fail_usage("--out " + file + " is named twice");
  }
}

void load(HostTensor& tensor, const std::string& path) {
  const TensorSpec& spec = tensor.spec;
  const NpyArray array = read_npy(path);
  if (array.shape != spec.shape || array.dtype != file_dtype(spec)) {
    TensorSpec got = spec;
    got.shape = array.shape;
    got.dtype = array.dtype;
    fail_usage("tensor '" + spec.name + "': " + path + " holds " + describe(got) + ", the problem wants " +
               describe(spec));
  }
  std::memcpy(tensor.data.data(), array.data.data(), array.data.size());
}

// Inputs in fp32: files, then what the pass derives where "-" was given.
HostTensors load_inputs(const PassInfo& pass, const OpCommand& command,
                        const std::vector<TensorSpec>& specs) {
  const AnyProblem wide = pass.parse(command.problem, DType::kF32);
  HostTensors tensors;
  for (const TensorSpec& spec : pass.tensors(wide)) tensors.emplace_back(spec);
  bool derive = false;
  size_t next = 0;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (!specs[i].is_input()) continue;
    const std::string& path = command.in[next++];
    if (path != "-") {
      load(tensors[i], path);
    } else if (specs[i].fill == Fill::kDerived) {
      derive = true;
    } else {
      fail_usage(pass.id() + ": '-' was given for '" + specs[i].name + "', which only a file can tell");
    }
  }
  if (!derive) return tensors;
  HostTensors derived = tensors;
  pass.derive(wide, derived);
  next = 0;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (specs[i].is_input() && command.in[next++] == "-") tensors[i].data = derived[i].data;
  }
  return tensors;
}

std::string first_that_supports(const PassInfo& pass, const AnyProblem& problem, const Device& device) {
  for (const ImplInfo& impl : pass.impls(device.kind)) {
    if (!impl.peer && pass.supports(problem, device, impl.name)) return impl.name;
  }
  fail_usage(pass.id() + " " + problem.text + " in " + name_of(problem.dtype) + ": no implementation on " +
             device.name + " supports this problem");
}

void list_tensors(std::ostringstream& text, const char* flag, const std::vector<TensorSpec>& specs,
                  bool (TensorSpec::*wanted)() const) {
  text << "  " << flag << "\n";
  for (const TensorSpec& spec : specs) {
    if (!(spec.*wanted)()) continue;
    text << "    " << spec.name << std::string(spec.name.size() < 14 ? 14 - spec.name.size() : 1, ' ')
         << describe(spec);
    if (spec.role == Role::kInOut) text << (wanted == &TensorSpec::is_input ? ", before" : ", after");
    if (spec.is_input() && spec.fill == Fill::kDerived) {
      text << "; '-' for a value made from the other inputs";
      if (spec.name == "step")
        text << " (the " << sizeof(StepState) << " bytes of StepState in step_state.h)";
    }
    if (spec.fill == Fill::kLabels && spec.limit) text << ", each in [0, " << spec.limit << ")";
    text << "\n";
  }
}

}  // namespace

int run_op_command(const OpCommand& command) {
  const PassInfo& pass = find_pass(command.pass);
  const Device& device = device_from_name(command.device);
  const DType dtype = dtype_from_name(command.dtype);
  if (command.problem.empty()) {
    fail_usage(pass.id() + ": --problem is needed, for example " + example_problem(pass.op));
  }
  const AnyProblem problem = pass.parse(command.problem, dtype);
  const std::vector<TensorSpec> specs = pass.tensors(problem);
  check_count("--in", command.in, specs, &TensorSpec::is_input, pass);
  check_count("--out", command.out, specs, &TensorSpec::is_output, pass);
  require_writable(command.out);
  const std::string impl = command.impl.empty() ? first_that_supports(pass, problem, device) : command.impl;
  pass.plan(problem, device, impl);  // what cannot run is told before files are read
  const HostTensors outputs = execute(pass, problem, device, impl, load_inputs(pass, command, specs));
  size_t next = 0;
  for (const HostTensor& tensor : outputs) {
    if (!tensor.spec.is_output()) continue;
    write_npy(command.out[next++], {tensor.spec.shape, file_dtype(tensor.spec), tensor.data});
  }
  return 0;
}

std::string op_help(const std::string& pass_id, const std::string& problem_text,
                    const std::string& dtype_text) {
  std::ostringstream text;
  if (pass_id.empty()) {
    text << "passes:\n";
    for (const PassInfo& pass : all_passes()) {
      text << "  " << pass.id() << std::string(pass.id().size() < 24 ? 24 - pass.id().size() : 1, ' ')
           << "--problem " << example_problem(pass.op) << "\n";
    }
    return text.str();
  }
  const PassInfo& pass = find_pass(pass_id);
  std::string shown = problem_text.empty() ? example_problem(pass.op) : problem_text;
  if (!shown.empty()) {
    const AnyProblem problem = pass.parse(shown, dtype_from_name(dtype_text));
    const std::vector<TensorSpec> specs = pass.tensors(problem);
    text << "tensors for --problem " << problem.text << " --dtype " << dtype_text
         << ", in this order (images NHWC, filters KRSC):\n";
    list_tensors(text, "--in", specs, &TensorSpec::is_input);
    list_tensors(text, "--out", specs, &TensorSpec::is_output);
  }
  for (const DeviceKind kind : {DeviceKind::kCpu, DeviceKind::kCuda}) {
    const std::vector<ImplInfo> impls = pass.impls(kind);
    if (impls.empty()) continue;
    text << "implementations on --device " << (kind == DeviceKind::kCpu ? "cpu" : "cuda") << ", best first:";
    for (const ImplInfo& impl : impls) text << " " << impl.name << (impl.peer ? " (peer)" : "");
    text << "\n";
  }
  return text.str();
}

}  // namespace kiln
