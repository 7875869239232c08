#include "harness/swap.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <tuple>

#include "harness/text_table.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

struct Run {
  StepProfile profile;
  std::vector<float> losses;
};

TrainOptions options_for(const SwapSetup& setup, const SwapChoice& choice) {
  // Warm-up, plain and traced steps, and the same again for a second source of times.
  const long long traced = 1 + setup.profile.replays;
  TrainOptions options = setup.options;
  options.impl = choice.impl;
  options.max_steps =
      std::max<long long>(kSwapLossSteps, setup.profile.warmup + setup.profile.replays + 2 * traced);
  return options;
}

Run run_choice(const SwapSetup& setup, const SwapChoice& choice) {
  Run run;
  bool done = false;
  Trainer trainer(setup.network, setup.data, setup.device, options_for(setup, choice));
  trainer.profile(setup.profile, [&](const StepProfile& profile) {
    run.profile = profile;
    done = true;
  });
  trainer.train([&](const DrainRecord& record) {
    run.losses.insert(run.losses.end(), record.step_losses.begin(), record.step_losses.end());
    return true;
  });
  if (!done) {
    fail_usage("the run ended after " + std::to_string(trainer.total_steps()) +
               " steps, before its profile was complete; more training images give more steps");
  }
  return run;
}

// A step's place in the network: the n-th of its layer and pass.
using Place = std::tuple<std::string, std::string, int>;

// The places of all steps, in the steps' order.
std::vector<Place> places_of(const StepProfile& profile) {
  std::map<std::pair<std::string, std::string>, int> counts;
  std::vector<Place> places;
  for (const ProfiledStep& s : profile.steps)
    places.emplace_back(s.layer, s.pass, counts[{s.layer, s.pass}]++);
  return places;
}

std::vector<SwappedStep> swapped_steps(const StepProfile& before, const StepProfile& after) {
  const std::vector<Place> old_places = places_of(before), places = places_of(after);
  std::map<Place, const ProfiledStep*> gone;  // the default's steps that are not yet found in `after`
  for (size_t i = 0; i < old_places.size(); ++i) gone[old_places[i]] = &before.steps[i];
  std::vector<SwappedStep> swapped;
  for (size_t i = 0; i < places.size(); ++i) {
    const ProfiledStep& step = after.steps[i];
    const auto found = gone.find(places[i]);
    const ProfiledStep* from = found == gone.end() ? nullptr : found->second;
    if (from) gone.erase(found);
    if (from && from->impl == step.impl && from->problem == step.problem) continue;
    swapped.push_back({.layer = step.layer,
                       .pass = step.pass,
                       .problem = step.problem,
                       .default_impl = from ? from->impl : "",
                       .impl = step.impl,
                       .default_us = from ? from->mean_us() : 0,
                       .us = step.mean_us()});
  }
  for (const auto& [place, step] : gone) {
    swapped.push_back({.layer = step->layer,
                       .pass = step->pass,
                       .problem = step->problem,
                       .default_impl = step->impl,
                       .impl = "",
                       .default_us = step->mean_us()});
  }
  return swapped;
}

SwapResult compare(const Run& before, const Run& after, const std::string& text) {
  SwapResult r;
  r.text = text;
  r.steps = swapped_steps(before.profile, after.profile);
  for (const SwappedStep& step : r.steps) {
    r.default_us += step.default_us;
    r.us += step.us;
  }
  r.predicted_us = before.profile.unprofiled_us - r.default_us + r.us;
  r.measured_us = after.profile.unprofiled_us;
  r.losses = compare_losses(before.losses, after.losses, kSwapLossSteps);
  return r;
}

std::string losses_text(const LossComparison& c) {
  if (c.equal) return format_text("the same bits over %d steps", c.steps);
  return format_text("differ by %.2g of the loss in the first step, at most %.2g over %d steps",
                     c.first_rel_diff, c.max_rel_diff, c.steps);
}

}  // namespace

std::vector<std::string> swap_choices(const std::string& impl) {
  std::vector<std::string> choices;
  const auto parts = [](const std::string& text, char separator) {
    std::vector<std::string> list;
    for (size_t begin = 0; begin <= text.size();) {
      const size_t end = std::min(text.find(separator, begin), text.size());
      list.push_back(text.substr(begin, end - begin));
      begin = end + 1;
    }
    return list;
  };
  for (const std::string& assignment : parts(impl, ',')) {
    const size_t equals = assignment.find('=');
    if (equals == std::string::npos) {
      choices.push_back(assignment);  // ImplChoice says what is wrong with it
      continue;
    }
    for (const std::string& name : parts(assignment.substr(equals + 1), '|')) {
      choices.push_back(assignment.substr(0, equals + 1) + name);
    }
  }
  return choices;
}

LossComparison compare_losses(const std::vector<float>& a, const std::vector<float>& b, int most_steps) {
  LossComparison c;
  c.steps = static_cast<int>(std::min({a.size(), b.size(), static_cast<size_t>(most_steps)}));
  c.equal = std::memcmp(a.data(), b.data(), sizeof(float) * c.steps) == 0;
  for (int i = 0; i < c.steps && !c.equal; ++i) {
    const double x = a[i], y = b[i];
    const double difference = x == y ? 0 : std::abs(x - y) / std::max({std::abs(x), std::abs(y), 1e-30});
    c.max_rel_diff = std::isfinite(difference) ? std::max(c.max_rel_diff, difference) : INFINITY;
    if (i == 0) c.first_rel_diff = c.max_rel_diff;
  }
  return c;
}

SwapReport run_swap(const SwapSetup& setup, const std::vector<SwapChoice>& choices,
                    const std::function<void(const std::string& text)>& on_start) {
  for (const SwapChoice& choice : choices) {
    try {
      Trainer(setup.network, setup.data, setup.device, options_for(setup, choice));
    } catch (const Error& error) {
      throw Error("'" + choice.text + "': " + error.what(), error.kind());
    }
  }
  const auto run = [&](const SwapChoice& choice) {
    if (on_start) on_start(choice.text);
    return run_choice(setup, choice);
  };
  const SwapChoice unchanged{.text = "", .impl = setup.options.impl};
  const Run before = run(unchanged);
  SwapReport report{.step_us = before.profile.unprofiled_us,
                    .source = before.profile.source,
                    .batch = before.profile.batch,
                    .replays = before.profile.replays,
                    .results = {}};
  for (const SwapChoice& choice : choices) {
    report.results.push_back(compare(before, run(choice), choice.text));
  }
  report.results.push_back(compare(before, run(unchanged), ""));
  return report;
}

std::string swap_text(const SwapReport& report) {
  std::string text = format_text("default: %.1f us a step of %d images (steps' times by %s, %d replays)\n",
                                 report.step_us, report.batch, report.source.c_str(), report.replays);
  for (const SwapResult& r : report.results) {
    const double change = 100 * (r.measured_us / report.step_us - 1);
    if (r.text.empty()) {
      text +=
          format_text("default, again: %.1f us a step (%+.1f %%: how far two equal runs differ); losses %s\n",
                      r.measured_us, change, losses_text(r.losses).c_str());
      continue;
    }
    text += "\n" + r.text + "\n";
    std::vector<std::vector<std::string>> rows = {
        {"layer", "pass", "default us", "default", "us", "ratio", "implementation"}};
    for (const SwappedStep& s : r.steps) {
      rows.push_back({s.layer, s.pass, format_text("%.1f", s.default_us), s.default_impl,
                      format_text("%.1f", s.us),
                      s.default_us > 0 ? format_text("x%.2f", s.us / s.default_us) : "-", s.impl});
    }
    if (!r.steps.empty()) text += table_text(rows, {2, 4, 5});
    if (r.steps.empty())
      text +=
          "  no step is done otherwise: the network has no step of that pass, or it is the default here\n";
    text += format_text("  these steps  %12.1f us, default %.1f us\n", r.us, r.default_us);
    text += format_text("  whole step   %12.1f us measured (%+.1f %%), %.1f us predicted (off by %+.1f %%)\n",
                        r.measured_us, change, r.predicted_us, 100 * (r.predicted_us / r.measured_us - 1));
    text += "  losses       " + losses_text(r.losses) + "\n";
  }
  return text;
}

nlohmann::ordered_json swap_json(const SwapReport& report) {
  nlohmann::ordered_json json = {{"schema", 1},
                                 {"batch", report.batch},
                                 {"source", report.source},
                                 {"replays", report.replays},
                                 {"default_step_us", report.step_us},
                                 {"choices", nlohmann::ordered_json::array()}};
  for (const SwapResult& r : report.results) {
    nlohmann::ordered_json choice = {{"impl", r.text},
                                     {"default_layers_us", r.default_us},
                                     {"layers_us", r.us},
                                     {"predicted_step_us", r.predicted_us},
                                     {"step_us", r.measured_us},
                                     {"loss_steps", r.losses.steps},
                                     {"losses_equal", r.losses.equal},
                                     {"loss_max_rel_diff", r.losses.max_rel_diff},
                                     {"loss_first_rel_diff", r.losses.first_rel_diff},
                                     {"steps", nlohmann::ordered_json::array()}};
    for (const SwappedStep& s : r.steps) {
      choice["steps"].push_back({{"layer", s.layer},
                                 {"pass", s.pass},
                                 {"problem", s.problem},
                                 {"default_impl", s.default_impl},
                                 {"impl", s.impl},
                                 {"default_us", s.default_us},
                                 {"us", s.us}});
    }
    json["choices"].push_back(std::move(choice));
  }
  return json;
}

}  // namespace kiln
