// kernels/common: problem strings, implementation choices, names, bf16, Philox; and the tolerance that guards
// the rest.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/common/error.h"
#include "kernels/common/impl_choice.h"
#include "kernels/common/philox.h"
#include "kernels/common/problem_string.h"
#include "tests/support/shapes.h"
#include "tests/support/tolerance.h"

namespace kiln {
namespace {

// The message of the Error that `body` throws, "" where it throws none.
template <class Body>
std::string error_of(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

#define EXPECT_CONTAINS(text, part) \
  EXPECT_TRUE(contains(text, part)) << "got: " << (text) << "\nwithout: " << (part)

// Problem strings ---------------------------------------------------------------------------------

TEST(ProblemString, RoundTripOfEveryProblemOfEverySuite) {
  for (const Suite suite : {Suite::kPeers, Suite::kNets, Suite::kTest}) {
    for (const NamedProblem& named : suite_problems(suite)) {
      for (const PassInfo& pass : all_passes()) {
        if (pass.op != named.op || !named.has_pass(pass.pass)) continue;
        const AnyProblem problem = pass.parse(named.text, DType::kF32);
        const AnyProblem again = pass.parse(problem.text, DType::kF32);
        EXPECT_EQ(problem.text, again.text) << named.label;
        EXPECT_EQ(pass.parse(pass.op + ":" + named.text, DType::kF32).text, problem.text);
        const std::vector<TensorSpec> a = pass.tensors(problem), b = pass.tensors(again);
        ASSERT_EQ(a.size(), b.size());
        for (size_t i = 0; i < a.size(); ++i)
          EXPECT_EQ(a[i].shape, b[i].shape) << named.label << " " << a[i].name;
        EXPECT_GT(pass.compulsory_bytes(problem), 0) << named.label;
      }
    }
  }
}

TEST(ProblemString, EveryOpNamesAnUnknownField) {
  for (const NamedProblem& named : suite_problems(Suite::kTest)) {
    for (const PassInfo& pass : all_passes()) {
      if (pass.op != named.op) continue;
      const std::string message = error_of([&] { pass.parse(named.text + "_bogus", DType::kF32); });
      EXPECT_CONTAINS(message, pass.op + ":");
      EXPECT_CONTAINS(message, "unknown field 'bogus'");
    }
  }
}

TEST(ProblemString, ReaderErrorsNameTheField) {
  const auto read = [](const char* text) {
    return error_of([&] {
      const ProblemReader in("pool", text, {"n", "r", "ls"}, {"bias"});
      in.integer("n");
      in.pair("r", {1, 1});
      in.real("ls", 0);
    });
  };
  EXPECT_EQ(read("n2_r3x5_ls0.5_bias"), "");
  EXPECT_CONTAINS(read("r3"), "field 'n' is missing");
  EXPECT_CONTAINS(read("n2_n3"), "given twice");
  EXPECT_CONTAINS(read("n2x"), "takes a whole number, got '2x'");
  EXPECT_CONTAINS(read("n2_r3x"), "takes '3' or '3x5', got '3x'");
  EXPECT_CONTAINS(read("n2_ls0.5q"), "takes a number");
  EXPECT_CONTAINS(read("n99999999999"), "beyond 32 bits");
  EXPECT_CONTAINS(read("n2__bias"), "unknown field ''");
  EXPECT_CONTAINS(read(""), "unknown field ''");
  EXPECT_CONTAINS(read("conv:n2"), "is for op 'conv', expected 'pool'");
  EXPECT_CONTAINS(read("n2_bais"), "did you mean 'bias'?");
  EXPECT_EQ(read("pool:n2"), "");
}

TEST(ProblemString, WriterPrintsWhatReadsBack) {
  EXPECT_EQ(ProblemWriter()
                .field("n", 2)
                .pair("r", 3, 3)
                .pair("st", 1, 2)
                .real("ls", 0.1)
                .flag("relu")
                .flag("no", false)
                .str(),
            "n2_r3_st1x2_ls0.1_relu");
}

// Choices -----------------------------------------------------------------------------------------

// An exact pass of this build, for texts that must be valid in partial builds too.
const PassInfo& some_pass() { return all_passes().front(); }

TEST(ImplChoice, NothingWishedByDefault) {
  EXPECT_EQ(ImplChoice().wish(some_pass().op, some_pass().pass, DeviceKind::kCpu).name, "");
  EXPECT_EQ(ImplChoice("").wish(some_pass().op, some_pass().pass, DeviceKind::kCpu).name, "");
}

TEST(ImplChoice, LaterAssignmentsWinAndConfigsAreKept) {
  const std::string id = some_pass().id();
  const ImplChoice choice("*=cpu_fast," + id + "=cpu_naive:64x64");
  EXPECT_EQ(choice.wish(some_pass().op, some_pass().pass, DeviceKind::kCpu).name, "cpu_naive:64x64");
  EXPECT_EQ(ImplChoice("*=cpu_naive").wish(some_pass().op, some_pass().pass, DeviceKind::kCpu).name,
            "cpu_naive");
  EXPECT_EQ(
      ImplChoice(some_pass().op + "=cpu_naive").wish(some_pass().op, some_pass().pass, DeviceKind::kCpu).name,
      "cpu_naive");
}

TEST(ImplChoice, AlternativesWhereSeveralAreCompared) {
  const ImplChoice choice("*.*=cpu_naive|cpu_fast");
  EXPECT_EQ(choice.alternatives(some_pass().op, some_pass().pass, DeviceKind::kCpu),
            (std::vector<std::string>{"cpu_naive", "cpu_fast"}));
  EXPECT_CONTAINS(error_of([&] { choice.wish(some_pass().op, some_pass().pass, DeviceKind::kCpu); }),
                  "2 alternatives");
}

TEST(ImplChoice, GlobSkipsWhatLacksTheNameAndListsIt) {
  // No CPU implementation has a CUDA name, so on CUDA "cpu_naive" is skipped everywhere.
  const ImplChoice choice("*=cpu_naive");
  EXPECT_TRUE(choice.skipped(DeviceKind::kCpu).empty());
  EXPECT_EQ(choice.skipped(DeviceKind::kCuda).size(), all_passes().size());
}

TEST(ImplChoice, ExactNameThatIsMissingIsAnError) {
  const std::string id = some_pass().id();
  EXPECT_CONTAINS(error_of([&] { ImplChoice choice(id + "=cpu_naiv"); }), "did you mean 'cpu_naive'?");
  EXPECT_CONTAINS(error_of([&] { ImplChoice choice(id + "x=cpu_naive"); }), "did you mean '" + id + "'?");
  const ImplChoice exact(id + "=cpu_naive");
  EXPECT_CONTAINS(error_of([&] { exact.wish(some_pass().op, some_pass().pass, DeviceKind::kCuda); }),
                  "unknown implementation 'cpu_naive'");
}

TEST(ImplChoice, MalformedTexts) {
  for (const char* text : {"cpu_naive", "=cpu_naive", "relu.fwd=", "*=cpu_naive,", ","}) {
    EXPECT_CONTAINS(error_of([&] { ImplChoice choice(text); }), "expected <op>.<pass>=<implementation>");
  }
}

TEST(ImplChoice, Globs) {
  EXPECT_TRUE(glob_match("*", ""));
  EXPECT_TRUE(glob_match("f?d*", "fwd_train"));
  EXPECT_TRUE(glob_match("*grad", "dgrad"));
  EXPECT_FALSE(glob_match("?grad", "grad"));
  EXPECT_FALSE(glob_match("", "a"));
}

TEST(Names, NearestIsSuggestedOnlyWhereNear) {
  EXPECT_EQ(nearest_name("resnet81", {"small_cnn", "resnet18"}), "resnet18");
  EXPECT_EQ(nearest_name("zzzzzz", {"small_cnn", "resnet18"}), "");
  EXPECT_EQ(unknown_name_message("suite", "pears", {"peers", "nets"}),
            "unknown suite 'pears'; did you mean 'peers'? known: peers, nets");
  EXPECT_CONTAINS(error_of([] { find_pass("conv3d.fwdd"); }), "known:");
  EXPECT_CONTAINS(error_of([] { dtype_from_name("bf61"); }), "did you mean 'bf16'?");
  EXPECT_CONTAINS(error_of([] { device_from_name("cdua"); }), "known: cpu, cuda");
}

TEST(Registry, EveryPassHasItsJudgeLastOnTheCpu) {
  for (const PassInfo& pass : all_passes()) {
    ASSERT_FALSE(pass.impls(DeviceKind::kCpu).empty()) << pass.id();
    EXPECT_EQ(pass.impls(DeviceKind::kCpu).back().name, "cpu_naive") << pass.id();
    bool peers = false;
    std::string last_own;
    for (const ImplInfo& impl : pass.impls(DeviceKind::kCuda)) {
      EXPECT_FALSE(peers && !impl.peer) << pass.id() << ": peers come last";
      peers = peers || impl.peer;
      if (!impl.peer) last_own = impl.name;
    }
    if (!last_own.empty()) {
      EXPECT_EQ(last_own, "naive") << pass.id();
    }
  }
}

// Numbers -----------------------------------------------------------------------------------------

TEST(Bf16, EveryValueRoundTrips) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = bf16_value(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bf16_value(bf16_bits(value))));
    } else {
      ASSERT_EQ(bf16_bits(value), bits);
    }
  }
}

TEST(Bf16, RoundsToNearestEven) {
  for (uint32_t bits = 1; bits < 0x7f7f; ++bits) {  // positive finite neighbours
    const double low = bf16_value(static_cast<uint16_t>(bits)),
                 high = bf16_value(static_cast<uint16_t>(bits + 1));
    const float middle = static_cast<float>((low + high) / 2);
    const float even = static_cast<float>(bits % 2 ? high : low);
    ASSERT_EQ(round_to_bf16(middle), even) << bits;
    ASSERT_EQ(round_to_bf16(-middle), -even) << bits;
    ASSERT_EQ(round_to_bf16(std::nextafter(middle, 0.0f)), static_cast<float>(low)) << bits;
    ASSERT_EQ(round_to_bf16(std::nextafter(middle, INFINITY)), static_cast<float>(high)) << bits;
  }
  EXPECT_EQ(round_to_bf16(std::numeric_limits<float>::max()), INFINITY);
  EXPECT_TRUE(
      std::isnan(round_to_bf16(std::bit_cast<float>(0x7f800001u))));  // payload only in the bits that are cut
}

// The vectors that Random123 publishes for philox4x32-10 (counter, key, result).
TEST(Philox, KnownAnswers) {
  const auto expect = [](uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1,
                         Philox4 want) {
    const Philox4 got = philox(k0 | static_cast<uint64_t>(k1) << 32, static_cast<PhiloxStream>(c2),
                               c0 | static_cast<uint64_t>(c1) << 32, c3);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(got.v[i], want.v[i]) << i;
  };
  expect(0, 0, 0, 0, 0, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}});
  expect(~0u, ~0u, ~0u, ~0u, ~0u, ~0u, {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}});
  expect(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0,
         {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}});
}

TEST(Philox, UniformStaysInRange) {
  EXPECT_EQ(uniform01(0), 0.0f);
  EXPECT_LT(uniform01(~0u), 1.0f);
  EXPECT_EQ(uniform_below(~0u, 10), 9u);
  EXPECT_EQ(uniform_below(0, 10), 0u);
}

// Tolerance ---------------------------------------------------------------------------------------

TEST(Tolerances, NaNAndInfinityNeverPass) {
  const double nan = std::nan("");
  for (const Check kind : {Check::kSum, Check::kExact, Check::kReal}) {
    for (const FillMode mode : {FillMode::kExact, FillMode::kReal}) {
      const Tolerance t = tolerance_for({.name = "y", .shape = {4}, .check = kind, .terms = 1e9}, DType::kF32,
                                        mode, true, 1e30);
      EXPECT_FALSE(within(t, DType::kF32, nan, 1));
      EXPECT_FALSE(within(t, DType::kF32, 1, nan));
      EXPECT_FALSE(within(t, DType::kF32, nan, nan));
      EXPECT_FALSE(within(t, DType::kF32, INFINITY, 1));
      EXPECT_FALSE(within(t, DType::kF32, INFINITY, INFINITY));
    }
  }
}

TEST(Tolerances, ExactDataLeavesNoRoom) {
  const TensorSpec y = {.name = "y", .shape = {4}, .dtype = DType::kBF16, .terms = 576};
  const Tolerance exact = tolerance_for(y, DType::kBF16, FillMode::kExact, false, 100);
  EXPECT_TRUE(
      within(exact, DType::kBF16, 256, 257));  // 257 lies halfway between 256 and 258; 256 is even in bf16
  EXPECT_FALSE(within(exact, DType::kBF16, 258, 257));
  EXPECT_FALSE(within(exact, DType::kBF16, 257, 257));
  EXPECT_TRUE(within(exact, DType::kBF16, 256, 256));
  EXPECT_TRUE(tolerance_for(y, DType::kBF16, FillMode::kExact, false, 100).bit_equal);
  EXPECT_FALSE(tolerance_for(y, DType::kBF16, FillMode::kExact, true, 100).bit_equal);
  EXPECT_FALSE(tolerance_for(y, DType::kBF16, FillMode::kReal, false, 100).bit_equal);
}

TEST(Tolerances, Fp32RejectsArithmeticInTf32AndBf16) {
  for (const double terms : {9.0, 576.0, 4608.0, 524288.0}) {
    const TensorSpec y = {.name = "y", .shape = {1000}, .terms = terms};
    const double rms = std::sqrt(terms);
    const Tolerance t = tolerance_for(y, DType::kF32, FillMode::kReal, false, rms);
    const double tf32_error = 0x1p-12 * rms;
    EXPECT_GT(tf32_error, t.norm) << terms;
    EXPECT_LT(tf32_error, tolerance_for(y, DType::kTF32, FillMode::kReal, false, rms).norm) << terms;
  }
}

TEST(Tolerances, ExactFillKeepsSumsBelowTwoToThe24) {
  for (const double terms : {1.0, 1e3, 1.8e6, 4e6, 1.6e7}) {
    const int limit = exact_limit(terms);
    EXPECT_LT(terms * limit * limit, 16777216.0);
  }
  EXPECT_EQ(exact_limit(1000), 3);
  EXPECT_CONTAINS(error_of([] { exact_limit(2e7); }), "too long");
}

}  // namespace
}  // namespace kiln
