// A profile as a page for the terminal and as a Chrome trace.
#include <cxxabi.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "harness/profile_report.h"
#include "harness/progress.h"
#include "harness/text_table.h"

namespace kiln {
namespace {

std::string line(const char* name, double us, double step_us, const std::string& remark = "") {
  const std::string share = step_us > 0 ? format_text("%6.1f %%", 100 * us / step_us) : "";
  return format_text("  %-24s %11.1f us %s%s%s\n", name, us, share.c_str(), remark.empty() ? "" : "   ",
                     remark.c_str());
}

// A kernel's name without namespaces, arguments and "void".
std::string short_name(const std::string& mangled) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> demangled(
      abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status), std::free);
  std::string name = status == 0 && demangled ? demangled.get() : mangled;
  for (const std::string part : {"(anonymous namespace)::", "kiln::", "void "}) {
    for (size_t at; (at = name.find(part)) != std::string::npos;) name.erase(at, part.size());
  }
  int depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    depth += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
    if (depth == 0 && name[i] == '(') return name.substr(0, i);
  }
  return name;
}

std::string header(const StepProfile& p) {
  std::string text = format_text("profile of a training step of %d images, %zu steps, %d replays, by %s\n",
                                 p.batch, p.steps.size(), p.replays, p.source.c_str());
  for (const std::string& note : p.notes) text += "  note: " + note + "\n";
  const double images = p.unprofiled_us > 0 ? 1e6 * p.batch / p.unprofiled_us : 0;
  text += line("step, profiler off", p.unprofiled_us, 0, with_thousands(images) + " images/s");
  text += line("step, profiler on", p.profiled_us, 0,
               p.unprofiled_us > 0 ? format_text("%+.1f %%: what the profiler costs",
                                                 100 * (p.profiled_us / p.unprofiled_us - 1))
                                   : "");
  text += line("accounted for", p.accounted_us(), p.profiled_us,
               "of the step with the profiler on: busy and gaps");
  text += line("busy", p.busy_us, p.accounted_us(), "union of what ran");
  text += line(
      "gaps", p.gap_us, p.accounted_us(),
      format_text("%.1f us of the step with the profiler off", std::max(0.0, p.unprofiled_us - p.busy_us)));
  text += line("overlap", p.overlap_us, p.accounted_us(), "ran at the same time; once in busy");
  return text;
}

std::string sums_text(const ProfileReport& r) {
  const double all = r.profile.accounted_us();
  std::string text = "by phase\n";
  for (const ReportSum& sum : r.phases) text += line(sum.name.c_str(), sum.us, all);
  if (r.profile.upload_us > 0) text += line("upload", r.profile.upload_us, all, "copies between the steps");
  text += "by pass\n";
  for (const ReportSum& sum : r.passes)
    text += line(sum.name.c_str(), sum.us, all, format_text("x%d", sum.steps));
  if (std::isnan(r.graph_node_us)) return text;
  text += format_text("by what bounds it (launch: below %.1f us a kernel, 3 empty graph nodes)\n",
                      3 * r.graph_node_us);
  for (const ReportSum& sum : r.bounds) {
    text += line(sum.name.empty() ? "(no op's pass)" : sum.name.c_str(), sum.us, all,
                 format_text("x%d", sum.steps));
  }
  return text;
}

}  // namespace

std::string profile_text(const ProfileReport& r, int rows) {
  std::vector<const ReportRow*> sorted;
  for (const ReportRow& row : r.rows) sorted.push_back(&row);
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const ReportRow* a, const ReportRow* b) { return a->us > b->us; });
  if (static_cast<size_t>(std::max(rows, 0)) < sorted.size()) sorted.resize(std::max(rows, 0));
  std::vector<std::vector<std::string>> cells = {
      {"us", "+-%", "step%", "floor%", "bound", "layer", "pass", "implementation", "problem"}};
  const double all = r.profile.accounted_us();
  for (const ReportRow* row : sorted) {
    const ProfiledStep& s = *row->step;
    cells.push_back({format_text("%.1f", row->us), format_text("%.1f", s.spread_pct()),
                     format_text("%.1f", all > 0 ? 100 * row->mean_us / all : 0),
                     std::isnan(row->pct_floor) ? "-" : format_text("%.0f", row->pct_floor),
                     row->bound.empty() ? "-" : row->bound, s.layer, s.pass, s.impl, s.problem});
  }
  return header(r.profile) + sums_text(r) +
         format_text("the %zu longest of %zu steps\n", sorted.size(), r.rows.size()) +
         table_text(cells, {0, 1, 2, 3});
}

nlohmann::ordered_json chrome_trace(const StepProfile& p, const std::string& device) {
  constexpr int kLayers = 1, kKernels = 2;
  nlohmann::ordered_json events = nlohmann::ordered_json::array();
  const auto name = [&](const char* what, int lane, const std::string& text) {
    events.push_back({{"name", what}, {"ph", "M"}, {"pid", 1}, {"tid", lane}, {"args", {{"name", text}}}});
  };
  name("process_name", kLayers, device);
  name("thread_name", kLayers, "layers");
  name("thread_name", kKernels, "kernels");
  const double zero = p.spans.empty() ? 0 : p.spans.front().start_us;
  const auto slice = [&](const std::string& text, const char* category, int lane, double start, double end) {
    events.push_back({{"name", text},
                      {"cat", category},
                      {"ph", "X"},
                      {"pid", 1},
                      {"tid", lane},
                      {"ts", start - zero},
                      {"dur", end - start}});
  };
  for (size_t i = 0, next; i < p.spans.size(); i = next) {
    const ProfileSpan& first = p.spans[i];
    double end = first.end_us;
    for (next = i + 1;
         next < p.spans.size() && p.spans[next].step == first.step && p.spans[next].replay == first.replay;
         ++next) {
      end = std::max(end, p.spans[next].end_us);
    }
    if (first.step == ProfileSpan::kNoStep) {
      slice("upload", "upload", kLayers, first.start_us, end);
    } else {
      const ProfiledStep& s = p.steps[first.step];
      slice(s.layer + " " + s.pass, name_of(s.phase), kLayers, first.start_us, end);
      events.back()["args"] = {{"replay", first.replay}, {"problem", s.problem}, {"impl", s.impl}};
    }
    for (size_t j = i; j < next; ++j) {
      const ProfileSpan& span = p.spans[j];
      slice(short_name(span.name), "kernel", kKernels, span.start_us, span.end_us);
    }
  }
  return {{"displayTimeUnit", "ms"}, {"traceEvents", std::move(events)}};
}

}  // namespace kiln
