// The elementwise ops by cuDNN, peers: relu fwd and bwd, relu6 fwd (cudnnActivationForward, -Backward), add
// fwd (cudnnOpTensor), gelu and silu fwd and bwd (the graph API's pointwise operations).
//
// The tensors are described to cuDNN as packed NHWC. relu bwd passes y for x: the sign test has the same
// outcome, and the Args carry no x. relu6 bwd has no peer: cuDNN's clipped ReLU decides by x, and y is 6 for
// every x above. gelu is cuDNN's erf form, not its tanh form.
#include <array>

#include "kernels/activation/activation.h"
#include "kernels/common/cudnn/backend.h"
#include "kernels/common/cudnn/descriptors.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

using CudnnActivation = std::shared_ptr<cudnnActivationStruct>;

// `ceiling`: where a clipped ReLU clips.
CudnnActivation activation(cudnnActivationMode_t mode, double ceiling = 0.0) {
  CudnnActivation made = make_cudnn_descriptor(
      cudnnCreateActivationDescriptor, cudnnDestroyActivationDescriptor, "cudnnCreateActivationDescriptor");
  check_cudnn(cudnnSetActivationDescriptor(made.get(), mode, CUDNN_PROPAGATE_NAN, ceiling),
              "cudnnSetActivationDescriptor");
  return made;
}

CudnnActivation relu() { return activation(CUDNN_ACTIVATION_RELU); }
CudnnActivation relu6() { return activation(CUDNN_ACTIVATION_CLIPPED_RELU, 6.0); }

CudnnTensor tensor_of(const ElementwiseProblem& p) { return nhwc_cudnn_tensor(p.dtype, p.n, p.h, p.w, p.c); }

template <class Problem>
Support supports(const Problem&, const Device& device) {
  return Support::require(device.is_cuda(), "the cuDNN peer needs a CUDA device");
}

template <class Pass, CudnnActivation (*make)()>
Plan<typename Pass::Args> plan_fwd(const typename Pass::Problem& p, const Device&, std::string_view config) {
  require_default_config(config);
  const auto launch = [handle = CudnnHandle::shared(), tensor = tensor_of(p), activation = make()](
                          const typename Pass::Args& a, void*, Stream stream) {
    handle->on(stream, [&](cudnnHandle_t raw) {
      check_cudnn(cudnnActivationForward(raw, activation.get(), &kCudnnOne, tensor.get(), a.x, &kCudnnZero,
                                         tensor.get(), a.y),
                  "cudnnActivationForward");
    });
  };
  return make_plan<typename Pass::Args>(0, launch);
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

// Pointwise graphs ----------------------------------------------------------------------------------

constexpr int64_t kX = 1, kDy = 2, kOut = 3;

template <class Problem>
Support supports_graph(const Problem& p, const Device& device) {
  if (!device.is_cuda()) return Support::no("the cuDNN peer needs a CUDA device");
  return Support::require(p.c % 8 == 0, "the cuDNN peer takes channels in multiples of 8");
}

CudnnDescriptor graph_tensor(int64_t uid, const ElementwiseProblem& p) {
  const std::array<int64_t, 4> dims{p.n, p.c, p.h, p.w},
      strides{int64_t{1} * p.h * p.w * p.c, 1, int64_t{1} * p.w * p.c, p.c};
  return cudnn_graph_tensor(uid, cudnn_type(p.dtype), dims, strides, false);
}

// y = f(x), or dx = f'(x) dy where the mode is a backward one, computed in fp32.
CudnnGraph pointwise_graph(const ElementwiseProblem& p, cudnnPointwiseMode_t mode, bool backward) {
  const CudnnDescriptor function =
      CudnnDescriptor(CUDNN_BACKEND_POINTWISE_DESCRIPTOR)
          .set_raw(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode)
          .set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT)
          .finalize();
  CudnnDescriptor operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, function)
      .set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, graph_tensor(kX, p));
  if (backward) {
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_DYDESC, graph_tensor(kDy, p))
        .set(CUDNN_ATTR_OPERATION_POINTWISE_DXDESC, graph_tensor(kOut, p));
  } else {
    operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, graph_tensor(kOut, p));
  }
  return CudnnGraph(CudnnHandle::shared(), {operation.finalize()});
}

// The first engine of the heuristics' list that cuDNN makes.
CudnnExecution first_execution(const CudnnGraph& graph, const std::string& what) {
  for (const CudnnEngine& engine : graph.engines()) {
    try {
      return CudnnExecution(graph, engine);
    } catch (const Error&) {
      continue;
    }
  }
  fail_failure(what + ": cuDNN has no engine for it");
}

template <class Pass, cudnnPointwiseMode_t mode>
Plan<typename Pass::Args> plan_graph(const typename Pass::Problem& p, const Device&,
                                     std::string_view config) {
  using Args = typename Pass::Args;
  constexpr bool kBackward = requires(Args a) { a.dx; };
  require_default_config(config);
  const std::string what = std::string(Pass::kOp) + "." + Pass::kPass + " cudnn " + p.str();
  const auto execution =
      std::make_shared<const CudnnExecution>(first_execution(pointwise_graph(p, mode, kBackward), what));
  return Plan<Args>(execution->workspace_bytes(), [execution](const Args& a, void* workspace) {
    require_aligned_args(&a, sizeof a);
    void* const x = const_cast<void*>(a.x);
    CudnnDescriptor pack;
    if constexpr (kBackward) {
      pack =
          execution->pack(std::array{kX, kDy, kOut}, std::array{x, const_cast<void*>(a.dy), a.dx}, workspace);
    } else {
      pack = execution->pack(std::array{kX, kOut}, std::array{x, a.y}, workspace);
    }
    return Bound([execution, pack](Stream stream) { execution->launch(pack, stream); });
  });
}

template <class Pass, cudnnPointwiseMode_t mode>
constexpr Impl<Pass> graph_impl() {
  return {.name = "cudnn",
          .supports = supports_graph<typename Pass::Problem>,
          .plan = plan_graph<Pass, mode>,
          .peer = true};
}

}  // namespace

extern const Impl<ReluFwd> relu_fwd_cudnn = {
    .name = "cudnn", .supports = supports<ReluProblem>, .plan = plan_fwd<ReluFwd, relu>, .peer = true};
extern const Impl<ReluBwd> relu_bwd_cudnn = {
    .name = "cudnn", .supports = supports<ReluProblem>, .plan = plan_relu_bwd, .peer = true};
extern const Impl<Relu6Fwd> relu6_fwd_cudnn = {
    .name = "cudnn", .supports = supports<Relu6Problem>, .plan = plan_fwd<Relu6Fwd, relu6>, .peer = true};
extern const Impl<GeluFwd> gelu_fwd_cudnn = graph_impl<GeluFwd, CUDNN_POINTWISE_GELU_FWD>();
extern const Impl<GeluBwd> gelu_bwd_cudnn = graph_impl<GeluBwd, CUDNN_POINTWISE_GELU_BWD>();
extern const Impl<SiluFwd> silu_fwd_cudnn = graph_impl<SiluFwd, CUDNN_POINTWISE_SWISH_FWD>();
extern const Impl<SiluBwd> silu_bwd_cudnn = graph_impl<SiluBwd, CUDNN_POINTWISE_SWISH_BWD>();
extern const Impl<AddFwd> add_fwd_cudnn = {
    .name = "cudnn", .supports = supports<AddProblem>, .plan = plan_add_fwd, .peer = true};

}  // namespace kiln
