#include "nn/resident_data.h"

#include <numeric>
#include <utility>

#include "kernels/common/error.h"
#include "kernels/common/philox.h"

namespace kiln {
namespace {

Memory uploaded(Backend* backend, const void* data, size_t bytes) {
  Memory memory = backend->allocate(bytes);
  backend->upload(memory.get(), data, bytes);
  return memory;
}

template <class T>
Memory uploaded(Backend* backend, const std::vector<T>& values) {
  return uploaded(backend, values.data(), values.size() * sizeof(T));
}

std::vector<int32_t> identity_order(long long count) {
  std::vector<int32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  return order;
}

}  // namespace

std::vector<int32_t> epoch_order(uint64_t seed, long long epoch, long long count, bool shuffle) {
  std::vector<int32_t> order = identity_order(count);
  if (!shuffle) return order;
  for (long long i = count - 1; i > 0; --i) {
    const Philox4 draw = philox(seed, PhiloxStream::kShuffle, static_cast<uint64_t>(epoch * count + i));
    const uint64_t bits = static_cast<uint64_t>(draw.v[0]) << 32 | draw.v[1];
    const auto j = static_cast<long long>(static_cast<unsigned __int128>(bits) * (i + 1) >> 64);
    std::swap(order[i], order[j]);
  }
  return order;
}

ResidentData::ResidentData(Backend* backend, const Dataset& data, const std::vector<float>& mean,
                           const std::vector<float>& std)
    : count_(data.count()) {
  const std::string name = "data set '" + data.name + "': ";
  const size_t pixels = static_cast<size_t>(data.height) * data.width * data.channels;
  if (count_ == 0) fail_usage(name + "has no images");
  if (count_ > INT32_MAX) fail_usage(name + "has more than 2^31 - 1 images");
  if (data.images.size() != pixels * data.labels.size())
    fail_usage(name + "its images and labels differ in number");
  if (mean.size() != static_cast<size_t>(data.channels) || std.size() != mean.size()) {
    fail_usage(name + "needs a mean and a standard deviation a channel");
  }
  images_ = uploaded(backend, data.images);
  labels_ = uploaded(backend, data.labels);
  order_ = uploaded(backend, identity_order(count_));
  mean_ = uploaded(backend, mean);
  std_ = uploaded(backend, std);
  order_uploads_ = backend->make_upload_ring(count_ * sizeof(int32_t), 2);
}

void ResidentData::start_epoch(uint64_t seed, long long epoch, bool shuffle) {
  const std::vector<int32_t> order = epoch_order(seed, epoch, count_, shuffle);
  order_uploads_->push(order_.get(), order.data(), order.size() * sizeof(int32_t));
}

void ResidentData::set_bases(Bases* bases) const {
  const auto set = [bases](Home home, const Memory& memory) {
    (*bases)[static_cast<size_t>(home)] = memory.get();
  };
  set(Home::kImages, images_);
  set(Home::kLabels, labels_);
  set(Home::kOrder, order_);
  set(Home::kMean, mean_);
  set(Home::kStd, std_);
}

}  // namespace kiln
