// The layers of the built-in networks, and the rows of the vendor comparison.
#include "kernels/common/error.h"
#include "tests/support/shape_lists.h"

namespace kiln {
namespace {

// Walks a network on 32x32x3 images and lists the problem of every layer.
class NetworkWalk {
 public:
  NetworkWalk(std::string name, long long batch) : name_(std::move(name)), n_(batch) {
    add("augment", "augment", image() + "_m" + num(2 * n_ + 1) + "_pad4_flip", "");
    add("load", "augment", image() + "_m" + num(2 * n_ + 1), "");
  }

  int channels() const { return c_; }
  int side() const { return h_; }
  void go_to(int channels, int side) {
    c_ = channels;
    h_ = side;
  }

  void conv(const std::string& id, int k, int r, int stride) {
    // The network's first layer has no use for the gradient to its input.
    add(id, "conv2d", image() + "_k" + num(k) + "_r" + num(r) + (stride > 1 ? "_st" + num(stride) : ""),
        c_ == 3 ? "fwd,wgrad" : "");
    parameters_ += 1LL * k * r * r * c_;
    h_ = (h_ + 2 * (r / 2) - r) / stride + 1;
    c_ = k;
  }
  void depthwise(const std::string& id, int stride) {
    add(id, "depthwise_conv2d", image() + "_r3" + (stride > 1 ? "_st" + num(stride) : ""), "");
    parameters_ += 9LL * c_;
    h_ = (h_ - 1) / stride + 1;
  }
  void batchnorm(const std::string& id) {
    add(id, "batchnorm", image(), "");
    parameters_ += 2 * c_;
  }
  // A batchnorm with its activation, together and apart.
  void batchnorm_act(const std::string& id, const std::string& act) {
    batchnorm(id);
    add(id + "+" + act, "batchnorm", image() + "_" + act, "");
    add(id + "." + act, act.c_str(), image(), "");
  }
  // A batchnorm with the residual that is added to it and the activation behind, "" for none; together and
  // apart.
  void batchnorm_join(const std::string& id, const std::string& act) {
    batchnorm(id);
    add(id + "+add" + (act.empty() ? "" : "+" + act), "batchnorm",
        image() + "_res" + (act.empty() ? "" : "_" + act), "");
    add(id + ".add", "add", image(), "");
    if (!act.empty()) add(id + "." + act, act.c_str(), image(), "");
  }
  // A batchnorm with its activation and the pool behind both.
  void batchnorm_pool(const std::string& id, const std::string& act) {
    add(id + "+" + act + "+pool", "batchnorm", image() + "_" + act + "_max2", "");
  }
  void max_pool(const std::string& id) {
    add(id, "max_pool2d", image() + "_r2_st2_p0_arg8", "");
    add(id, "max_pool2d", image() + "_r2_st2_p0_arg2", "");
    add(id, "max_pool2d", image() + "_r2_st2_p0", "fwd");
    h_ /= 2;
  }
  void global_avg_pool(const std::string& id) {
    add(id, "global_avg_pool", image(), "");
    h_ = 1;
  }
  void linear(const std::string& id, int k) {
    const long long c = 1LL * h_ * h_ * c_;
    add(id, "linear", "n" + num(n_) + "_c" + num(c) + "_k" + num(k) + "_bias", "");
    parameters_ += c * k + k;
    c_ = k;
  }
  std::vector<NamedProblem> finish() {
    add("loss", "softmax_xent", "n" + num(n_) + "_c" + num(c_), "");
    add("parameters", "sgd", "n" + num(parameters_) + "_d" + num(parameters_) + "_m0.9_wd0.0005_nesterov",
        "");
    add("parameters", "adamw", "n" + num(parameters_) + "_d" + num(parameters_) + "_wd0.05", "");
    add("parameters", "grad_norm", "n" + num(parameters_), "");
    return std::move(list_);
  }

 private:
  std::string image() const { return "n" + num(n_) + "_h" + num(h_) + "_w" + num(h_) + "_c" + num(c_); }
  void add(const std::string& id, const char* op, const std::string& text, const char* passes) {
    list_.push_back({name_ + "." + id, op, text, passes});
  }

  std::string name_;
  long long n_;
  int c_ = 3, h_ = 32;
  long long parameters_ = 0;
  std::vector<NamedProblem> list_;
};

std::vector<NamedProblem> small_cnn(long long batch) {
  NetworkWalk net("small_cnn", batch);
  for (int stage = 1; stage <= 3; ++stage) {
    for (int i = 1; i <= 2; ++i) {
      const std::string at = std::to_string(2 * (stage - 1) + i);
      net.conv("conv" + at, 16 << stage, 3, 1);
      net.batchnorm_act("bn" + at, "relu");
      if (i == 2) net.batchnorm_pool("bn" + at, "relu");
    }
    net.max_pool("pool" + std::to_string(stage));
  }
  net.linear("fc", 10);
  return net.finish();
}

std::vector<NamedProblem> resnet18(long long batch) {
  NetworkWalk net("resnet18", batch);
  net.conv("conv1", 64, 3, 1);
  net.batchnorm_act("bn1", "relu");
  for (int stage = 1; stage <= 4; ++stage) {
    for (int block = 0; block < 2; ++block) {
      const std::string at = "layer" + std::to_string(stage) + "." + std::to_string(block);
      const int k = 32 << stage, stride = stage > 1 && block == 0 ? 2 : 1;
      const int c = net.channels(), side = net.side();
      net.conv(at + ".conv1", k, 3, stride);
      net.batchnorm_act(at + ".bn1", "relu");
      net.conv(at + ".conv2", k, 3, 1);
      net.batchnorm_join(at + ".bn2", "relu");
      if (stride > 1) {
        net.go_to(c, side);
        net.conv(at + ".shortcut.0", k, 1, stride);
        net.batchnorm(at + ".shortcut.1");
      }
    }
  }
  net.global_avg_pool("avg_pool");
  net.linear("linear", 10);
  return net.finish();
}

std::vector<NamedProblem> mobilenet_v1(long long batch) {
  NetworkWalk net("mobilenet_v1", batch);
  net.conv("conv1", 32, 3, 1);
  net.batchnorm_act("bn1", "relu");
  int block = 0;
  for (const auto& [k, stride] : {std::pair{64, 1},
                                  {128, 2},
                                  {128, 1},
                                  {256, 2},
                                  {256, 1},
                                  {512, 2},
                                  {512, 1},
                                  {512, 1},
                                  {512, 1},
                                  {512, 1},
                                  {512, 1},
                                  {1024, 2},
                                  {1024, 1}}) {
    const std::string at = "blocks." + std::to_string(block++);
    net.depthwise(at + ".dw", stride);
    net.batchnorm_act(at + ".bn1", "relu");
    net.conv(at + ".pw", k, 1, 1);
    net.batchnorm_act(at + ".bn2", "relu");
  }
  net.global_avg_pool("pool");
  net.linear("linear", 10);
  return net.finish();
}

std::vector<NamedProblem> mobilenet_v2(long long batch) {
  struct Stage {
    int expansion, k, blocks, stride;
  };
  NetworkWalk net("mobilenet_v2", batch);
  net.conv("conv1", 32, 3, 1);
  net.batchnorm_act("bn1", "relu6");
  int block = 0;
  for (const Stage& stage : {Stage{1, 16, 1, 1},
                             {6, 24, 2, 1},
                             {6, 32, 3, 2},
                             {6, 64, 4, 2},
                             {6, 96, 3, 1},
                             {6, 160, 3, 2},
                             {6, 320, 1, 1}}) {
    for (int i = 0; i < stage.blocks; ++i) {
      const std::string at = "blocks." + std::to_string(block++);
      const int c = net.channels(), stride = i == 0 ? stage.stride : 1;
      net.conv(at + ".expand", c * stage.expansion, 1, 1);
      net.batchnorm_act(at + ".bn1", "relu6");
      net.depthwise(at + ".dw", stride);
      net.batchnorm_act(at + ".bn2", "relu6");
      net.conv(at + ".project", stage.k, 1, 1);
      if (stride == 1 && c == stage.k) {
        net.batchnorm_join(at + ".bn3", "");
      } else {
        net.batchnorm(at + ".bn3");
      }
    }
  }
  net.conv("conv2", 1280, 1, 1);
  net.batchnorm_act("bn2", "relu6");
  net.global_avg_pool("pool");
  net.linear("linear", 10);
  return net.finish();
}

}  // namespace

std::vector<NamedProblem> network_problems(std::string_view network, long long batch) {
  if (network == "small_cnn") return small_cnn(batch);
  if (network == "resnet18") return resnet18(batch);
  if (network == "mobilenet_v1") return mobilenet_v1(batch);
  if (network == "mobilenet_v2") return mobilenet_v2(batch);
  fail_usage(
      unknown_name_message("network", network, {"small_cnn", "resnet18", "mobilenet_v1", "mobilenet_v2"}));
}

std::vector<NamedProblem> peer_problems() {
  std::vector<NamedProblem> list;
  struct Conv {
    const char* label;
    int n, c, h, k, r, stride;
  };
  for (const Conv& v : {Conv{"airbench.block1.conv1", 2000, 24, 31, 64, 3, 1},
                        {"airbench.block1.conv2", 2000, 64, 15, 64, 3, 1},
                        {"airbench.block2.conv1", 2000, 64, 15, 256, 3, 1},
                        {"airbench.block2.conv2", 2000, 256, 7, 256, 3, 1},
                        {"airbench.block3.conv2", 2000, 256, 3, 256, 3, 1},
                        {"resnet18.conv1", 512, 3, 32, 64, 3, 1},
                        {"resnet18.layer1.0.conv1", 512, 64, 32, 64, 3, 1},
                        {"resnet18.layer2.0.conv1", 512, 64, 32, 128, 3, 2},
                        {"resnet18.layer2.0.conv2", 512, 128, 16, 128, 3, 1},
                        {"resnet18.layer3.0.conv1", 512, 128, 16, 256, 3, 2},
                        {"resnet18.layer3.0.conv2", 512, 256, 8, 256, 3, 1},
                        {"resnet18.layer4.0.conv1", 512, 256, 8, 512, 3, 2},
                        {"resnet18.layer4.0.conv2", 512, 512, 4, 512, 3, 1},
                        {"resnet18.layer2.0.shortcut.0", 512, 64, 32, 128, 1, 2},
                        {"mobilenet_v2.expand.16", 512, 16, 32, 96, 1, 1},
                        {"mobilenet_v2.project.96", 512, 96, 32, 24, 1, 1},
                        {"mobilenet_v2.project.384", 512, 384, 8, 64, 1, 1},
                        {"mobilenet_v2.expand.64", 512, 64, 8, 384, 1, 1},
                        {"mobilenet_v2.project.960", 512, 960, 4, 160, 1, 1}}) {
    list.push_back({v.label, "conv2d",
                    "n" + num(v.n) + "_h" + num(v.h) + "_w" + num(v.h) + "_c" + num(v.c) + "_k" + num(v.k) +
                        "_r" + num(v.r) + (v.stride > 1 ? "_st" + num(v.stride) : ""),
                    ""});
  }
  for (const char* pooled :
       {"n512_h32_w32_c32_k32_r3", "n512_h16_w16_c64_k64_r3", "n512_h8_w8_c128_k128_r3"}) {
    for (const char* end : {"_scale_bias_relu", "_scale_bias_relu_max2", "_bias_relu_max2_arg2"}) {
      list.push_back({std::string("small_cnn.pooled.") + pooled, "conv2d", std::string(pooled) + end, "fwd"});
    }
  }
  for (const char* counted :
       {"n512_h32_w32_c64_k64_r3", "n512_h32_w32_c64_k128_r3_st2", "n512_h16_w16_c128_k128_r3",
        "n512_h8_w8_c256_k256_r3", "n512_h4_w4_c512_k512_r3", "n512_h32_w32_c64_k128_r1_st2",
        "n512_h32_w32_c16_k96_r1", "n512_h32_w32_c96_k24_r1", "n512_h4_w4_c960_k160_r1"}) {
    list.push_back({std::string("counted.") + counted, "conv2d", std::string(counted) + "_stats", "fwd"});
  }
  for (const char* gated : {"n512_h32_w32_c64_k64_r3_drelu", "n512_h8_w8_c256_k256_r3_drelu"}) {
    list.push_back({std::string("gated.") + gated, "conv2d", gated, "dgrad"});
  }
  for (const Conv& v : {Conv{"mobilenet_v2.depthwise.32", 512, 32, 32, 32, 3, 1},
                        {"mobilenet_v2.depthwise.96", 512, 96, 32, 96, 3, 1},
                        {"mobilenet_v2.depthwise.144", 512, 144, 32, 144, 3, 2},
                        {"mobilenet_v2.depthwise.192", 512, 192, 16, 192, 3, 1},
                        {"mobilenet_v2.depthwise.384", 512, 384, 8, 384, 3, 1},
                        {"mobilenet_v2.depthwise.576", 512, 576, 8, 576, 3, 2},
                        {"mobilenet_v2.depthwise.960", 512, 960, 4, 960, 3, 1},
                        {"depthwise.5x5", 512, 64, 16, 64, 5, 1}}) {
    list.push_back({v.label, "depthwise_conv2d",
                    "n" + num(v.n) + "_h" + num(v.h) + "_w" + num(v.h) + "_c" + num(v.c) + "_r" + num(v.r) +
                        (v.stride > 1 ? "_st" + num(v.stride) : ""),
                    ""});
  }
  struct Image {
    const char* label;
    int n, c, h;
  };
  const auto text = [](const Image& v) {
    return "n" + num(v.n) + "_h" + num(v.h) + "_w" + num(v.h) + "_c" + num(v.c);
  };
  for (const Image& v : {Image{"resnet18.layer1.0.bn1", 512, 64, 32},
                         {"resnet18.layer2.0.bn1", 512, 128, 16},
                         {"resnet18.layer3.0.bn1", 512, 256, 8},
                         {"resnet18.layer4.0.bn1", 512, 512, 4},
                         {"airbench.block1.bn1", 2000, 64, 15},
                         {"airbench.block2.bn1", 2000, 256, 7}}) {
    list.push_back({v.label, "batchnorm", text(v), "fwd_train,bwd"});
    list.push_back(
        {v.label + std::string("+relu"), "batchnorm", text(v) + "_relu", "fwd_train,fwd_given,bwd"});
  }
  for (const Image& v : {Image{"small_cnn.bn2+relu+pool", 512, 32, 32},
                         {"small_cnn.bn4+relu+pool", 512, 64, 16},
                         {"small_cnn.bn6+relu+pool", 512, 128, 8}}) {
    list.push_back({v.label, "batchnorm", text(v) + "_relu_max2", "fwd_train,fwd_given,bwd"});
  }
  for (const Image& v : {Image{"pool.512.64", 512, 64, 32},
                         {"airbench.block1.pool", 2000, 64, 31},
                         {"airbench.block2.pool", 2000, 256, 15},
                         {"pool.512.256", 512, 256, 8}}) {
    list.push_back({v.label, "max_pool2d", text(v) + "_r2_st2_p0_arg8", ""});
    list.push_back({v.label, "max_pool2d", text(v) + "_r2_st2_p0_arg2", ""});
    list.push_back({v.label, "avg_pool2d", text(v) + "_r2_st2_p0", ""});
    list.push_back({v.label, "global_max_pool", text(v) + "_arg32", ""});
    list.push_back({v.label, "global_avg_pool", text(v), "fwd"});
  }
  // Classifiers (their bias is no part of cuBLAS's bf16 product) and layers of a general perceptron.
  for (const char* rows : {"n512_c2048_k10", "n512_c512_k10", "n512_c1280_k10", "n2000_c1024_k10"}) {
    list.push_back({std::string("classifier.") + rows, "linear", rows, ""});
  }
  for (const char* rows : {"n2000_c4096_k4096", "n8192_c1024_k1000"}) {
    list.push_back({std::string("mlp.") + rows, "linear", rows, ""});
  }
  const Image smooth = {"airbench.block1.act", 2000, 64, 15};
  for (const char* act : {"gelu", "silu"}) list.push_back({smooth.label, act, text(smooth), ""});
  list.push_back({"mobilenet_v2.expand.96.relu6", "relu6", "n512_h32_w32_c96", ""});
  for (const char* rows : {"n512_c10", "n2000_c10", "n65536_c10", "n8192_c1000"}) {
    list.push_back(
        {std::string("softmax_xent.") + rows, "softmax_xent", rows + std::string("_ls0.1"), "fwd_bwd"});
  }
  return list;
}

}  // namespace kiln
