// How fast each of a vendor's plans is, measured once and remembered in a JSON file: trying them all takes
// seconds to a minute a problem.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace kiln {

struct RankedPlan {
  std::string engine;  // the vendor's name for it, which says what it is whatever its place in the list
  std::string notes;
  double us = 0;  // warm
};

class PlanRanking {
 public:
  // path: "" for a ranking that is kept in memory alone. A missing file is an empty ranking. Throws Error for
  // a damaged one.
  explicit PlanRanking(std::string path);
  // Fastest first; null where nothing is known. key: "<library and version>/<GPU>/<pass>/<problem>/<dtype>".
  const std::vector<RankedPlan>* find(const std::string& key) const;
  // Remembers and writes the file (to a temporary name, then renamed).
  void set(const std::string& key, std::vector<RankedPlan> plans);

 private:
  std::string path_;
  std::map<std::string, std::vector<RankedPlan>> plans_;
};

}  // namespace kiln
