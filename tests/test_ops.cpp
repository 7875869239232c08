// Every implementation of the ops in KILN_TEST_OPS ("relu,add") on every problem of the test suite that it
// supports. Cases are named <op>_<pass>.<implementation>/<dtype>/<problem>; filter with
// --gtest_filter='conv2d_fwd.naive/bf16/*'.
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <map>
#include <set>

#include "kernels/common/error.h"
#include "tests/support/random_problems.h"
#include "tests/support/runner.h"
#include "tests/support/shapes.h"

namespace kiln {
namespace {

// KILN_TEST_SUBSET, "" for all cases.
std::string subset_name() {
  const char* subset = std::getenv("KILN_TEST_SUBSET");
  return subset ? subset : "";
}

class OpCase : public ::testing::Test {
 public:
  explicit OpCase(const ImplCase& impl_case) : case_(impl_case) {}

  void TestBody() override {
    if (case_.device == DeviceKind::kCuda && !cuda_available()) {
      GTEST_SKIP() << "needs a GPU: " << cuda_unavailable_reason();
    }
    const Device& device = case_.device == DeviceKind::kCuda ? cuda_device() : cpu_device();
    const Support support =
        case_.pass->supports(case_.pass->parse(case_.problem.text, case_.dtype), device, case_.impl.name);
    if (!support) GTEST_SKIP() << "not on " << device.name << ": " << support.rule();
    const Verdict verdict = check({.pass = case_.pass,
                                   .problem = case_.problem.text,
                                   .dtype = case_.dtype,
                                   .device = &device,
                                   .impl = case_.impl.name,
                                   .peer = case_.impl.peer,
                                   .undefined = subset_name() == "sanitizer" && !copies_out()});
    // A vendor's kernel that rounds more than the bound allows has no row in the benchmarks; that is no fault
    // of kiln's.
    constexpr double kVendorRounding = 8;
    if (!verdict.ok && case_.impl.peer && verdict.excess < kVendorRounding) {
      GTEST_SKIP() << "the vendor's rounding is outside the bound: " << verdict.message;
    }
    EXPECT_TRUE(verdict.ok) << case_.problem.label << "\n" << verdict.message;
    if (verdict.ok && (subset_name().empty() || subset_name() == "random") && device.is_cuda() &&
        !case_.impl.peer)
      check_configs(device);
  }

 private:
  // Whether boxes of the result are copied out by the TMA unit, which initcheck does not see: it would call
  // all of it uninitialized. Guards and fills then show what was not written.
  bool copies_out() const { return case_.impl.name == "pointwise" || case_.impl.name == "wgmma_pixel"; }

  // Two of the configs that the tuner may take; which ones changes from problem to problem, so that over the
  // table all have their turn. Plans of all of them exist meanwhile: none may depend on being the last made.
  void check_configs(const Device& device) {
    const AnyProblem problem = case_.pass->parse(case_.problem.text, case_.dtype);
    std::vector<std::string> configs;
    for (const std::string& choice : case_.pass->choices(problem, device)) {
      if (choice.starts_with(case_.impl.name + ":")) configs.push_back(choice);
    }
    std::vector<AnyPlan> plans;
    for (const std::string& config : configs) plans.push_back(case_.pass->plan(problem, device, config));
    const size_t first = std::hash<std::string>()(case_.problem.text);
    for (size_t i = 0; i < std::min<size_t>(2, configs.size()); ++i) {
      const Verdict verdict = check({.pass = case_.pass,
                                     .problem = case_.problem.text,
                                     .dtype = case_.dtype,
                                     .device = &device,
                                     .impl = configs[(first + i) % configs.size()]});
      EXPECT_TRUE(verdict.ok) << case_.problem.label << "\n" << verdict.message;
    }
  }

  ImplCase case_;
};

std::vector<std::string> ops_of_this_program() {
  std::vector<std::string> ops;
  const std::string text = KILN_TEST_OPS;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    ops.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return ops;
}

// KILN_TEST_SUBSET=sanitizer: at most a dozen of the smaller problems of each of kiln's own CUDA
// implementations, pass and type, spread over the table, so that compute-sanitizer (10 to 100 times slower)
// ends within minutes. They run without guard bytes and fills, which would hide what it looks for; with
// KILN_TEST_SUBSET=sample they have them.
std::vector<ImplCase> sanitizer_subset(const std::vector<ImplCase>& all) {
  constexpr size_t kMost = 12;
  constexpr double kMostFlops = 4e6;
  std::map<std::string, std::vector<ImplCase>> groups;
  for (const ImplCase& c : all) {
    if (c.device != DeviceKind::kCuda || c.impl.peer) continue;
    if (c.pass->flops(c.pass->parse(c.problem.text, c.dtype)) > kMostFlops) continue;
    groups[c.pass->id() + " " + c.impl.name + " " + name_of(c.dtype)].push_back(c);
  }
  std::vector<ImplCase> chosen;
  for (const auto& [name, cases] : groups) {
    const size_t count = std::min(kMost, cases.size());
    for (size_t i = 0; i < count; ++i) chosen.push_back(cases[i * cases.size() / count]);
  }
  return chosen;
}

// KILN_TEST_SUBSET=random: instead of the table, KILN_TEST_RANDOM (300) random problems of each pass of
// conv2d.
std::vector<ImplCase> random_convolutions() {
  const char* wanted = std::getenv("KILN_TEST_RANDOM");
  const size_t count = wanted ? std::stoul(wanted) : 300;
  std::vector<NamedProblem> problems;
  for (const char* pass : {"fwd", "dgrad", "wgrad"}) {
    std::set<std::string> drawn;
    for (uint64_t seed = 1; drawn.size() < count; ++seed) {
      const std::string text = random_conv2d(pass, seed);
      if (drawn.insert(text).second) problems.push_back({"conv2d.random", "conv2d", text, pass});
    }
  }
  return test_cases({"conv2d"}, problems);
}

std::vector<ImplCase> cases_of_this_run() {
  const std::string subset = subset_name();
  if (subset.empty()) return test_cases(ops_of_this_program());
  if (subset == "random") return random_convolutions();
  if (subset != "sanitizer" && subset != "sample") {
    fail_usage("KILN_TEST_SUBSET: " +
               unknown_name_message("subset", subset, {"random", "sample", "sanitizer"}));
  }
  return sanitizer_subset(test_cases(ops_of_this_program()));
}

// GoogleTest's own sharding deals cases in turn, and every shard would ask the judge about every problem.
// Here a shard gets all cases of its problems.
std::vector<ImplCase> shard_of(std::vector<ImplCase> cases) {
  const char* total = std::getenv("GTEST_TOTAL_SHARDS");
  const char* index = std::getenv("GTEST_SHARD_INDEX");
  if (!total || !index) return cases;
  const size_t shards = std::stoul(total), own = std::stoul(index);
  std::map<std::string, size_t> shard_of_problem;
  std::erase_if(cases, [&](const ImplCase& c) {
    const std::string problem = c.pass->op + "/" + c.problem.text;
    return shard_of_problem.try_emplace(problem, shard_of_problem.size() % shards).first->second != own;
  });
  unsetenv("GTEST_TOTAL_SHARDS");
  unsetenv("GTEST_SHARD_INDEX");
  return cases;
}

}  // namespace
}  // namespace kiln

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  for (const kiln::ImplCase& c : kiln::shard_of(kiln::cases_of_this_run())) {
    ::testing::RegisterTest(c.pass->row_prefix().c_str(), c.name().c_str(), nullptr, nullptr, __FILE__,
                            __LINE__, [c]() -> kiln::OpCase* { return new kiln::OpCase(c); });
  }
  return RUN_ALL_TESTS();
}
