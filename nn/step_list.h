// What lower() makes: steps in order, each a plan of an op's pass, and the buffers they read and write.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "kernels/common/impl.h"

namespace kiln {

// Where a buffer lives. Everything but the arena belongs to whoever binds the program.
enum class Home {
  kArena,         // activations, their gradients, saved state: planned by lifetime
  kMaster,        // fp32 parameters
  kWeights,       // what kernels read as weights: the master in fp32, its rounded copy in bf16
  kGradients,     // fp32, laid out as the master
  kVelocity,      // likewise: sgd's velocity, adamw's first moment
  kSecondMoment,  // likewise: adamw's
  kStatistics,    // running means and variances
  kStepState,
  kImages,
  kLabels,
  kOrder,
  kMean,
  kStd,
  kRing,
  kCount
};
// The address of each home; the arena's entry is its base.
using Bases = std::array<void*, static_cast<size_t>(Home::kCount)>;

struct Buffer {
  std::string name;  // "conv1.y", "conv1.dy" (gradient of conv1's output), "conv1.weight"
  Home home{};
  size_t offset = 0;  // bytes from the home's base; the arena's are set by plan_arena()
  size_t bytes = 0;
};
inline constexpr int kNoBuffer = -1;

enum class Phase { kInput, kForward, kLoss, kBackward, kUpdate };

struct Step {
  Phase phase{};
  std::string layer = {};         // ids of the layers it does, "bn1 + relu" where fused
  std::string pass = {};          // "conv2d.fwd"
  std::string problem = {};       // "n512_h32_w32_c3_k64_r3_st1_p1"
  std::string impl = {};          // "naive", "wgmma:128x256x64_s4"
  std::string passed_over = {};   // what --impl or the tuning cache named, and why it is not that
  std::vector<int> buffers = {};  // one a pointer of Args, kNoBuffer for null
  size_t workspace_bytes = 0;
  std::function<Bound(std::span<void* const> pointers, void* workspace)> bind = {};
};

// What decides between slopes in the backward pass. kRelu and kRelu6: the layer's output; kArg: the positions
// that a max pool saved; kArg2: those in 2 bits each, `channels` of them a pixel in whole bytes.
struct Kink {
  enum class Kind { kRelu, kRelu6, kArg, kArg2 } kind{};
  int buffer = kNoBuffer;
  int channels = 0;
};

struct StepList {
  std::vector<Step> steps;
  std::vector<Buffer> buffers;
  // Buffers by role.
  int input = kNoBuffer, labels = kNoBuffer, logits = kNoBuffer, row_loss = kNoBuffer, summary = kNoBuffer;
  std::vector<int> values;            // the buffer of each value of the ShapedNetwork
  std::map<std::string, Kink> kinks;  // "<relu or relu6 id>.y", "<max pool id>.arg"

  std::vector<std::string> lines() const;  // one a step, for --print-plan
  std::set<std::string> notes() const;     // one a step that is not what --impl or the tuning cache named
};

// Places the arena's buffers: two share memory where no step needs both (or none do, with `keep_all`).
// Returns the arena's bytes without workspace; offsets are multiples of 256.
size_t plan_arena(StepList* list, bool keep_all);

}  // namespace kiln
