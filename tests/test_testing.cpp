// The tests can fail: every kind of fault, planted into every output of every pass, is caught.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>

#include "kernels/common/error.h"
#include "tests/support/runner.h"
#include "tests/support/shapes.h"

namespace kiln {
namespace {

enum class Fault {
  kNone,
  kFirst,
  kLast,
  kNaN,
  kInfinity,
  kUnwritten,
  kBefore,
  kBehind,
  kSecondRun,
  kWorkspace
};

struct Planted {
  Fault fault = Fault::kNone;
  size_t tensor = 0;
};

// Adds to an element what is far beyond rounding (a hundredth and a little), or one step for integers.
void nudge(const TensorSpec& spec, void* tensor, int64_t i) {
  if (spec.dtype == DType::kU8) {
    static_cast<unsigned char*>(tensor)[i] ^= 1;
  } else if (spec.dtype == DType::kI32) {
    static_cast<int32_t*>(tensor)[i] ^= 1;
  } else {
    float& value = static_cast<float*>(tensor)[i];
    value = value * 1.01f + (value < 0 ? -0.01f : 0.01f);
  }
}

void corrupt(const TensorSpec& spec, void* tensor, Fault fault, int run) {
  const bool integer = spec.dtype == DType::kU8 || spec.dtype == DType::kI32;
  unsigned char* bytes = static_cast<unsigned char*>(tensor);
  const int64_t last = spec.elements() - 1;
  switch (fault) {
    case Fault::kNone:
    case Fault::kWorkspace:
      return;
    case Fault::kFirst:
      return nudge(spec, tensor, 0);
    case Fault::kLast:
      return nudge(spec, tensor, last);
    case Fault::kNaN:
    case Fault::kInfinity:
      if (integer) return nudge(spec, tensor, last);
      static_cast<float*>(tensor)[last] = fault == Fault::kNaN ? std::numeric_limits<float>::quiet_NaN()
                                                               : std::numeric_limits<float>::infinity();
      return;
    case Fault::kUnwritten:
      std::memset(bytes + static_cast<size_t>(last) * size_of(spec.dtype), 0xff, size_of(spec.dtype));
      return;
    case Fault::kBefore:
      bytes[-1] ^= 1;
      return;
    case Fault::kBehind:
      bytes[spec.bytes()] ^= 1;
      return;
    case Fault::kSecondRun:
      // One bit, too little for any tolerance: on some runs only.
      if (run % 2) bytes[static_cast<size_t>(last) * size_of(spec.dtype)] ^= 1;
      return;
  }
}

// The same pass, whose CPU implementations other than the judge are faulty.
PassInfo with_fault(const PassInfo& pass, Planted planted) {
  PassInfo faulty = pass;
  auto runs = std::make_shared<int>(0);
  faulty.plan = [pass, planted, runs](const AnyProblem& problem, const Device& device,
                                      std::string_view impl) {
    AnyPlan plan = pass.plan(problem, device, "cpu_naive");
    if (impl == "cpu_naive") return plan;
    const std::vector<TensorSpec> specs = pass.tensors(problem);
    const size_t own = plan.workspace_bytes;
    if (planted.fault == Fault::kWorkspace) plan.workspace_bytes = std::max<size_t>(own, 64);
    const size_t given = plan.workspace_bytes;
    const auto bind = plan.bind;
    plan.bind = [=](std::span<void* const> tensors, void* workspace) {
      const Bound bound = bind(tensors, own ? workspace : nullptr);
      void* const tensor = tensors[planted.tensor];
      return Bound([=](Stream stream) {
        bound.launch(stream);
        corrupt(specs[planted.tensor], tensor, planted.fault, (*runs)++);
        if (planted.fault == Fault::kWorkspace) static_cast<unsigned char*>(workspace)[given] = 0;
      });
    };
    return plan;
  };
  return faulty;
}

// The first problem of the pass that has as many outputs as any and is big enough to have a last element that
// is not the first.
std::string find_problem_of(const PassInfo& pass) {
  std::string found;
  size_t most = 0;
  for (const NamedProblem& named : suite_problems(Suite::kTest)) {
    if (named.op != pass.op || !named.has_pass(pass.pass)) continue;
    const AnyProblem problem = pass.parse(named.text, DType::kF32);
    int64_t least = std::numeric_limits<int64_t>::max();
    size_t outputs = 0;
    for (const TensorSpec& spec : pass.tensors(problem)) {
      if (!spec.is_output()) continue;
      least = std::min(least, spec.elements());
      ++outputs;
    }
    if (outputs <= most || least < (pass.op == "grad_norm" ? 1 : 2)) continue;
    found = problem.text;
    most = outputs;
  }
  return found;
}

const std::string& problem_of(const PassInfo& pass) {
  static std::map<std::string, std::string> known;
  const auto it = known.find(pass.id());
  return it != known.end() ? it->second : known[pass.id()] = find_problem_of(pass);
}

Verdict verdict_of(const PassInfo& pass, Planted planted) {
  const PassInfo faulty = with_fault(pass, planted);
  return check({.pass = &faulty,
                .problem = problem_of(pass),
                .dtype = DType::kF32,
                .device = &cpu_device(),
                .impl = "planted"});
}

TEST(PlantedFaults, NoneIsRight) {
  for (const PassInfo& pass : all_passes()) {
    const Verdict verdict = verdict_of(pass, {});
    EXPECT_TRUE(verdict.ok) << verdict.message;
  }
}

TEST(PlantedFaults, EveryFaultInEveryOutputOfEveryPassIsCaught) {
  const std::map<Fault, const char*> faults = {
      {Fault::kFirst, "elements are wrong"},     {Fault::kLast, "elements are wrong"},
      {Fault::kNaN, "elements are wrong"},       {Fault::kInfinity, "elements are wrong"},
      {Fault::kUnwritten, "elements are wrong"}, {Fault::kBefore, "guard bytes before"},
      {Fault::kBehind, "guard bytes behind"}};
  for (const PassInfo& pass : all_passes()) {
    const std::vector<TensorSpec> specs = pass.tensors(pass.parse(problem_of(pass), DType::kF32));
    for (size_t i = 0; i < specs.size(); ++i) {
      if (!specs[i].is_output()) continue;
      for (const auto& [fault, expected] : faults) {
        const Verdict verdict = verdict_of(pass, {fault, i});
        const std::string what =
            pass.id() + " " + specs[i].name + " fault " + std::to_string(static_cast<int>(fault));
        EXPECT_FALSE(verdict.ok) << what;
        EXPECT_NE(verdict.message.find(expected), std::string::npos) << what << ": " << verdict.message;
        EXPECT_NE(verdict.message.find("'" + specs[i].name + "'"), std::string::npos)
            << what << ": " << verdict.message;
      }
    }
  }
}

TEST(PlantedFaults, GuardBeforeAnInputIsWatchedToo) {
  for (const PassInfo& pass : all_passes()) {
    const Verdict verdict = verdict_of(pass, {Fault::kBehind, 0});
    EXPECT_FALSE(verdict.ok) << pass.id();
  }
}

TEST(PlantedFaults, NondeterminismOfOneBitIsCaught) {
  int tried = 0;
  for (const PassInfo& pass : all_passes()) {
    const std::vector<TensorSpec> specs = pass.tensors(pass.parse(problem_of(pass), DType::kF32));
    for (size_t i = 0; i < specs.size(); ++i) {
      // One bit is within bounds on real data only; on exact data and for selections it is simply wrong.
      if (!specs[i].is_output() || specs[i].check == Check::kExact || specs[i].dtype != DType::kF32) continue;
      const Verdict verdict = verdict_of(pass, {Fault::kSecondRun, i});
      EXPECT_FALSE(verdict.ok) << pass.id() << " " << specs[i].name;
      ++tried;
      // One bit of a y that is 0 makes it positive, against its mask.
      const bool masked = specs[i].name == "y" && std::any_of(specs.begin(), specs.end(), [](const auto& s) {
                            return s.is_output() && s.check == Check::kMask;
                          });
      if (specs[i].check == Check::kReal && !masked) {
        EXPECT_NE(verdict.message.find("differs between two runs"), std::string::npos) << verdict.message;
      }
    }
  }
  if (tried == 0) GTEST_SKIP() << "this build has no pass with a bounded output";
}

TEST(PlantedFaults, WorkspaceOverrunIsCaught) {
  const Verdict verdict = verdict_of(all_passes().front(), {Fault::kWorkspace, 0});
  EXPECT_FALSE(verdict.ok);
  EXPECT_NE(verdict.message.find("around the workspace"), std::string::npos) << verdict.message;
}

TEST(PlantedFaults, MessageTellsEverything) {
  const PassInfo& pass = all_passes().front();
  const std::vector<TensorSpec> specs = pass.tensors(pass.parse(problem_of(pass), DType::kF32));
  size_t output = 0;
  while (!specs[output].is_output()) ++output;
  const std::string message = verdict_of(pass, {Fault::kLast, output}).message;
  for (const std::string& part :
       {pass.row_prefix() + "/" + problem_of(pass) + "/fp32/planted", std::string("seed 1"),
        std::string("got "), std::string("wanted "), std::string("--gtest_filter="),
        std::string("--problem ") + problem_of(pass), "'" + specs[output].name + "'"}) {
    EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
  }
}

TEST(Coverage, EnoughCases) {
  std::map<std::string, int> counts;
  for (const ImplCase& c : test_cases({})) ++counts[c.pass->op];
#ifndef KILN_WITH_CUDA
  GTEST_SKIP() << "counts are for builds with CUDA";
#endif
  for (const auto& [op, count] : counts) EXPECT_GE(count, op == "conv2d" ? 1000 : 200) << op;
}

TEST(Coverage, TestProblemsAreSmall) {
  for (const PassInfo& pass : all_passes()) {
    for (const NamedProblem& named : suite_problems(Suite::kTest)) {
      if (named.op != pass.op || !named.has_pass(pass.pass)) continue;
      EXPECT_LT(pass.flops(pass.parse(named.text, DType::kF32)), kCpuJudgeFlops)
          << named.label << " " << named.text;
    }
  }
}

}  // namespace
}  // namespace kiln
