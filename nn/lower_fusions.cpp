// Which layers a batchnorm does too: the activation behind it, or the add behind it and that add's
// activation.
#include <algorithm>

#include "nn/lowering.h"

namespace kiln {
namespace {

BatchnormAct act_of(const std::string& type) {
  if (type == "relu") return BatchnormAct::kRelu;
  if (type == "relu6") return BatchnormAct::kRelu6;
  if (type == "gelu") return BatchnormAct::kGelu;
  if (type == "silu") return BatchnormAct::kSilu;
  return BatchnormAct::kNone;
}

// The one layer that reads a value; -1 where there are more or none.
int only_consumer(const ShapedNetwork& network, int value) {
  const std::vector<int>& consumers = network.consumers[value];
  return consumers.size() == 1 ? consumers[0] : -1;
}

bool is_batchnorm(const ShapedNetwork& network, int value) {
  return value > 0 && network.layer(value - 1).type == "batchnorm";
}

// True where the implementations that a batchnorm alone would get also take it with the rest: a fusion does
// not overrule the user's choice (the vendor's batchnorm takes none).
bool offers(const Lowering& l, int batchnorm, const Lowering::Absorbed& with) {
  const BatchnormProblem plain = l.batchnorm(batchnorm, {}), fused = l.batchnorm(batchnorm, with);
  const std::string& id = l.id(batchnorm);
  if (!l.options.training) return l.steps.offers<BatchnormFwdInfer>(id, plain, fused);
  return l.steps.offers<BatchnormFwdTrain>(id, plain, fused) &&
         l.steps.offers<BatchnormBwd>(id, plain, fused);
}

bool absorb(Lowering* l, int batchnorm, const Lowering::Absorbed& with) {
  if (!offers(*l, batchnorm, with)) return false;
  l->absorbed[batchnorm] = with;
  for (int layer : {with.add, with.act}) {
    if (layer >= 0) l->absorbed_by[layer] = batchnorm;
  }
  return true;
}

// The first input of an add that is a batchnorm of its own; behind the add a relu or relu6 too, if it can.
void fuse_add(Lowering* l, int add) {
  const ShapedNetwork& network = l->network;
  for (int which : {0, 1}) {
    const int value = network.inputs[add][which];
    if (!is_batchnorm(network, value) || only_consumer(network, value) != add) continue;
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

}  // namespace

BatchnormProblem Lowering::batchnorm(int layer, const Absorbed& with) const {
  BatchnormProblem p =
      batchnorm_problem(network.layer(layer), network.in(layer), options.batch, options.dtype);
  if (with.act >= 0) p.act = act_of(network.layer(with.act).type);
  p.residual = with.add >= 0;
  return p;
}

std::string Lowering::batchnorm_name(int layer) const {
  std::string name = id(layer);
  for (int other : {absorbed[layer].add, absorbed[layer].act}) {
    if (other >= 0) name += " + " + id(other);
  }
  return name;
}

void decide_fusions(Lowering* l) {
  const ShapedNetwork& network = l->network;
  for (int i = 0; i < network.layers(); ++i) {
    const int input = network.inputs[i][0];
    if (network.layer(i).type == "add") {
      if (l->options.fusions.bn_residual) fuse_add(l, i);
    } else if (l->options.fusions.bn_act && act_of(network.layer(i).type) != BatchnormAct::kNone &&
               is_batchnorm(network, input) && only_consumer(network, input) == i) {
      absorb(l, input - 1, {.act = i});
    }
  }
}

std::vector<std::string> Fusions::names() { return {"bn_act", "bn_residual", "add_grad_alias", "dgrad_acc"}; }

Fusions Fusions::without(const std::vector<std::string>& off) {
  Fusions fusions;
  const std::vector<std::pair<std::string, bool*>> switches = {{"bn_act", &fusions.bn_act},
                                                               {"bn_residual", &fusions.bn_residual},
                                                               {"add_grad_alias", &fusions.add_grad_alias},
                                                               {"dgrad_acc", &fusions.dgrad_acc}};
  std::vector<std::string> known = names();
  known.push_back("all");
  for (const std::string& name : off) {
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      fail_usage(unknown_name_message("fusion", name, known));
    }
    for (const auto& [switch_name, value] : switches) {
      if (name == "all" || name == switch_name) *value = false;
    }
  }
  return fusions;
}

}  // namespace kiln
