// max_pool2d fwd, avg_pool2d fwd and bwd, global_max_pool fwd and global_avg_pool fwd and bwd by cuDNN's
// pooling: peers.
//
// Packed NHWC, cuDNN's own kernel choice. Max pooling saves no positions (cuDNN's backward pass finds them
// again), so only the forward passes without them have a peer. A global op is one window of the whole image.
// The backward pass of an average wants x and y as well but computes nothing from them, so dx and dy stand
// in.
#include "kernels/common/cudnn/descriptors.h"
#include "kernels/pool2d/pool2d.h"

namespace kiln {
namespace {

using CudnnPooling = std::shared_ptr<cudnnPoolingStruct>;

struct Window {
  int h, w, pad_h, pad_w, stride_h, stride_w;
};

CudnnPooling pooling(cudnnPoolingMode_t mode, const Window& v) {
  CudnnPooling pooling = make_cudnn_descriptor(cudnnCreatePoolingDescriptor, cudnnDestroyPoolingDescriptor,
                                               "cudnnCreatePoolingDescriptor");
  check_cudnn(cudnnSetPooling2dDescriptor(pooling.get(), mode, CUDNN_PROPAGATE_NAN, v.h, v.w, v.pad_h,
                                          v.pad_w, v.stride_h, v.stride_w),
              "cudnnSetPooling2dDescriptor");
  return pooling;
}

// Everything a pooling launch needs: the window, the large tensor and the small one.
struct Pool {
  std::shared_ptr<CudnnHandle> handle = CudnnHandle::shared();
  CudnnPooling window;
  CudnnTensor x, y;

  void forward(const void* x_data, void* y_data, Stream stream) const {
    handle->on(stream, [&](cudnnHandle_t raw) {
      check_cudnn(
          cudnnPoolingForward(raw, window.get(), &kCudnnOne, x.get(), x_data, &kCudnnZero, y.get(), y_data),
          "cudnnPoolingForward");
    });
  }
  void average_backward(const void* dy, void* dx, Stream stream) const {
    handle->on(stream, [&](cudnnHandle_t raw) {
      check_cudnn(cudnnPoolingBackward(raw, window.get(), &kCudnnOne, y.get(), dy, y.get(), dy, x.get(), dx,
                                       &kCudnnZero, x.get(), dx),
                  "cudnnPoolingBackward");
    });
  }
};

template <class Problem>
Pool sliding_window(cudnnPoolingMode_t mode, const Problem& p) {
  return {.window = pooling(mode, {p.r, p.s, p.pad_h, p.pad_w, p.stride_h, p.stride_w}),
          .x = nhwc_cudnn_tensor(p.dtype, p.n, p.h, p.w, p.c),
          .y = nhwc_cudnn_tensor(p.dtype, p.n, p.p(), p.q(), p.c)};
}

template <class Problem>
Pool whole_image(cudnnPoolingMode_t mode, const Problem& p) {
  return {.window = pooling(mode, {p.h, p.w, 0, 0, p.h, p.w}),
          .x = nhwc_cudnn_tensor(p.dtype, p.n, p.h, p.w, p.c),
          .y = nhwc_cudnn_tensor(p.dtype, p.n, 1, 1, p.c)};
}

Pool pool_of(const MaxPool2dProblem& p) { return sliding_window(CUDNN_POOLING_MAX, p); }
Pool pool_of(const AvgPool2dProblem& p) {
  return sliding_window(CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING, p);
}
Pool pool_of(const GlobalMaxPoolProblem& p) { return whole_image(CUDNN_POOLING_MAX, p); }
Pool pool_of(const GlobalAvgPoolProblem& p) {
  return whole_image(CUDNN_POOLING_AVERAGE_COUNT_EXCLUDE_PADDING, p);
}

template <class Problem>
Support supports_average(const Problem&, const Device& device) {
  return Support::require(device.is_cuda(), "the cuDNN peer needs a CUDA device");
}

template <class Problem>
Support supports_max(const Problem& p, const Device& device) {
  if (!device.is_cuda()) return Support::no("the cuDNN peer needs a CUDA device");
  return Support::require(p.arg == decltype(p.arg){}, "the cuDNN peer saves no positions of the maxima");
}

template <class Pass>
Plan<typename Pass::Args> plan_fwd(const typename Pass::Problem& p, const Device&, std::string_view config) {
  require_default_config(config);
  using Args = typename Pass::Args;
  return make_plan<Args>(
      0, [pool = pool_of(p)](const Args& a, void*, Stream stream) { pool.forward(a.x, a.y, stream); });
}

template <class Pass>
Plan<typename Pass::Args> plan_average_bwd(const typename Pass::Problem& p, const Device&,
                                           std::string_view config) {
  require_default_config(config);
  using Args = typename Pass::Args;
  return make_plan<Args>(0, [pool = pool_of(p)](const Args& a, void*, Stream stream) {
    pool.average_backward(a.dy, a.dx, stream);
  });
}

}  // namespace

extern const Impl<MaxPool2dFwd> max_pool2d_fwd_cudnn = {
    .name = "cudnn", .supports = supports_max, .plan = plan_fwd<MaxPool2dFwd>, .peer = true};
extern const Impl<AvgPool2dFwd> avg_pool2d_fwd_cudnn = {
    .name = "cudnn", .supports = supports_average, .plan = plan_fwd<AvgPool2dFwd>, .peer = true};
extern const Impl<AvgPool2dBwd> avg_pool2d_bwd_cudnn = {
    .name = "cudnn", .supports = supports_average, .plan = plan_average_bwd<AvgPool2dBwd>, .peer = true};
extern const Impl<GlobalMaxPoolFwd> global_max_pool_fwd_cudnn = {
    .name = "cudnn", .supports = supports_max, .plan = plan_fwd<GlobalMaxPoolFwd>, .peer = true};
extern const Impl<GlobalAvgPoolFwd> global_avg_pool_fwd_cudnn = {
    .name = "cudnn", .supports = supports_average, .plan = plan_fwd<GlobalAvgPoolFwd>, .peer = true};
extern const Impl<GlobalAvgPoolBwd> global_avg_pool_bwd_cudnn = {
    .name = "cudnn", .supports = supports_average, .plan = plan_average_bwd<GlobalAvgPoolBwd>, .peer = true};

}  // namespace kiln
