// A data set in device memory, and the order in which an epoch reads it.
#pragma once

#include <vector>

#include "data/dataset.h"
#include "nn/backend.h"
#include "nn/step_list.h"

namespace kiln {

// The images' order in an epoch: Fisher-Yates with Philox draws of (seed, epoch, position), or 0, 1, 2, ...
// without `shuffle`. The same on every device.
std::vector<int32_t> epoch_order(uint64_t seed, long long epoch, long long count, bool shuffle);

class ResidentData {
 public:
  // Copies images, labels, the order 0, 1, 2, ..., mean and std to the device. Throws Error for a data set
  // whose arrays do not fit its shape.
  ResidentData(Backend* backend, const Dataset& data, const std::vector<float>& mean,
               const std::vector<float>& std);

  long long count() const { return count_; }
  // Uploads the order of an epoch in stream order, without stopping the host.
  void start_epoch(uint64_t seed, long long epoch, bool shuffle);
  void set_bases(Bases* bases) const;

 private:
  long long count_;
  Memory images_, labels_, order_, mean_, std_;
  std::unique_ptr<UploadRing> order_uploads_;
};

}  // namespace kiln
