#include "kernels/common/impl_choice.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "kernels/common/error.h"
#include "kernels/common/registry.h"

namespace kiln {

bool glob_match(std::string_view pattern, std::string_view text) {
  if (pattern.empty()) return text.empty();
  if (pattern[0] == '*') {
    return glob_match(pattern.substr(1), text) || (!text.empty() && glob_match(pattern, text.substr(1)));
  }
  return !text.empty() && (pattern[0] == '?' || pattern[0] == text[0]) &&
         glob_match(pattern.substr(1), text.substr(1));
}

namespace {

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.emplace_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::string base_name(const std::string& choice) { return choice.substr(0, choice.find(':')); }

bool has_name(const std::vector<std::string>& names, const std::string& choice) {
  return std::find(names.begin(), names.end(), base_name(choice)) != names.end();
}

bool matches(const ImplChoice::Assignment& a, std::string_view op, std::string_view pass) {
  return glob_match(a.op_glob, op) && glob_match(a.pass_glob, pass);
}

}  // namespace

bool ImplChoice::Assignment::is_glob() const {
  return (op_glob + pass_glob).find_first_of("*?") != std::string::npos;
}

std::vector<std::string> impl_names(std::string_view op, std::string_view pass, DeviceKind device) {
  std::vector<std::string> names;
  for (const PassInfo& info : all_passes()) {
    if (info.op != op || info.pass != pass) continue;
    for (const ImplInfo& impl : info.impls(device)) names.push_back(impl.name);
  }
  return names;
}

ImplChoice::ImplChoice(std::string_view text) : text_(text) {
  if (text.empty()) return;
  for (const std::string& part : split(text, ',')) {
    const size_t equals = part.find('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == part.size()) {
      fail_usage("--impl '" + part +
                 "': expected <op>.<pass>=<implementation>, for example conv2d.fwd=naive");
    }
    Assignment a;
    const std::string left = part.substr(0, equals);
    const size_t dot = left.find('.');
    a.op_glob = left.substr(0, dot);
    a.pass_glob = dot == std::string::npos ? "*" : left.substr(dot + 1);
    a.alternatives = split(part.substr(equals + 1), '|');

    std::vector<std::string> ids, names;
    bool matched = false;
    for (const PassInfo& info : all_passes()) {
      ids.push_back(info.id());
      if (!matches(a, info.op, info.pass)) continue;
      matched = true;
      for (const DeviceKind kind : {DeviceKind::kCuda, DeviceKind::kCpu}) {
        for (const ImplInfo& impl : info.impls(kind)) {
          if (std::find(names.begin(), names.end(), impl.name) == names.end()) names.push_back(impl.name);
        }
      }
    }
    if (!matched) fail_usage("--impl: " + unknown_name_message("op.pass", left, ids));
    for (const std::string& alternative : a.alternatives) {
      if (!has_name(names, alternative)) {
        fail_usage("--impl " + left + ": " +
                   unknown_name_message("implementation", base_name(alternative), names));
      }
    }
    assignments_.push_back(std::move(a));
  }
}

ImplChoice::Found ImplChoice::find(std::string_view op, std::string_view pass, DeviceKind device) const {
  const std::vector<std::string> names = impl_names(op, pass, device);
  for (auto a = assignments_.rbegin(); a != assignments_.rend(); ++a) {
    if (!matches(*a, op, pass)) continue;
    Found found{.alternatives = {}, .from_glob = a->is_glob()};
    for (const std::string& alternative : a->alternatives) {
      if (has_name(names, alternative)) {
        found.alternatives.push_back(alternative);
      } else if (!a->is_glob()) {
        fail_usage("--impl " + std::string(op) + "." + std::string(pass) + ": " +
                   unknown_name_message("implementation", base_name(alternative), names));
      }
    }
    if (!found.alternatives.empty()) return found;
  }
  return {};
}

std::vector<std::string> ImplChoice::alternatives(std::string_view op, std::string_view pass,
                                                  DeviceKind device) const {
  return find(op, pass, device).alternatives;
}

ImplChoice::Wish ImplChoice::wish(std::string_view op, std::string_view pass, DeviceKind device) const {
  const Found found = find(op, pass, device);
  if (found.alternatives.size() > 1) {
    fail_usage("--impl " + std::string(op) + "." + std::string(pass) +
               ": this command takes one implementation, got " + std::to_string(found.alternatives.size()) +
               " alternatives");
  }
  return found.alternatives.empty() ? Wish{} : Wish{found.alternatives.front(), found.from_glob};
}

std::vector<std::string> ImplChoice::skipped(DeviceKind device) const {
  std::vector<std::string> list;
  for (const PassInfo& info : all_passes()) {
    bool wanted = false;
    for (const Assignment& a : assignments_) wanted = wanted || matches(a, info.op, info.pass);
    if (wanted && alternatives(info.op, info.pass, device).empty()) list.push_back(info.id());
  }
  return list;
}

std::string tuning_key(std::string_view op, std::string_view pass, const std::string& problem, DType dtype) {
  return std::string(op) + "." + std::string(pass) + "/" + problem + "/" + name_of(dtype);
}

std::string tuning_signature(const std::vector<std::string>& choices) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  const auto mix = [&hash](char byte) { hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3u; };
  for (const std::string& choice : choices) {
    for (const char byte : choice) mix(byte);
    mix(',');
  }
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

void require_no_config(std::string_view config) {
  if (!config.empty()) fail_usage("this implementation takes no config, got ':" + std::string(config) + "'");
}

void require_aligned_args(const void* args, size_t bytes) {
  for (size_t i = 0; i < bytes / sizeof(void*); ++i) {
    const void* pointer;
    std::memcpy(&pointer, static_cast<const unsigned char*>(args) + i * sizeof(void*), sizeof pointer);
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) {
      fail_usage("argument " + std::to_string(i) + " is not 16-byte aligned");
    }
  }
}

namespace detail {

void fail_no_impl(const char* op, const char* pass, const std::string& problem, const Device& device) {
  fail_usage(std::string(op) + "." + pass + " " + problem + ": no implementation on " + device.name +
             " supports this problem");
}

void fail_unsupported(const char* op, const char* pass, const char* impl, const std::string& problem,
                      const char* rule) {
  fail_usage(std::string(op) + "." + pass + " " + problem + ": implementation '" + impl + "': " + rule);
}

void fail_in_plan(const char* op, const char* pass, const char* impl, const std::string& problem,
                  const Error& error) {
  const std::string message = error.what();
  if (message.find(problem) != std::string::npos) throw error;
  throw Error(std::string(op) + "." + pass + " " + problem + ": implementation '" + impl + "': " + message,
              error.kind());
}

}  // namespace detail
}  // namespace kiln
