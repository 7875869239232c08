#include "kernels/common/tune_cache.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "kernels/common/error.h"

namespace kiln {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

TunedChoice read_choice(const Json& json) {
  return {.impl = json.at("impl").get<std::string>(),
          .us = json.at("us").get<double>(),
          .heuristic = json.at("heuristic").get<std::string>(),
          .heuristic_us = json.at("heuristic_us").get<double>(),
          .signature = json.at("signature").get<std::string>(),
          .driver = json.at("driver").get<std::string>(),
          .kiln = json.at("kiln").get<std::string>()};
}

Json choice_json(const TunedChoice& c) {
  return {{"impl", c.impl},
          {"us", c.us},
          {"heuristic", c.heuristic},
          {"heuristic_us", c.heuristic_us},
          {"signature", c.signature},
          {"driver", c.driver},
          {"kiln", c.kiln}};
}

}  // namespace

TuneCache TuneCache::parse(std::string_view text, const std::string& name) {
  TuneCache cache;
  try {
    const Json json = Json::parse(text);
    if (json.at("schema") != 1) fail_usage("schema " + json.at("schema").dump() + ", this kiln reads 1");
    for (const auto& [device, entries] : json.at("devices").items()) {
      for (const auto& [key, entry] : entries.items()) cache.devices_[device][key] = read_choice(entry);
    }
  } catch (const nlohmann::json::exception& error) {
    fail_usage("tuning cache '" + name + "' is damaged: " + error.what() + "; delete it or name another");
  } catch (const Error& error) {
    fail_usage("tuning cache '" + name + "': " + error.what());
  }
  return cache;
}

TuneCache TuneCache::load(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return {};
  if (fs::is_directory(path)) fail_usage("tuning cache '" + path + "' is a folder, a file is wanted");
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  return parse(text, path);
}

void TuneCache::save(const std::string& path) const {
  Json devices = Json::object();
  for (const auto& [device, entries] : devices_) {
    for (const auto& [key, choice] : entries) devices[device][key] = choice_json(choice);
  }
  const Json json = {{"schema", 1}, {"devices", devices}};
  std::error_code ignored;
  if (fs::path(path).has_parent_path()) fs::create_directories(fs::path(path).parent_path(), ignored);
  const std::string temporary = path + ".tmp";
  std::ofstream out(temporary, std::ios::binary);
  out << json.dump(1) << "\n";
  out.close();
  if (!out) fail_failure("cannot write the tuning cache '" + temporary + "'");
  fs::rename(temporary, path, ignored);
  if (ignored) fail_failure("cannot write the tuning cache '" + path + "': " + ignored.message());
}

const TunedChoice* TuneCache::find(const std::string& device, const std::string& key) const {
  const auto entries = devices_.find(device);
  if (entries == devices_.end()) return nullptr;
  const auto found = entries->second.find(key);
  return found == entries->second.end() ? nullptr : &found->second;
}

void TuneCache::set(const std::string& device, const std::string& key, TunedChoice choice) {
  devices_[device][key] = std::move(choice);
}

void TuneCache::merge(const TuneCache& other) {
  for (const auto& [device, entries] : other.devices_) {
    for (const auto& [key, choice] : entries) set(device, key, choice);
  }
}

std::string default_tune_cache() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache && *cache) return std::string(cache) + "/kiln/tune.json";
  const char* home = std::getenv("HOME");
  return std::string(home ? home : ".") + "/.cache/kiln/tune.json";
}

}  // namespace kiln
