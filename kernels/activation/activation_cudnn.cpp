// relu fwd and bwd (cudnnActivationForward, -Backward) and add fwd (cudnnOpTensor) by cuDNN: peers.
//
// The tensors are described to cuDNN as packed NHWC. relu bwd passes y for x: the sign test has the same
// outcome, and the Args carry no x. NaN propagates, as in kiln's own.
#include "kernels/activation/activation.h"
#include "kernels/common/cudnn/descriptors.h"

namespace kiln {
namespace {

using CudnnActivation = std::shared_ptr<cudnnActivationStruct>;

CudnnActivation relu() {
  CudnnActivation activation = make_cudnn_descriptor(
      cudnnCreateActivationDescriptor, cudnnDestroyActivationDescriptor, "cudnnCreateActivationDescriptor");
  check_cudnn(cudnnSetActivationDescriptor(activation.get(), CUDNN_ACTIVATION_RELU, CUDNN_PROPAGATE_NAN, 0.0),
              "cudnnSetActivationDescriptor");
  return activation;
}

CudnnTensor tensor_of(const ElementwiseProblem& p) { return nhwc_cudnn_tensor(p.dtype, p.n, p.h, p.w, p.c); }

template <class Problem>
Support supports(const Problem&, const Device& device) {
  return Support::require(device.is_cuda(), "the cuDNN peer needs a CUDA device");
}

Plan<ReluFwd::Args> plan_relu_fwd(const ReluProblem& p, const Device&, std::string_view config) {
  require_default_config(config);
  const auto launch = [handle = CudnnHandle::shared(), tensor = tensor_of(p), activation = relu()](
                          const ReluFwd::Args& a, void*, Stream stream) {
    handle->on(stream, [&](cudnnHandle_t raw) {
      check_cudnn(cudnnActivationForward(raw, activation.get(), &kCudnnOne, tensor.get(), a.x, &kCudnnZero,
                                         tensor.get(), a.y),
                  "cudnnActivationForward");
    });
  };
  return make_plan<ReluFwd::Args>(0, launch);
}

Plan<ReluBwd::Args> plan_relu_bwd(const ReluProblem& p, const Device&, std::string_view config) {
  require_default_config(config);
  const auto launch = [handle = CudnnHandle::shared(), tensor = tensor_of(p), activation = relu()](
                          const ReluBwd::Args& a, void*, Stream stream) {
    handle->on(stream, [&](cudnnHandle_t raw) {
      check_cudnn(cudnnActivationBackward(raw, activation.get(), &kCudnnOne, tensor.get(), a.y, tensor.get(),
                                          a.dy, tensor.get(), a.y, &kCudnnZero, tensor.get(), a.dx),
                  "cudnnActivationBackward");
    });
  };
  return make_plan<ReluBwd::Args>(0, launch);
}

Plan<AddFwd::Args> plan_add_fwd(const AddProblem& p, const Device&, std::string_view config) {
  require_default_config(config);
  const auto op = make_cudnn_descriptor(cudnnCreateOpTensorDescriptor, cudnnDestroyOpTensorDescriptor,
                                        "cudnnCreateOpTensorDescriptor");
  check_cudnn(
      cudnnSetOpTensorDescriptor(op.get(), CUDNN_OP_TENSOR_ADD, CUDNN_DATA_FLOAT, CUDNN_PROPAGATE_NAN),
      "cudnnSetOpTensorDescriptor");
  const auto launch = [handle = CudnnHandle::shared(), tensor = tensor_of(p), op](const AddFwd::Args& a,
                                                                                  void*, Stream stream) {
    handle->on(stream, [&](cudnnHandle_t raw) {
      check_cudnn(cudnnOpTensor(raw, op.get(), &kCudnnOne, tensor.get(), a.a, &kCudnnOne, tensor.get(), a.b,
                                &kCudnnZero, tensor.get(), a.y),
                  "cudnnOpTensor");
    });
  };
  return make_plan<AddFwd::Args>(0, launch);
}

}  // namespace

extern const Impl<ReluFwd> relu_fwd_cudnn = {
    .name = "cudnn", .supports = supports<ReluProblem>, .plan = plan_relu_fwd, .peer = true};
extern const Impl<ReluBwd> relu_bwd_cudnn = {
    .name = "cudnn", .supports = supports<ReluProblem>, .plan = plan_relu_bwd, .peer = true};
extern const Impl<AddFwd> add_fwd_cudnn = {
    .name = "cudnn", .supports = supports<AddProblem>, .plan = plan_add_fwd, .peer = true};

}  // namespace kiln
