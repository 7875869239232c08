// Which layers another does too. A batchnorm: the activation behind it, or the add behind it and that add's
// activation; then a max_pool2d. In inference a conv2d, before any batchnorm: the batchnorm, the add and the
// activation behind it.
#include <algorithm>

#include "nn/lowering.h"

namespace kiln {
namespace {

ActKind act_of(const std::string& type) {
  if (type == "relu") return ActKind::kRelu;
  if (type == "relu6") return ActKind::kRelu6;
  if (type == "gelu") return ActKind::kGelu;
  if (type == "silu") return ActKind::kSilu;
  return ActKind::kNone;
}

// The one layer that reads a value; -1 where there are more or none.
int only_consumer(const ShapedNetwork& network, int value) {
  const std::vector<int>& consumers = network.consumers[value];
  return consumers.size() == 1 ? consumers[0] : -1;
}

// A batchnorm's, and no conv2d does it.
bool is_batchnorm(const Lowering& l, int value) {
  return value > 0 && l.network.layer(value - 1).type == "batchnorm" && l.absorbed_by[value - 1] < 0;
}

// True where the implementations that a batchnorm alone would get also take it with the rest: a fusion does
// not overrule the user's choice (the vendor's batchnorm takes none).
bool offers(const Lowering& l, int batchnorm, const Lowering::Absorbed& with) {
  const BatchnormProblem plain = l.batchnorm(batchnorm, {}), fused = l.batchnorm(batchnorm, with);
  const std::string& id = l.id(batchnorm);
  if (!l.options.training) return l.steps.offers<BatchnormFwdInfer, true>(id, plain, fused);
  return l.steps.offers<BatchnormFwdTrain, true>(id, plain, fused) &&
         l.steps.offers<BatchnormBwd, true>(id, plain, fused);
}

void absorb_without_asking(Lowering* l, int head, const Lowering::Absorbed& with) {
  l->absorbed[head] = with;
  for (int layer : {with.batchnorm, with.add, with.act, with.pool}) {
    if (layer >= 0) l->absorbed_by[layer] = head;
  }
}

bool absorb(Lowering* l, int batchnorm, const Lowering::Absorbed& with) {
  if (!offers(*l, batchnorm, with)) return false;
  absorb_without_asking(l, batchnorm, with);
  return true;
}

// Windows of 2x2 that touch but do not overlap.
bool halves(const MaxPool2dProblem& p) {
  return p.r == 2 && p.s == 2 && p.stride_h == 2 && p.stride_w == 2 && p.pad_h == 0 && p.pad_w == 0 &&
         p.h >= 2 && p.w >= 2;
}

bool is_halving_pool(const Lowering& l, int layer) {
  const ShapedNetwork& network = l.network;
  return network.layer(layer).type == "max_pool2d" &&
         halves(
             max_pool2d_problem(network.layer(layer), network.in(layer), l.options.batch, l.options.dtype));
}

// What stands behind a conv2d, one layer after the other, as far as the implementation that the conv2d alone
// would get takes it.
void fuse_conv2d(Lowering* l, int conv) {
  const ShapedNetwork& network = l->network;
  const Fusions& on = l->options.fusions;
  const Conv2dProblem plain = l->conv2d(conv, {});
  Lowering::Absorbed with;
  int last = conv;  // the last layer so far
  const auto next = [&](const auto& fits) {
    const int layer = only_consumer(network, last + 1);
    return layer >= 0 && l->absorbed_by[layer] < 0 && fits(network.layer(layer).type) ? layer : -1;
  };
  // Sets `member` to `layer` if that can be taken.
  const auto take = [&](int Lowering::Absorbed::*member, int layer) {
    if (layer < 0) return;
    Lowering::Absorbed more = with;
    more.*member = layer;
    if (!l->steps.offers<Conv2dFwd>(l->id(conv), plain, l->conv2d(conv, more))) return;
    with = more;
    last = layer;
  };
  if (on.conv_bn) {
    take(&Lowering::Absorbed::batchnorm, next([](const std::string& type) { return type == "batchnorm"; }));
  }
  if (on.conv_residual)
    take(&Lowering::Absorbed::add, next([](const std::string& type) { return type == "add"; }));
  if (with.add >= 0) {
    const std::vector<int>& joined = network.inputs[with.add];
    const int own = (with.batchnorm >= 0 ? with.batchnorm : conv) + 1;
    with.residual = joined[0] == own ? joined[1] : joined[0];
  }
  if (on.conv_act) {
    take(&Lowering::Absorbed::act,
         next([](const std::string& type) { return act_of(type) != ActKind::kNone; }));
  }
  if (on.conv_pool && with.add < 0) {
    const int pool = next([](const std::string& type) { return type == "max_pool2d"; });
    Lowering::Absorbed more = with;
    more.pool = pool;
    if (pool >= 0 && is_halving_pool(*l, pool) &&
        l->steps.offers<Conv2dFwd, true>(l->id(conv), plain, l->conv2d(conv, more))) {
      with = more;
    }
  }
  absorb_without_asking(l, conv, with);
}

// In training: the relu or relu6 and the max_pool2d behind a conv2d, which saves the positions alone; what it
// would be without them is not kept.
void fuse_conv2d_pool(Lowering* l, int conv) {
  const ShapedNetwork& network = l->network;
  Lowering::Absorbed with;
  int next = only_consumer(network, conv + 1);
  if (next >= 0 && (network.layer(next).type == "relu" || network.layer(next).type == "relu6")) {
    with.act = next;
    next = only_consumer(network, next + 1);
  }
  if (next < 0 || !is_halving_pool(*l, next)) return;
  with.pool = next;
  MaxPool2dProblem bytes =
      max_pool2d_problem(network.layer(next), network.in(next), l->options.batch, l->options.dtype);
  MaxPool2dProblem bits = bytes;
  bytes.arg = PoolArg::kArg8;
  bits.arg = PoolArg::kArg2;
  if (l->steps.offers<Conv2dFwd, true>(l->id(conv), l->conv2d(conv, {}), l->conv2d(conv, with)) &&
      l->steps.offers<MaxPool2dBwd>(l->id(next), bytes, bits)) {
    absorb_without_asking(l, conv, with);
  }
}

// The first input of an add that is a batchnorm of its own; behind the add a relu or relu6 too, if it can.
void fuse_add(Lowering* l, int add) {
  const ShapedNetwork& network = l->network;
  for (int which : {0, 1}) {
    const int value = network.inputs[add][which];
    if (!is_batchnorm(*l, value) || only_consumer(network, value) != add) continue;
    Lowering::Absorbed with = {.add = add, .residual = network.inputs[add][1 - which]};
    const int next = only_consumer(network, add + 1);
    if (next >= 0 && (network.layer(next).type == "relu" || network.layer(next).type == "relu6")) {
      with.act = next;
      if (absorb(l, value - 1, with)) return;
      with.act = -1;
    }
    if (absorb(l, value - 1, with)) return;
  }
}

// A max_pool2d that alone reads a batchnorm, or the relu or relu6 that the batchnorm has absorbed.
void fuse_pool(Lowering* l, int pool) {
  const ShapedNetwork& network = l->network;
  const int value = network.inputs[pool][0];
  if (value == 0 || only_consumer(network, value) != pool) return;
  if (!is_halving_pool(*l, pool)) return;
  const int head = l->absorbed_by[value - 1] >= 0 ? l->absorbed_by[value - 1] : value - 1;
  if (!is_batchnorm(*l, head + 1)) return;
  Lowering::Absorbed with = l->absorbed[head];
  const std::string act = with.act >= 0 ? network.layer(with.act).type : "";
  if (with.add >= 0 || act_of(act) == ActKind::kGelu || act_of(act) == ActKind::kSilu) return;
  if (value - 1 != (with.act >= 0 ? with.act : head)) return;
  with.pool = pool;
  absorb(l, head, with);
}

}  // namespace

BatchnormProblem Lowering::batchnorm(int layer, const Absorbed& with) const {
  BatchnormProblem p =
      batchnorm_problem(network.layer(layer), network.in(layer), options.batch, options.dtype);
  if (with.act >= 0) p.act = act_of(network.layer(with.act).type);
  p.residual = with.add >= 0;
  p.pool = with.pool >= 0;
  return p;
}

Conv2dProblem Lowering::conv2d(int layer, const Absorbed& with) const {
  Conv2dProblem p = conv2d_problem(network.layer(layer), network.in(layer), options.batch, options.dtype);
  if (with.batchnorm >= 0) p.scale = p.bias = true;
  if (with.act >= 0) p.act = act_of(network.layer(with.act).type);
  p.residual = with.add >= 0;
  p.pool = with.pool >= 0;
  p.pool_arg = p.pool && options.training;
  return p;
}

bool Lowering::gives_stats(int layer) const {
  const Absorbed& with = absorbed[layer];
  if (!options.training || !options.fusions.conv_stats || with.act >= 0 || with.pool >= 0) return false;
  const int reader = only_consumer(network, layer + 1);
  if (reader < 0 || !is_batchnorm(*this, reader + 1)) return false;
  Conv2dProblem with_stats = conv2d(layer, with);
  with_stats.stats = true;
  const BatchnormProblem p = batchnorm(reader);
  return steps.offers<Conv2dFwd, true>(id(layer), conv2d(layer, with), with_stats) &&
         (options.fusions.conv_stats_anyway || steps.gains<Conv2dFwd>(id(layer), with_stats)) &&
         steps.replaces<BatchnormFwdTrain, BatchnormFwdGiven>(p);
}

std::string Lowering::fused_name(int layer) const {
  std::string name = id(layer);
  for (int other :
       {absorbed[layer].batchnorm, absorbed[layer].add, absorbed[layer].act, absorbed[layer].pool}) {
    if (other >= 0) name += " + " + id(other);
  }
  return name;
}

void decide_fusions(Lowering* l) {
  const ShapedNetwork& network = l->network;
  for (int i = 0; i < network.layers() && !l->options.training; ++i) {
    if (network.layer(i).type == "conv2d") fuse_conv2d(l, i);
  }
  for (int i = 0; i < network.layers() && l->options.training && l->options.fusions.conv_pool; ++i) {
    if (network.layer(i).type == "conv2d") fuse_conv2d_pool(l, i);
  }
  for (int i = 0; i < network.layers(); ++i) {
    if (l->absorbed_by[i] >= 0) continue;
    const int input = network.inputs[i][0];
    if (network.layer(i).type == "add") {
      if (l->options.fusions.bn_residual) fuse_add(l, i);
    } else if (l->options.fusions.bn_act && act_of(network.layer(i).type) != ActKind::kNone &&
               is_batchnorm(*l, input) && only_consumer(network, input) == i) {
      absorb(l, input - 1, {.act = i});
    } else if (l->options.fusions.bn_pool && network.layer(i).type == "max_pool2d") {
      fuse_pool(l, i);
    }
  }
}

std::vector<std::string> Fusions::names() {
  return {"bn_act",        "bn_residual", "bn_pool",   "add_grad_alias", "dgrad_acc", "conv_bn",
          "conv_residual", "conv_act",    "conv_pool", "conv_stats",     "dgrad_act"};
}

Fusions Fusions::without(const std::vector<std::string>& off, const std::vector<std::string>& on) {
  Fusions fusions;
  const std::vector<std::pair<std::string, bool*>> switches = {{"bn_act", &fusions.bn_act},
                                                               {"bn_residual", &fusions.bn_residual},
                                                               {"bn_pool", &fusions.bn_pool},
                                                               {"add_grad_alias", &fusions.add_grad_alias},
                                                               {"dgrad_acc", &fusions.dgrad_acc},
                                                               {"conv_bn", &fusions.conv_bn},
                                                               {"conv_residual", &fusions.conv_residual},
                                                               {"conv_act", &fusions.conv_act},
                                                               {"conv_pool", &fusions.conv_pool},
                                                               {"conv_stats", &fusions.conv_stats},
                                                               {"dgrad_act", &fusions.dgrad_act}};
  std::vector<std::string> known = names();
  known.push_back("all");
  const auto set = [&](const std::vector<std::string>& wanted, bool to) {
    for (const std::string& name : wanted) {
      if (std::find(known.begin(), known.end(), name) == known.end()) {
        fail_usage(unknown_name_message("fusion", name, known));
      }
      for (const auto& [switch_name, value] : switches) {
        if (name == "all" || name == switch_name) *value = to;
      }
    }
  };
  set(on, true);
  fusions.conv_stats_anyway = std::any_of(
      on.begin(), on.end(), [](const std::string& name) { return name == "all" || name == "conv_stats"; });
  set(off, false);
  return fusions;
}

}  // namespace kiln
