// batchnorm fwd_train, fwd_infer and bwd by cuDNN's legacy batch normalisation: peers.
//
// Packed NHWC, fp32 parameters and statistics. cuDNN has two algorithms for training, and the config says
// which:
//   ""            CUDNN_BATCHNORM_SPATIAL_PERSISTENT where it runs (tried once while planning), else SPATIAL
//   "persistent"  CUDNN_BATCHNORM_SPATIAL_PERSISTENT
//   "spatial"     CUDNN_BATCHNORM_SPATIAL
// cuDNN's saved inverse deviation is saved_rstd, its averaging factor is the momentum, its running variance
// is unbiased, as PyTorch's. No activation and no residual: fused, cuDNN wants a reserve space from forward
// to backward that kiln has not.
#include <optional>

#include "kernels/batchnorm/batchnorm.h"
#include "kernels/common/cudnn/descriptors.h"
#include "kernels/common/error.h"
#include "kernels/common/peer_trial.h"

namespace kiln {
namespace {

constexpr cudnnBatchNormOps_t kOps = CUDNN_BATCHNORM_OPS_BN;

constexpr size_t round_up(size_t bytes) { return (bytes + 255) / 256 * 256; }

// What every launch of a problem needs.
struct Norm {
  std::shared_ptr<CudnnHandle> handle = CudnnHandle::shared();
  cudnnBatchNormMode_t mode;
  CudnnTensor x, parameters;
  double eps, momentum;
  size_t workspace_bytes = 0, reserve_bytes = 0;

  Norm(const BatchnormProblem& p, cudnnBatchNormMode_t m)
      : mode(m),
        x(nhwc_cudnn_tensor(p.dtype, p.n, p.h, p.w, p.c)),
        parameters(empty_cudnn_tensor()),
        eps(p.eps),
        momentum(p.momentum) {
    check_cudnn(cudnnDeriveBNTensorDescriptor(parameters.get(), x.get(), mode),
                "cudnnDeriveBNTensorDescriptor");
  }
  // cuDNN's reserve space carries state from forward to backward. Without an activation none is expected;
  // where cuDNN wants some all the same, forward gives it scratch memory, and backward takes the call that
  // needs none.
  void query_reserve() {
    handle->with([&](cudnnHandle_t raw) {
      check_cudnn(cudnnGetBatchNormalizationTrainingExReserveSpaceSize(raw, mode, kOps, nullptr, x.get(),
                                                                       &reserve_bytes),
                  "cudnnGetBatchNormalizationTrainingExReserveSpaceSize");
    });
  }
};

struct TrainLaunch {
  Norm norm;

  TrainLaunch(const BatchnormProblem& p, cudnnBatchNormMode_t mode) : norm(p, mode) {
    norm.query_reserve();
    norm.handle->with([&](cudnnHandle_t raw) {
      check_cudnn(cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
                      raw, mode, kOps, norm.x.get(), nullptr, norm.x.get(), norm.parameters.get(), nullptr,
                      &norm.workspace_bytes),
                  "cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize");
    });
  }
  size_t workspace_bytes() const { return round_up(norm.workspace_bytes) + norm.reserve_bytes; }
  void operator()(const BatchnormFwdTrain::Args& a, void* workspace, Stream stream) const {
    void* const reserve =
        norm.reserve_bytes ? static_cast<char*>(workspace) + round_up(norm.workspace_bytes) : nullptr;
    norm.handle->on(stream, [&](cudnnHandle_t raw) {
      check_cudnn(cudnnBatchNormalizationForwardTrainingEx(
                      raw, norm.mode, kOps, &kCudnnOne, &kCudnnZero, norm.x.get(), a.x, nullptr, nullptr,
                      norm.x.get(), a.y, norm.parameters.get(), a.gamma, a.beta, norm.momentum,
                      a.running_mean, a.running_var, norm.eps, a.saved_mean, a.saved_rstd, nullptr, workspace,
                      norm.workspace_bytes, reserve, norm.reserve_bytes),
                  "cudnnBatchNormalizationForwardTrainingEx");
    });
  }
};

struct BackwardLaunch {
  Norm norm;

  BackwardLaunch(const BatchnormProblem& p, cudnnBatchNormMode_t mode) : norm(p, mode) {
    norm.query_reserve();
    if (norm.reserve_bytes) return;
    norm.handle->with([&](cudnnHandle_t raw) {
      check_cudnn(cudnnGetBatchNormalizationBackwardExWorkspaceSize(
                      raw, mode, kOps, norm.x.get(), nullptr, norm.x.get(), nullptr, norm.x.get(),
                      norm.parameters.get(), nullptr, &norm.workspace_bytes),
                  "cudnnGetBatchNormalizationBackwardExWorkspaceSize");
    });
  }
  size_t workspace_bytes() const { return norm.workspace_bytes; }
  void operator()(const BatchnormBwd::Args& a, void* workspace, Stream stream) const {
    norm.handle->on(stream, [&](cudnnHandle_t raw) {
      if (norm.reserve_bytes) {
        check_cudnn(cudnnBatchNormalizationBackward(raw, norm.mode, &kCudnnOne, &kCudnnZero, &kCudnnOne,
                                                    &kCudnnZero, norm.x.get(), a.x, norm.x.get(), a.dy,
                                                    norm.x.get(), a.dx, norm.parameters.get(), a.gamma,
                                                    a.dgamma, a.dbeta, norm.eps, a.saved_mean, a.saved_rstd),
                    "cudnnBatchNormalizationBackward");
        return;
      }
      check_cudnn(cudnnBatchNormalizationBackwardEx(
                      raw, norm.mode, kOps, &kCudnnOne, &kCudnnZero, &kCudnnOne, &kCudnnZero, norm.x.get(),
                      a.x, nullptr, nullptr, norm.x.get(), a.dy, nullptr, nullptr, norm.x.get(), a.dx,
                      norm.parameters.get(), a.gamma, nullptr, a.dgamma, a.dbeta, norm.eps, a.saved_mean,
                      a.saved_rstd, nullptr, workspace, norm.workspace_bytes, nullptr, 0),
                  "cudnnBatchNormalizationBackwardEx");
    });
  }
};

Support supports(const BatchnormProblem& p, const Device& device) {
  if (!device.is_cuda()) return Support::no("the cuDNN peer needs a CUDA device");
  return Support::require(p.act == BatchnormAct::kNone && !p.residual && !p.pool,
                          "the cuDNN peer takes no activation, no residual and no pool");
}

Support supports_train(const BatchnormProblem& p, const Device& device) {
  if (p.per_channel() < 2) return Support::no("cuDNN's unbiased variance needs two values a channel");
  return supports(p, device);
}

template <class Pass, class Launch>
Plan<typename Pass::Args> plan_of(const Launch& launch) {
  return make_plan<typename Pass::Args>(launch.workspace_bytes(), launch);
}

// The plan of one algorithm, or nothing where cuDNN refuses to run it.
template <class Pass, class Launch>
std::optional<Plan<typename Pass::Args>> try_mode(const BatchnormProblem& p, cudnnBatchNormMode_t mode) {
  const TrialStream stream;
  const TrialArgs<Pass> scratch(p, stream);
  try {
    const Plan<typename Pass::Args> plan = plan_of<Pass>(Launch(p, mode));
    const DeviceBuffer workspace(plan.workspace_bytes());
    plan.bind(scratch.args(), workspace.data()).launch(stream.get());
    stream.wait();
    return plan;
  } catch (const Error&) {
    stream.wait();  // throws where the failure was more than a refusal
    return std::nullopt;
  }
}

template <class Pass, class Launch>
Plan<typename Pass::Args> plan(const BatchnormProblem& p, const Device&, std::string_view config) {
  if (config == "persistent") return plan_of<Pass>(Launch(p, CUDNN_BATCHNORM_SPATIAL_PERSISTENT));
  if (config == "spatial") return plan_of<Pass>(Launch(p, CUDNN_BATCHNORM_SPATIAL));
  if (!config.empty() && config != "default") {
    fail_usage(std::string(Pass::kOp) + "." + Pass::kPass + " cudnn: unknown config '" + std::string(config) +
               "'; known: default, persistent, spatial");
  }
  if (auto persistent = try_mode<Pass, Launch>(p, CUDNN_BATCHNORM_SPATIAL_PERSISTENT)) return *persistent;
  return plan_of<Pass>(Launch(p, CUDNN_BATCHNORM_SPATIAL));
}

Plan<BatchnormFwdInfer::Args> plan_infer(const BatchnormProblem& p, const Device&, std::string_view config) {
  require_default_config(config);
  const auto launch = [norm = Norm(p, CUDNN_BATCHNORM_SPATIAL)](const BatchnormFwdInfer::Args& a, void*,
                                                                Stream stream) {
    norm.handle->on(stream, [&](cudnnHandle_t raw) {
      check_cudnn(cudnnBatchNormalizationForwardInference(
                      raw, norm.mode, &kCudnnOne, &kCudnnZero, norm.x.get(), a.x, norm.x.get(), a.y,
                      norm.parameters.get(), a.gamma, a.beta, a.running_mean, a.running_var, norm.eps),
                  "cudnnBatchNormalizationForwardInference");
    });
  };
  return make_plan<BatchnormFwdInfer::Args>(0, launch);
}

}  // namespace

extern const Impl<BatchnormFwdTrain> batchnorm_fwd_train_cudnn = {
    .name = "cudnn", .supports = supports_train, .plan = plan<BatchnormFwdTrain, TrainLaunch>, .peer = true};
extern const Impl<BatchnormFwdInfer> batchnorm_fwd_infer_cudnn = {
    .name = "cudnn", .supports = supports, .plan = plan_infer, .peer = true};
extern const Impl<BatchnormBwd> batchnorm_bwd_cudnn = {
    .name = "cudnn", .supports = supports, .plan = plan<BatchnormBwd, BackwardLaunch>, .peer = true};

}  // namespace kiln
