// A StepProfile beside what the device can do: a verdict a step, sums, and the forms it is written in.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/ceilings.h"
#include "nn/step_profile.h"

namespace kiln {

struct ReportRow {
  const ProfiledStep* step = nullptr;  // in ProfileReport::profile
  double us = 0, mean_us = 0;          // median and mean over the replays
  // Compulsory bytes and operations of the problem, and the microseconds that the device's ceilings leave
  // them at least. NaN where they are not known.
  double bytes = Ceilings::kVoid, flops = Ceilings::kVoid;
  double memory_us = Ceilings::kVoid, arithmetic_us = Ceilings::kVoid;
  double floor_us = Ceilings::kVoid, pct_floor = Ceilings::kVoid;
  // "launch": shorter than 3 empty graph nodes a kernel; else what makes the floor, "bandwidth" or "compute".
  std::string bound = {};  // "" where nothing is known
};

struct ReportSum {
  std::string name;
  double us = 0;  // means over the replays
  int steps = 0;
};

struct ProfileReport {
  ProfileReport(StepProfile profile, const Device& device, DType dtype, const Ceilings& ceilings);
  ProfileReport(const ProfileReport&) = delete;
  ProfileReport& operator=(const ProfileReport&) = delete;

  StepProfile profile;
  double graph_node_us;
  std::vector<ReportRow> rows;                            // in the step's order
  std::vector<ReportSum> phases, layers, passes, bounds;  // phases in order, the others by time
};

const char* name_of(Phase phase);

// Replays and warm-up that suit a device; replays = 0: its default.
ProfileOptions profile_options(const Device& device, int replays);

// A page for the terminal; the longest `rows` steps.
std::string profile_text(const ProfileReport& report, int rows);
// The whole report (docs/profiling.md has the fields).
nlohmann::ordered_json profile_json(const ProfileReport& report);
// For chrome://tracing and Perfetto: a lane of layers and a lane of kernels.
nlohmann::ordered_json chrome_trace(const StepProfile& profile, const std::string& device);

}  // namespace kiln
