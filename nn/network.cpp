#include "nn/network.h"

#include <algorithm>

#include "kernels/common/error.h"

namespace kiln {

Network::Network(Backend* backend, ShapedNetwork shaped, DType precision, uint64_t seed, Optimizer optimizer,
                 bool zero_init_residual)
    : backend_(backend),
      shaped_(std::move(shaped)),
      layout_(shaped_),
      precision_(precision),
      optimizer_(optimizer) {
  if (precision != DType::kF32 && precision != DType::kBF16) {
    fail_usage(std::string("precision ") + name_of(precision) + ": training takes fp32 or bf16");
  }
  if (precision == DType::kBF16 && !backend->device().is_cuda()) {
    fail_usage("precision bf16: the CPU trains in fp32 only; use --precision fp32");
  }
  const size_t bytes = layout_.slab_elements() * sizeof(float);
  masters_ = backend->allocate(bytes);
  gradients_ = backend->allocate(bytes);
  velocity_ = backend->allocate(bytes);
  if (optimizer == Optimizer::kAdamw) second_moment_ = backend->allocate(bytes);
  statistics_ = backend->allocate(layout_.statistics_elements() * sizeof(float));
  if (precision == DType::kBF16) weights_ = backend->allocate(layout_.slab_elements() * sizeof(uint16_t));
  upload_masters(layout_.initial_parameters(seed, zero_init_residual));
  const std::vector<float> statistics = layout_.initial_statistics();
  backend->upload(statistics_.get(), statistics.data(), statistics.size() * sizeof(float));
  batches_tracked_.assign(layout_.trackers().size(), 0);
}

void Network::upload_masters(const std::vector<float>& masters) {
  backend_->upload(masters_.get(), masters.data(), masters.size() * sizeof(float));
  if (!weights_) return;
  std::vector<uint16_t> rounded(masters.size());
  std::transform(masters.begin(), masters.end(), rounded.begin(), bf16_bits);
  backend_->upload(weights_.get(), rounded.data(), rounded.size() * sizeof(uint16_t));
}

void* Network::slab(Home home) const {
  switch (home) {
    case Home::kMaster:
      return masters_.get();
    case Home::kGradients:
      return gradients_.get();
    case Home::kVelocity:
      return velocity_.get();
    case Home::kSecondMoment:
      if (second_moment_) return second_moment_.get();
      break;
    default:
      break;
  }
  fail_failure("not a parameter slab of this network");
}

void Network::set_bases(Bases* bases) const {
  const auto set = [bases](Home home, void* base) { (*bases)[static_cast<size_t>(home)] = base; };
  set(Home::kMaster, masters_.get());
  set(Home::kWeights, weights_ ? weights_.get() : masters_.get());
  set(Home::kGradients, gradients_.get());
  set(Home::kVelocity, velocity_.get());
  set(Home::kSecondMoment, second_moment_.get());
  set(Home::kStatistics, statistics_.get());
}

std::vector<NamedTensor> Network::read_slab(Home home) const {
  std::vector<float> host(layout_.slab_elements());
  backend_->download(host.data(), slab(home), host.size() * sizeof(float));
  std::vector<NamedTensor> tensors;
  for (const Parameter& p : layout_.parameters()) {
    tensors.push_back({p.name, p.shape, std::vector<float>(p.count())});
    to_torch_order(p, host.data() + p.offset, tensors.back().values.data());
  }
  return tensors;
}

void Network::write_slab(Home home, const std::vector<NamedTensor>& tensors) {
  std::vector<float> host(layout_.slab_elements(), 0.0f);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Parameter& p = layout_.parameters()[i];
    to_slab_order(p, tensors[i].values.data(), host.data() + p.offset);
  }
  if (home == Home::kMaster) {
    upload_masters(host);
  } else {
    backend_->upload(slab(home), host.data(), host.size() * sizeof(float));
  }
}

std::vector<NamedTensor> Network::read_statistics() const {
  std::vector<float> host(layout_.statistics_elements());
  backend_->download(host.data(), statistics_.get(), host.size() * sizeof(float));
  std::vector<NamedTensor> tensors;
  for (const Statistic& s : layout_.statistics()) {
    const auto begin = host.begin() + static_cast<std::ptrdiff_t>(s.offset);
    tensors.push_back({s.name, {s.channels}, std::vector<float>(begin, begin + s.channels)});
  }
  return tensors;
}

void Network::write_statistics(const std::vector<NamedTensor>& tensors) {
  std::vector<float> host(layout_.statistics_elements(), 0.0f);
  for (size_t i = 0; i < tensors.size(); ++i) {
    std::copy(tensors[i].values.begin(), tensors[i].values.end(),
              host.begin() + static_cast<std::ptrdiff_t>(layout_.statistics()[i].offset));
  }
  backend_->upload(statistics_.get(), host.data(), host.size() * sizeof(float));
}

void Network::count_batch() {
  for (int64_t& count : batches_tracked_) ++count;
}

}  // namespace kiln
