// What a profile's spans amount to, and which step each record of a GPU belongs to.
#include <algorithm>
#include <numeric>
#include <set>
#include <tuple>

#include "nn/step_profile.h"

namespace kiln {
namespace {

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

// The node of each record where kernels' names agree; empty where they do not.
std::vector<int> attribute_by_name(const std::vector<TracedNode>& nodes,
                                   const std::vector<TracedNode>& records, std::string* why) {
  using Kind = TracedNode::Kind;
  std::set<std::string> names;
  for (const TracedNode& node : nodes) names.insert(node.name);
  const auto fits = [&](const TracedNode& node, const TracedNode& record) {
    if (node.kind == Kind::kKernel) {
      return record.kind == Kind::kKernel && (node.name.empty() || node.name == record.name);
    }
    return record.kind == node.kind || (record.kind == Kind::kKernel && !names.contains(record.name));
  };
  std::vector<int> found;
  size_t at = 0;
  for (const TracedNode& record : records) {
    size_t passed = 0;
    for (; !fits(nodes[at], record); at = (at + 1) % nodes.size()) {
      if (nodes[at].kind == Kind::kKernel || ++passed > nodes.size()) {
        *why = "'" + record.name + "' ran where '" + nodes[at].name + "' was recorded";
        return {};
      }
    }
    found.push_back(static_cast<int>(at));
    at = (at + 1) % nodes.size();
  }
  for (; at != 0; at = (at + 1) % nodes.size()) {
    if (nodes[at].kind != Kind::kKernel) continue;
    *why = "the last replay ends before '" + nodes[at].name + "'";
    return {};
  }
  return found;
}

}  // namespace

double ProfiledStep::mean_us() const {
  return us.empty() ? 0 : std::accumulate(us.begin(), us.end(), 0.0) / static_cast<double>(us.size());
}
double ProfiledStep::median_us() const { return quantile(us, 0.5); }
double ProfiledStep::spread_pct() const {
  const double median = median_us();
  return median > 0 ? 50 * (quantile(us, 0.75) - quantile(us, 0.25)) / median : 0;
}

void account(const std::vector<int>& first_replays, StepProfile* profile) {
  StepProfile& p = *profile;
  std::stable_sort(p.spans.begin(), p.spans.end(), [](const ProfileSpan& a, const ProfileSpan& b) {
    return std::tie(a.start_us, a.end_us) < std::tie(b.start_us, b.end_us);
  });
  const auto count = static_cast<size_t>(p.replays);
  for (ProfiledStep& step : p.steps) {
    step.us.assign(count, 0);
    step.gap_us = 0;
    step.spans = 0;
  }
  p.busy_us = p.gap_us = p.overlap_us = p.upload_us = 0;
  std::vector<std::vector<double>> step_ends(p.steps.size(), std::vector<double>(count, 0));
  int stretch = -1;
  double end = 0;  // of all spans so far
  for (const ProfileSpan& span : p.spans) {
    const int of = static_cast<int>(
        std::upper_bound(first_replays.begin(), first_replays.end(), span.replay) - first_replays.begin());
    if (of != stretch) {  // the clock did not run between two stretches
      stretch = of;
      end = span.start_us;
    }
    const double gap = std::max(0.0, span.start_us - end);
    const double fresh = std::max(0.0, span.end_us - std::max(span.start_us, end));
    p.gap_us += gap;
    p.busy_us += fresh;
    p.overlap_us += span.us() - fresh;
    end = std::max(end, span.end_us);
    if (span.step == ProfileSpan::kNoStep) {
      p.upload_us += span.us();
      continue;
    }
    ProfiledStep& step = p.steps[span.step];
    double& step_end = step_ends[span.step][span.replay];
    step.us[span.replay] += std::max(0.0, span.end_us - std::max(span.start_us, step_end));
    step_end = std::max(step_end, span.end_us);
    step.gap_us += gap;
    if (span.replay == 0) ++step.spans;
  }
  const double replays = std::max(1, p.replays);
  for (double* sum : {&p.busy_us, &p.gap_us, &p.overlap_us, &p.upload_us}) *sum /= replays;
  for (ProfiledStep& step : p.steps) step.gap_us /= replays;
}

std::vector<int> attribute(const std::vector<TracedNode>& nodes, const std::vector<TracedNode>& records,
                           std::string* why) {
  why->clear();
  if (nodes.empty() || records.empty()) {
    *why = "nothing was recorded";
    return {};
  }
  std::vector<int> found = attribute_by_name(nodes, records, why);
  if (!found.empty()) return found;
  if (records.size() % nodes.size() != 0) {
    *why += "; " + std::to_string(records.size()) + " records are no whole replays of " +
            std::to_string(nodes.size());
    return {};
  }
  // The counts agree, and so must the names of all replays.
  for (size_t i = 0; i < records.size(); ++i) {
    if (records[i].name != records[i % nodes.size()].name) return {};
    found.push_back(static_cast<int>(i % nodes.size()));
  }
  *why = "kernels are attributed by their order alone: " + *why;
  return found;
}

}  // namespace kiln
