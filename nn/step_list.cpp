#include "nn/step_list.h"

#include <algorithm>

namespace kiln {
namespace {

struct Lifetime {
  int buffer;
  int first, last;  // steps, inclusive
};

std::vector<Lifetime> lifetimes(const StepList& list) {
  const int never = static_cast<int>(list.steps.size());
  std::vector<Lifetime> lives;
  for (int b = 0; b < static_cast<int>(list.buffers.size()); ++b) lives.push_back({b, never, -1});
  for (int s = 0; s < never; ++s) {
    for (int b : list.steps[s].buffers) {
      if (b == kNoBuffer) continue;
      lives[b].first = std::min(lives[b].first, s);
      lives[b].last = s;
    }
  }
  std::erase_if(lives,
                [&](const Lifetime& l) { return list.buffers[l.buffer].home != Home::kArena || l.last < 0; });
  return lives;
}

}  // namespace

// Greedy by size: the largest buffer first, each at the lowest place that is free during its life.
size_t plan_arena(StepList* list, bool keep_all) {
  std::vector<Lifetime> lives = lifetimes(*list);
  std::stable_sort(lives.begin(), lives.end(), [&](const Lifetime& a, const Lifetime& b) {
    return list->buffers[a.buffer].bytes > list->buffers[b.buffer].bytes;
  });
  std::vector<Lifetime> placed;  // by offset
  size_t arena = 0;
  for (const Lifetime& life : lives) {
    Buffer& buffer = list->buffers[life.buffer];
    size_t offset = 0;
    for (const Lifetime& other : placed) {
      if (!keep_all && (other.last < life.first || life.last < other.first)) continue;
      const Buffer& taken = list->buffers[other.buffer];
      if (offset + buffer.bytes <= taken.offset) break;
      offset = std::max(offset, (taken.offset + taken.bytes + 255) / 256 * 256);
    }
    buffer.offset = offset;
    arena = std::max(arena, offset + buffer.bytes);
    const auto place = std::find_if(placed.begin(), placed.end(), [&](const Lifetime& other) {
      return list->buffers[other.buffer].offset > offset;
    });
    placed.insert(place, life);
  }
  return (arena + 255) / 256 * 256;
}

std::vector<std::string> StepList::lines() const {
  std::vector<std::string> lines;
  for (const Step& step : steps) {
    std::string line = step.pass;
    if (!step.problem.empty()) line += " " + step.problem;
    line += " " + step.impl;
    if (!step.layer.empty()) line += "  # " + step.layer;
    lines.push_back(line);
  }
  return lines;
}

std::set<std::string> StepList::notes() const {
  std::set<std::string> notes;
  for (const Step& step : steps) {
    if (step.passed_over.empty()) continue;
    notes.insert(step.pass + " " + step.problem + ": " + step.impl + " (" + step.passed_over + ")");
  }
  return notes;
}

}  // namespace kiln
