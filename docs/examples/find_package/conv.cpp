// A 3x3 convolution of one 4x4 image with kiln's kernels, on the CPU: the sum over each pixel's neighbours.
#include <cstdio>
#include <vector>

#include "kernels/common/impl_choice.h"
#include "kernels/conv2d/conv2d.h"

struct alignas(256) Block {  // workspaces are 256-byte aligned, tensors 16-byte
  char bytes[256];
};

int main() {
  const kiln::Device& device = kiln::cpu_device();
  const auto problem = kiln::Conv2dProblem::parse("n1_h4_w4_c1_k1_r3", kiln::DType::kF32);
  std::vector<float> x(16), w(9, 1.0f), y(16);  // [N,H,W,C] [K,R,S,C] [N,P,Q,K]
  for (int i = 0; i < 16; ++i) x[i] = static_cast<float>(i);

  const kiln::ImplChoice choice("");  // "conv2d.fwd=cpu_naive" would name one
  const auto picked = kiln::pick<kiln::Conv2dFwd>(problem, device, choice);
  const auto plan = picked.impl->plan(problem, device, picked.config);
  std::vector<Block> workspace(plan.workspace_bytes() / sizeof(Block) + 1);
  kiln::Conv2dFwd::Args args{};  // what the problem has no use for stays null
  args.x = x.data();
  args.w = w.data();
  args.y = y.data();
  plan.bind(args, workspace.data()).launch(nullptr);  // on a GPU: device pointers and a stream

  std::printf("%s: y[1][1] = %g\n", picked.impl->name, y[5]);  // 0+1+2 + 4+5+6 + 8+9+10 = 45
}
