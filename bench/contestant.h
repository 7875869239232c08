// What is compared with each other: the implementations of one problem, each planned, bound to the same
// rotated buffers and held to the judge before anything is timed.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bench/layer_rows.h"
#include "harness/execute.h"
#include "tests/support/runner.h"

namespace kiln {

bool is_naive(const std::string& impl);

// Copies of a problem's tensors, together larger than the cache (on the CPU one): all implementations run on
// the same. And one more as they were at the start, from which the first is restored.
class RotatedBuffers {
 public:
  RotatedBuffers(const std::vector<TensorSpec>& specs, const Device& device, const HostTensors& inputs);
  const std::vector<std::unique_ptr<TensorBuffers>>& sets() const { return sets_; }
  // The first set's inputs, its outputs NaN, its guard bytes whole.
  void restore_first() { sets_[0]->copy_from(kept_); }

 private:
  TensorBuffers kept_;
  std::vector<std::unique_ptr<TensorBuffers>> sets_;
};

// A row's plan, or why there is none.
struct PlannedRow {
  AnyPlan plan;
  std::string error;
};

// One a row. cuDNN's are made by a thread each, because making one is seconds of the CPU's work; all are done
// when this returns, so that nothing of it falls into a timing.
std::vector<PlannedRow> plan_rows(const std::vector<LayerRow>& rows, const AnyProblem& problem,
                                  const Device& device);

// One implementation, bound to every set.
struct Contestant {
  RowResult* result;
  bool naive;
  AnyPlan plan;
  DeviceMemory workspace;
  std::vector<Bound> bounds;
  std::string range;  // for profilers: the row's name and its compulsory bytes

  Contestant(const LayerRow& row, AnyPlan its, const Device& device, const RotatedBuffers& buffers,
             RowResult* its_result);
  // Runs once on the restored first set and throws Error unless no guard byte was overwritten and every
  // output agrees with the judge.
  void gate(const Case& c, RotatedBuffers& buffers, const Reference& reference) const;
};

}  // namespace kiln
