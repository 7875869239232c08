// The tuning cache: what `kiln tune` measured to be fastest, a JSON file.
//
//   {"schema": 1, "devices": {"NVIDIA H100 80GB HBM3": {
//      "conv2d.fwd/n512_h32_w32_c64_k64_r3_st1_p1/bf16": {"impl": "wgmma_halo:256x64x64_s3", "us": 71.3,
//          "heuristic": "wgmma_halo:128x256x64_s3", "heuristic_us": 75.0, "signature": "9f...",
//          "driver": "580.159", "kiln": "0.1.0"}}}}
//
// A choice counts on a GPU of the same name, for the same pass, problem and dtype, while the implementations
// and configs to choose from are the ones it was measured among (their hash is the signature).
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace kiln {

struct TunedChoice {
  std::string impl;       // "name" or "name:config"
  double us = 0;          // cold
  std::string heuristic;  // what is picked without the cache, and its time
  double heuristic_us = 0;
  std::string signature, driver, kiln;
};

class TuneCache {
 public:
  // Throws Error for text that is no tuning cache; `name` is for the message.
  static TuneCache parse(std::string_view json, const std::string& name);
  // An empty cache where there is no such file. Throws Error for a damaged one.
  static TuneCache load(const std::string& path);
  // Written to a temporary name, then renamed; makes the folder.
  void save(const std::string& path) const;

  // Null where nothing is known.
  const TunedChoice* find(const std::string& device, const std::string& key) const;
  void set(const std::string& device, const std::string& key, TunedChoice choice);
  // Takes every choice of `other`, over its own.
  void merge(const TuneCache& other);
  const std::map<std::string, std::map<std::string, TunedChoice>>& devices() const { return devices_; }

 private:
  std::map<std::string, std::map<std::string, TunedChoice>> devices_;  // by device name, by key
};

// $XDG_CACHE_HOME/kiln/tune.json or ~/.cache/kiln/tune.json.
std::string default_tune_cache();

}  // namespace kiln
