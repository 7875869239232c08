#include "harness/profile_report.h"

#include <algorithm>
#include <cmath>

#include "kernels/common/error.h"
#include "kernels/common/registry.h"

namespace kiln {
namespace {

constexpr double kLaunchBoundNodes = 3;

// The problem of a step. Some passes know fp32 alone, whatever the network's type. Null where there is none.
std::shared_ptr<const AnyProblem> problem_of(const ProfiledStep& step, DType dtype) {
  if (step.problem.empty()) return nullptr;
  for (const DType type : {dtype, DType::kF32}) {
    try {
      return std::make_shared<AnyProblem>(find_pass(step.pass).parse(step.problem, type));
    } catch (const Error&) {
    }
  }
  return nullptr;
}

void fill_floor(const Device& device, DType dtype, const Ceilings& ceilings, ReportRow* row) {
  const auto problem = problem_of(*row->step, dtype);
  if (!problem) return;
  const PassInfo& pass = find_pass(row->step->pass);
  row->bytes = pass.compulsory_bytes(*problem);
  row->flops = pass.flops(*problem);
  double written = 0;
  for (const TensorSpec& spec : pass.tensors(*problem)) {
    if (spec.is_output()) written += static_cast<double>(spec.bytes());
  }
  const double share = row->bytes > 0 ? written / row->bytes : 0;
  row->memory_us = row->bytes / (ceilings.mixed_rate(share) * 1e9) * 1e6;
  row->arithmetic_us = row->flops / ceilings.arithmetic_rate(device, problem->dtype) * 1e6;
  if (std::isnan(row->memory_us)) return;
  row->floor_us = std::fmax(row->memory_us, row->arithmetic_us);  // of the two that are numbers
  row->pct_floor = row->us > 0 ? 100 * row->floor_us / row->us : Ceilings::kVoid;
  row->bound = row->arithmetic_us > row->memory_us ? "compute" : "bandwidth";
}

void add(std::vector<ReportSum>* sums, const std::string& name, double us) {
  const auto found =
      std::find_if(sums->begin(), sums->end(), [&](const ReportSum& s) { return s.name == name; });
  ReportSum& sum = found == sums->end() ? sums->emplace_back(ReportSum{.name = name}) : *found;
  sum.us += us;
  ++sum.steps;
}

void sort_by_time(std::vector<ReportSum>* sums) {
  std::stable_sort(sums->begin(), sums->end(),
                   [](const ReportSum& a, const ReportSum& b) { return a.us > b.us; });
}

nlohmann::ordered_json sums_json(const std::vector<ReportSum>& sums) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const ReportSum& sum : sums)
    json.push_back({{"name", sum.name}, {"us", sum.us}, {"steps", sum.steps}});
  return json;
}

}  // namespace

const char* name_of(Phase phase) {
  switch (phase) {
    case Phase::kInput:
      return "input";
    case Phase::kForward:
      return "forward";
    case Phase::kLoss:
      return "loss";
    case Phase::kBackward:
      return "backward";
    case Phase::kUpdate:
      return "update";
  }
  return "?";
}

ProfileOptions profile_options(const Device& device, int replays) {
  // A CPU's step takes a thousand times longer.
  const ProfileOptions defaults = device.is_cuda() ? ProfileOptions{.warmup = 10, .replays = 20}
                                                   : ProfileOptions{.warmup = 2, .replays = 5};
  return {.warmup = defaults.warmup, .replays = replays > 0 ? replays : defaults.replays};
}

ProfileReport::ProfileReport(StepProfile p, const Device& device, DType dtype, const Ceilings& ceilings)
    : profile(std::move(p)), graph_node_us(ceilings.graph_node_us) {
  for (const Phase phase : {Phase::kInput, Phase::kForward, Phase::kLoss, Phase::kBackward, Phase::kUpdate}) {
    phases.push_back({.name = name_of(phase)});
  }
  for (const ProfiledStep& step : profile.steps) {
    ReportRow row{.step = &step, .us = step.median_us(), .mean_us = step.mean_us()};
    fill_floor(device, dtype, ceilings, &row);
    // False where graph_node_us is not known.
    if (row.us < kLaunchBoundNodes * graph_node_us * std::max(1, step.spans)) row.bound = "launch";
    add(&phases, name_of(step.phase), row.mean_us);
    add(&layers, step.layer, row.mean_us);
    add(&passes, step.pass, row.mean_us);
    add(&bounds, row.bound, row.mean_us);
    rows.push_back(std::move(row));
  }
  for (auto* sums : {&layers, &passes, &bounds}) sort_by_time(sums);
}

nlohmann::ordered_json profile_json(const ProfileReport& r) {
  const StepProfile& p = r.profile;
  nlohmann::ordered_json json = {{"schema", 1},
                                 {"source", p.source},
                                 {"notes", p.notes},
                                 {"batch", p.batch},
                                 {"replays", p.replays},
                                 {"step_us", p.unprofiled_us},
                                 {"profiled_step_us", p.profiled_us},
                                 {"accounted_us", p.accounted_us()},
                                 {"busy_us", p.busy_us},
                                 {"gap_us", p.gap_us},
                                 {"overlap_us", p.overlap_us},
                                 {"upload_us", p.upload_us},
                                 {"graph_node_us", r.graph_node_us},
                                 {"phases", sums_json(r.phases)},
                                 {"passes", sums_json(r.passes)},
                                 {"layers", sums_json(r.layers)},
                                 {"bounds", sums_json(r.bounds)}};
  nlohmann::ordered_json steps = nlohmann::ordered_json::array();
  for (const ReportRow& row : r.rows) {
    const ProfiledStep& s = *row.step;
    steps.push_back({{"phase", name_of(s.phase)},
                     {"layer", s.layer},
                     {"pass", s.pass},
                     {"problem", s.problem},
                     {"impl", s.impl},
                     {"us", row.us},
                     {"spread_pct", s.spread_pct()},
                     {"mean_us", row.mean_us},
                     {"gap_us", s.gap_us},
                     {"spans", s.spans},
                     {"bytes", row.bytes},
                     {"flops", row.flops},
                     {"memory_us", row.memory_us},
                     {"arithmetic_us", row.arithmetic_us},
                     {"floor_us", row.floor_us},
                     {"pct_floor", row.pct_floor},
                     {"bound", row.bound}});
  }
  json["steps"] = std::move(steps);
  return json;
}

}  // namespace kiln
