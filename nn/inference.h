// InferenceSession: a trained network that gives logits for images, what `kiln predict` drives.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "kernels/common/impl_choice.h"
#include "nn/network.h"
#include "nn/program.h"

namespace kiln {

class InferenceSession {
 public:
  struct Options {
    DType precision = DType::kF32;  // fp32 or bf16 (CUDA only)
    ImplChoice impl = {};
    bool fold = true;  // batchnorms into the layers before them (fold_batchnorm.h)
    std::vector<std::string> fusions_off = {};
    bool cuda_graph = true;
  };

  // weights: a file that save_weights() or PyTorch wrote. mean, std: a channel, in units of the pixel range
  // 0..1, as the network was trained with. Throws Error as parse_network(), load_weights() and lower() do.
  InferenceSession(const NetworkDescription& network, const std::string& weights, const ValueShape& input,
                   int classes, const std::vector<float>& mean, const std::vector<float>& std,
                   const Device& device, const Options& options);
  ~InferenceSession();

  // images: [count, h, w, c], bytes 0..255 or floats 0..1. Runs `batch` at a time, the rest as a batch of its
  // own. Returns [count, classes]: logits.
  std::vector<float> predict(const uint8_t* images, long long count, int batch);
  std::vector<float> predict(const float* images, long long count, int batch);

  const ShapedNetwork& network() const;  // as it is run, folded
  // Steps of the batches run so far that are not what --impl or the tuning cache named, and why.
  std::set<std::string> impl_notes() const;
  // What lower() made for a batch, one line a step.
  std::vector<std::string> plan_lines(int batch);

 private:
  struct Ready;  // a Program with its memory
  Ready& ready(int batch, bool bytes);
  template <class Pixel>
  std::vector<float> predict_in_batches(const Pixel* images, long long count, int batch);
  void upload(Ready& r, const uint8_t* images);
  void upload(Ready& r, const float* images);
  void read_logits(const Ready& r, float* logits) const;

  std::unique_ptr<Backend> backend_;
  int classes_;
  std::vector<float> mean_, std_;
  Options options_;
  std::unique_ptr<Network> network_;
  Memory step_state_, mean_memory_, std_memory_;
  std::map<std::pair<int, bool>, std::unique_ptr<Ready>> programs_;  // by batch size, and bytes or floats
};

}  // namespace kiln
