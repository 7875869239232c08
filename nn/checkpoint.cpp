#include "nn/checkpoint.h"

#include <cstring>
#include <set>

#include "data/safetensors.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

// A tensor of the optimizer's state: what a parameter's name is followed by, and its slab.
struct Moment {
  const char* suffix;
  Home home;
};

std::vector<Moment> moments(Optimizer optimizer) {
  if (optimizer == Optimizer::kAdamw) {
    return {{".exp_avg", Home::kVelocity}, {".exp_avg_sq", Home::kSecondMoment}};
  }
  return {{".velocity", Home::kVelocity}};
}

// The tensors of a file, taken by name; what is left over at the end is an error.
class TensorTaker {
 public:
  explicit TensorTaker(const std::string& path) : path_(path), file_(read_safetensors(path)) {
    for (const SafeTensor& t : file_.tensors) left_.insert(t.name);
  }

  std::vector<float> take_f32(const std::string& name, const std::vector<int64_t>& shape) {
    const SafeTensor& t = take(name, "F32", shape);
    std::vector<float> values(t.data.size() / sizeof(float));
    std::memcpy(values.data(), t.data.data(), t.data.size());
    return values;
  }

  bool has(const std::string& name) const { return left_.contains(name); }

  int64_t take_i64(const std::string& name) {
    int64_t value;
    std::memcpy(&value, take(name, "I64", {}).data.data(), sizeof value);
    return value;
  }

  void require_empty() const {
    if (left_.empty()) return;
    fail_usage(path_ + ": " + unknown_name_message("tensor", *left_.begin(), {taken_.begin(), taken_.end()}));
  }

 private:
  const SafeTensor& take(const std::string& name, const std::string& dtype,
                         const std::vector<int64_t>& shape) {
    const SafeTensor* found = nullptr;
    for (const SafeTensor& t : file_.tensors) {
      if (t.name == name) found = &t;
    }
    if (found == nullptr) {
      const std::string near = nearest_name(name, {left_.begin(), left_.end()});
      fail_usage(path_ + ": tensor '" + name + "' " + shape_str(shape) + " is missing" +
                 (near.empty() ? "" : "; the nearest in the file is '" + near + "'"));
    }
    if (found->shape != shape) {
      fail_usage(path_ + ": tensor '" + name + "' has shape " + shape_str(found->shape) +
                 ", the network needs " + shape_str(shape));
    }
    if (found->dtype != dtype) {
      fail_usage(path_ + ": tensor '" + name + "' has dtype " + found->dtype + ", the network needs " +
                 dtype);
    }
    left_.erase(name);
    taken_.insert(name);
    return *found;
  }

  std::string path_;
  SafeTensors file_;
  std::set<std::string> left_, taken_;
};

}  // namespace

void save_weights(const Network& network, const std::string& path) {
  SafeTensors file;
  file.metadata = {{"format", "pt"}, {"network", network.shaped().description.name}};
  for (const NamedTensor& t : network.read_slab(Home::kMaster))
    file.tensors.push_back(f32_tensor(t.name, t.shape, t.values));
  for (const NamedTensor& t : network.read_statistics())
    file.tensors.push_back(f32_tensor(t.name, t.shape, t.values));
  const std::vector<std::string>& trackers = network.layout().trackers();
  for (size_t i = 0; i < trackers.size(); ++i) {
    file.tensors.push_back(i64_tensor(trackers[i], network.batches_tracked()[i]));
  }
  write_safetensors(path, file);
}

WeightTensors read_weights(const ParameterLayout& layout, const std::string& path) {
  TensorTaker file(path);
  WeightTensors tensors;
  for (const Parameter& p : layout.parameters()) {
    tensors.parameters.push_back({p.name, p.shape, file.take_f32(p.name, p.shape)});
  }
  for (const Statistic& s : layout.statistics()) {
    tensors.statistics.push_back({s.name, {s.channels}, file.take_f32(s.name, {s.channels})});
  }
  for (const std::string& name : layout.trackers()) tensors.tracked.push_back(file.take_i64(name));
  file.require_empty();
  return tensors;
}

void load_weights(Network* network, const std::string& path) {
  WeightTensors tensors = read_weights(network->layout(), path);
  network->write_slab(Home::kMaster, tensors.parameters);
  network->write_statistics(tensors.statistics);
  network->set_batches_tracked(std::move(tensors.tracked));
}

void save_state(const Network& network, const RunPosition& position, const std::string& path) {
  SafeTensors file;
  file.metadata = {{"format", "kiln_state"}, {"optimizer", name_of(network.optimizer())}};
  for (const Moment& moment : moments(network.optimizer())) {
    for (const NamedTensor& t : network.read_slab(moment.home)) {
      file.tensors.push_back(f32_tensor(t.name + moment.suffix, t.shape, t.values));
    }
  }
  file.tensors.push_back(i64_tensor("step", position.step));
  file.tensors.push_back(i64_tensor("seed", static_cast<int64_t>(position.seed)));
  file.tensors.push_back(i64_tensor("batch", position.batch));
  file.tensors.push_back(i64_tensor("train_images", position.train_images));
  file.tensors.push_back(i64_tensor("skipped", position.skipped));
  write_safetensors(path, file);
}

RunPosition load_state(Network* network, const std::string& path) {
  TensorTaker file(path);
  const std::vector<Parameter>& parameters = network->layout().parameters();
  const Optimizer ours = network->optimizer();
  const Optimizer other = ours == Optimizer::kSgd ? Optimizer::kAdamw : Optimizer::kSgd;
  if (file.has(parameters[0].name + moments(other)[0].suffix)) {
    fail_usage(path + ": holds the state of " + name_of(other) + ", but this run's optimizer is " +
               name_of(ours) + "; a run can only be continued with its own");
  }
  std::vector<std::vector<NamedTensor>> slabs;
  for (const Moment& moment : moments(ours)) {
    slabs.emplace_back();
    for (const Parameter& p : parameters) {
      slabs.back().push_back({p.name, p.shape, file.take_f32(p.name + moment.suffix, p.shape)});
    }
  }
  const RunPosition position = {.step = file.take_i64("step"),
                                .seed = static_cast<uint64_t>(file.take_i64("seed")),
                                .batch = file.take_i64("batch"),
                                .train_images = file.take_i64("train_images"),
                                .skipped = file.take_i64("skipped")};
  file.require_empty();
  if (position.step < 0) fail_usage(path + ": damaged: step " + std::to_string(position.step));
  for (size_t i = 0; i < slabs.size(); ++i) network->write_slab(moments(ours)[i].home, slabs[i]);
  return position;
}

}  // namespace kiln
