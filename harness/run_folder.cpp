#include "harness/run_folder.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <sstream>

#include "kernels/common/error.h"

namespace kiln {
namespace fs = std::filesystem;
namespace {

constexpr const char* kFiles[] = {"config.json",       "metrics.jsonl", "summary.json", "weights.safetensors",
                                  "state.safetensors", "profile.json",  "trace.json"};

[[noreturn]] void fail_folder(const std::string& path, const std::string& rule) {
  fail_usage("run folder '" + path + "' " + rule);
}

// The deepest part of `path` that exists; "." where none does.
fs::path existing_part(fs::path path) {
  std::error_code ignored;
  while (!path.empty() && !fs::exists(path, ignored)) {
    if (path == path.parent_path()) break;
    path = path.parent_path();
  }
  return path.empty() ? fs::path(".") : path;
}

}  // namespace

void write_file_atomically(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".tmp" + std::to_string(getpid());
  {
    std::ofstream out(temporary, std::ios::binary);
    out << text;
    out.flush();
    if (!out) {
      const std::string reason = std::strerror(errno);
      out.close();
      std::error_code ignored;
      fs::remove(temporary, ignored);
      fail_failure("cannot write '" + path + "': " + reason);
    }
  }
  std::error_code error;
  fs::rename(temporary, path, error);
  if (error) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    fail_failure("cannot write '" + path + "': " + error.message());
  }
}

void check_output_file(const std::string& flag, const std::string& path) {
  std::error_code ignored;
  const fs::path parent = fs::path(path).parent_path(), folder = parent.empty() ? "." : parent;
  if (!fs::is_directory(folder, ignored))
    fail_usage(flag + " " + path + ": there is no folder " + folder.string());
  if (fs::is_directory(path, ignored)) fail_usage(flag + " " + path + " is a folder");
  if (access(folder.c_str(), W_OK | X_OK) != 0) {
    fail_usage(flag + " " + path + " cannot be written: " + std::strerror(errno));
  }
}

void RunFolder::check(const std::string& path, bool overwrite) {
  std::error_code error;
  const fs::path exists = existing_part(path);
  if (!fs::is_directory(exists, error))
    fail_folder(path, "cannot be made: '" + exists.string() + "' is not a folder");
  if (access(exists.c_str(), W_OK | X_OK) != 0) {
    fail_folder(path, "cannot be written: '" + exists.string() + "': " + std::strerror(errno));
  }
  if (!overwrite && fs::exists(path, error) && !fs::is_empty(path, error)) {
    fail_folder(path, "is not empty; name a new one, or add --overwrite to replace the run in it");
  }
}

std::string RunFolder::first_free(const std::string& parent, const std::string& name) {
  std::error_code ignored;
  const fs::path base = fs::path(parent) / name;
  fs::path path = base;
  for (int i = 2; fs::exists(path, ignored); ++i) path = base.string() + "-" + std::to_string(i);
  return path.string();
}

RunFolder RunFolder::create(const std::string& path, bool overwrite) {
  check(path, overwrite);
  std::error_code error;
  fs::create_directories(path, error);
  if (error) fail_folder(path, "cannot be made: " + error.message());
  for (const char* name : kFiles) fs::remove(fs::path(path) / name, error);
  return RunFolder(path, std::ios::out);
}

RunFolder RunFolder::reopen(const std::string& path, long long steps) {
  check(path, true);
  const std::string metrics = (fs::path(path) / "metrics.jsonl").string();
  std::ifstream in(metrics);
  std::ostringstream text;
  text << in.rdbuf();
  std::string kept;
  std::istringstream lines(text.str());
  for (std::string line; std::getline(lines, line);) {
    const Json json = Json::parse(line, nullptr, false);
    const bool done = json.is_object() && json.contains("step") && json["step"].is_number() &&
                      json["step"].get<long long>() <= steps;
    if (done) kept += line + "\n";
  }
  if (kept != text.str()) write_file_atomically(metrics, kept);
  return RunFolder(path, std::ios::app);
}

// access() answers yes to root even where nothing can be written (a read-only mount): so the file is opened.
RunFolder::RunFolder(const std::string& path, std::ios::openmode mode) : path_(path) {
  metrics_.open(file("metrics.jsonl"), mode);
  if (!metrics_) fail_folder(path, std::string("cannot be written: ") + std::strerror(errno));
}

std::string RunFolder::file(const std::string& name) const { return (fs::path(path_) / name).string(); }

void RunFolder::write_json(const std::string& name, const Json& value) const {
  write_file_atomically(file(name), value.dump(2) + "\n");
}

void RunFolder::append_metrics(const Json& line) {
  metrics_ << line.dump() << "\n";
  metrics_.flush();
  if (!metrics_) fail_failure("cannot write '" + file("metrics.jsonl") + "': " + std::strerror(errno));
}

}  // namespace kiln
