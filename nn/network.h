// Network: the parameters of a described network on a device, apart from any batch size.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "nn/backend.h"
#include "nn/optimizer_options.h"
#include "nn/parameters.h"
#include "nn/step_list.h"

namespace kiln {

// A tensor in PyTorch's layout, fp32.
struct NamedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

class Network {
 public:
  // Allocates the slabs and draws the initial weights. `precision` is fp32 or bf16; `optimizer` decides which
  // state there is room for.
  Network(Backend* backend, ShapedNetwork shaped, DType precision, uint64_t seed,
          Optimizer optimizer = Optimizer::kSgd, bool zero_init_residual = false);

  const ShapedNetwork& shaped() const { return shaped_; }
  const ParameterLayout& layout() const { return layout_; }
  DType precision() const { return precision_; }
  Optimizer optimizer() const { return optimizer_; }
  // Fills in the homes of parameters, gradients, optimizer state and statistics.
  void set_bases(Bases* bases) const;

  // One of kMaster, kGradients, kVelocity and, for adamw, kSecondMoment, in the order of
  // layout().parameters().
  std::vector<NamedTensor> read_slab(Home home) const;
  // `tensors` in that order, with those shapes. kMaster also renews the bf16 copy.
  void write_slab(Home home, const std::vector<NamedTensor>& tensors);
  std::vector<NamedTensor> read_statistics() const;  // in the order of layout().statistics()
  void write_statistics(const std::vector<NamedTensor>& tensors);

  // num_batches_tracked, in the order of layout().trackers(); a training step counts one more.
  const std::vector<int64_t>& batches_tracked() const { return batches_tracked_; }
  void set_batches_tracked(std::vector<int64_t> counts) { batches_tracked_ = std::move(counts); }
  void count_batch();

 private:
  void* slab(Home home) const;
  void upload_masters(const std::vector<float>& masters);
  Backend* backend_;
  ShapedNetwork shaped_;
  ParameterLayout layout_;
  DType precision_;
  Optimizer optimizer_;
  Memory masters_, gradients_, velocity_, statistics_;
  Memory weights_;        // bf16 only
  Memory second_moment_;  // adamw only
  std::vector<int64_t> batches_tracked_;
};

}  // namespace kiln
