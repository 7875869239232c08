#include "bench/plan_ranking.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/common/error.h"

namespace kiln {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

PlanRanking::PlanRanking(std::string path) : path_(std::move(path)) {
  std::ifstream in(path_);
  if (path_.empty() || !in) return;
  try {
    const Json json = Json::parse(in);
    for (const auto& [key, list] : json.at("plans").items()) {
      for (const Json& plan : list) {
        plans_[key].push_back({plan.at("engine").get<std::string>(), plan.at("notes").get<std::string>(),
                               plan.at("us").get<double>()});
      }
    }
  } catch (const nlohmann::json::exception& error) {
    fail_usage("'" + path_ + "' is no ranking of plans: " + error.what() + "; delete it or name another");
  }
}

const std::vector<RankedPlan>* PlanRanking::find(const std::string& key) const {
  const auto found = plans_.find(key);
  return found == plans_.end() ? nullptr : &found->second;
}

void PlanRanking::set(const std::string& key, std::vector<RankedPlan> plans) {
  plans_[key] = std::move(plans);
  if (path_.empty()) return;
  Json all = Json::object();
  for (const auto& [name, list] : plans_) {
    Json& entry = all[name] = Json::array();
    for (const RankedPlan& p : list)
      entry.push_back({{"engine", p.engine}, {"notes", p.notes}, {"us", p.us}});
  }
  std::error_code ignored;
  if (fs::path(path_).has_parent_path()) fs::create_directories(fs::path(path_).parent_path(), ignored);
  std::ofstream out(path_ + ".tmp");
  out << Json({{"schema", 1}, {"plans", all}}).dump(1) << "\n";
  out.close();
  if (!out) fail_failure("cannot write '" + path_ + ".tmp'");
  fs::rename(path_ + ".tmp", path_);
}

}  // namespace kiln
