// A run's folder: config.json, metrics.jsonl, summary.json, weights.safetensors, state.safetensors, and with
// --profile profile.json and trace.json.
#pragma once

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace kiln {

using Json = nlohmann::ordered_json;

// Writes to a temporary name beside `path`, then renames: readers see the old file or the whole new one.
// Throws Error(kFailure) where the disk refuses.
void write_file_atomically(const std::string& path, const std::string& text);

// Throws Error where no file can be written under that name: its folder is missing or read-only, or it is a
// folder. `flag` names the flag in the message. Creates nothing.
void check_output_file(const std::string& flag, const std::string& path);

class RunFolder {
 public:
  // Throws Error unless `path` is new or empty (or overwrite) and can be written; creates nothing.
  static void check(const std::string& path, bool overwrite);
  // "<parent>/<name>", or with -2, -3, ... appended where that is taken.
  static std::string first_free(const std::string& parent, const std::string& name);

  // Checks, creates the folder and, with overwrite, removes an earlier run's files (kiln's own, no others).
  static RunFolder create(const std::string& path, bool overwrite);
  // A run's folder to go on in behind `steps` steps: metrics are appended. Lines of later steps, which a run
  // that died before its checkpoint left, go.
  static RunFolder reopen(const std::string& path, long long steps);
  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const;
  void write_json(const std::string& name, const Json& value) const;
  void append_metrics(const Json& line);  // metrics.jsonl, on disk when this returns to the caller

 private:
  RunFolder(const std::string& path, std::ios::openmode mode);
  std::string path_;
  std::ofstream metrics_;
};

}  // namespace kiln
