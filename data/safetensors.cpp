#include "data/safetensors.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/common/error.h"

namespace kiln {
namespace {

using Json = nlohmann::ordered_json;
static_assert(std::endian::native == std::endian::little, "files are little-endian and copied as bytes");

constexpr uint64_t kLongestHeader = 100'000'000;  // the format's limit

// Bytes of an element; 0: unknown.
size_t dtype_bytes(const std::string& dtype) {
  static const std::map<std::string, size_t> bytes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
      {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"F64", 8},     {"I64", 8}, {"U64", 8}};
  const auto found = bytes.find(dtype);
  return found == bytes.end() ? 0 : found->second;
}

std::string header_text(const SafeTensors& file) {
  Json header = Json::object();
  if (!file.metadata.empty()) header["__metadata__"] = file.metadata;
  size_t offset = 0;
  for (const SafeTensor& t : file.tensors) {
    header[t.name] = {
        {"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {offset, offset + t.data.size()}}};
    offset += t.data.size();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // tensors begin aligned
  return text;
}

// An open file descriptor.
class File {
 public:
  File(const std::string& path, int flags) : path_(path), fd_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {
    if (fd_ < 0) fail("cannot be written");
  }
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void write(const void* data, size_t bytes) {
    const char* at = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t done = ::write(fd_, at, bytes);
      if (done < 0 && errno == EINTR) continue;
      if (done <= 0) fail("cannot be written");
      at += done;
      bytes -= static_cast<size_t>(done);
    }
  }
  void flush_to_disk() {
    if (::fsync(fd_) != 0) fail("cannot be flushed");
  }
  [[noreturn]] void fail(const char* what) const {
    fail_failure(path_ + ": " + what + ": " + std::strerror(errno));
  }

 private:
  std::string path_;
  int fd_;
};

// One entry of the header, with its range in the data.
struct Entry {
  SafeTensor tensor;
  uint64_t begin = 0, end = 0;
};

Entry parse_entry(const std::string& path, const std::string& name, const Json& json) {
  Entry entry;
  entry.tensor.name = name;
  try {
    entry.tensor.dtype = json.at("dtype").get<std::string>();
    entry.tensor.shape = json.at("shape").get<std::vector<int64_t>>();
    const auto offsets = json.at("data_offsets").get<std::vector<uint64_t>>();
    if (offsets.size() != 2)
      fail_usage(path + ": tensor '" + name + "' has data_offsets " + json.at("data_offsets").dump());
    entry.begin = offsets[0];
    entry.end = offsets[1];
  } catch (const nlohmann::json::exception&) {
    fail_usage(path + ": damaged: tensor '" + name + "' has the entry " + json.dump());
  }
  const size_t size = dtype_bytes(entry.tensor.dtype);
  if (size == 0)
    fail_usage(path + ": tensor '" + name + "' has the unknown dtype '" + entry.tensor.dtype + "'");
  unsigned __int128 bytes = size;
  for (int64_t d : entry.tensor.shape) {
    if (d < 0 || (bytes *= static_cast<uint64_t>(d)) > UINT64_MAX)
      fail_usage(path + ": tensor '" + name + "' has an impossible shape");
  }
  if (entry.begin > entry.end || bytes != entry.end - entry.begin) {
    fail_usage(path + ": damaged: tensor '" + name + "' lies at bytes " + std::to_string(entry.begin) +
               " to " + std::to_string(entry.end) + ", which does not fit its shape");
  }
  return entry;
}

}  // namespace

SafeTensor f32_tensor(const std::string& name, std::vector<int64_t> shape, const std::vector<float>& values) {
  SafeTensor tensor{name, "F32", std::move(shape), std::vector<unsigned char>(values.size() * sizeof(float))};
  if (!values.empty()) std::memcpy(tensor.data.data(), values.data(), tensor.data.size());
  return tensor;
}

SafeTensor i64_tensor(const std::string& name, int64_t value) {
  SafeTensor tensor{name, "I64", {}, std::vector<unsigned char>(sizeof value)};
  std::memcpy(tensor.data.data(), &value, sizeof value);
  return tensor;
}

void write_safetensors(const std::string& path, const SafeTensors& file) {
  const std::string header = header_text(file);
  const std::string temporary = path + ".tmp" + std::to_string(::getpid());
  try {
    File out(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    const uint64_t length = header.size();
    out.write(&length, sizeof length);
    out.write(header.data(), header.size());
    for (const SafeTensor& t : file.tensors) out.write(t.data.data(), t.data.size());
    out.flush_to_disk();
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw;
  }
  std::error_code error;
  std::filesystem::rename(temporary, path, error);
  if (error) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    fail_failure(path + ": cannot be written: " + error.message());
  }
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  File(folder.empty() ? "." : folder.string(), O_RDONLY | O_DIRECTORY).flush_to_disk();  // the rename itself
}

SafeTensors read_safetensors(const std::string& path) {
  std::error_code error;
  const uint64_t size = std::filesystem::file_size(path, error);
  if (error) fail_usage(path + ": cannot be read: " + error.message());
  std::ifstream in(path, std::ios::binary);
  uint64_t length = 0;
  if (!in.read(reinterpret_cast<char*>(&length), sizeof length)) {
    fail_usage(path + ": not a safetensors file: " + std::to_string(size) + " bytes");
  }
  if (length > kLongestHeader || length > size - sizeof length) {
    fail_usage(path + ": not a safetensors file, or truncated: its header would have " +
               std::to_string(length) + " bytes, the file has " + std::to_string(size));
  }
  std::string text(length, '\0');
  in.read(text.data(), static_cast<std::streamsize>(length));
  const Json header = Json::parse(text, nullptr, false);
  if (!header.is_object()) fail_usage(path + ": damaged: its header is not a JSON object");

  SafeTensors file;
  std::vector<Entry> entries;
  for (const auto& [name, json] : header.items()) {
    if (name != "__metadata__") {
      entries.push_back(parse_entry(path, name, json));
      continue;
    }
    if (!json.is_object()) fail_usage(path + ": damaged: its __metadata__ is not an object");
    for (const auto& [key, value] : json.items()) {
      if (value.is_string()) file.metadata[key] = value.get<std::string>();
    }
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t at = 0;
  for (Entry& entry : entries) {
    if (entry.begin != at) {
      fail_usage(path + ": damaged: tensor '" + entry.tensor.name + "' begins at byte " +
                 std::to_string(entry.begin) + " of the data, but the one before it ends at " +
                 std::to_string(at));
    }
    at = entry.end;
  }
  const uint64_t data_bytes = size - sizeof length - length;
  if (at != data_bytes) {
    fail_usage(path + ": truncated or damaged: its tensors need " + std::to_string(at) +
               " bytes of data, it has " + std::to_string(data_bytes));
  }
  for (Entry& entry : entries) {
    entry.tensor.data.resize(entry.end - entry.begin);
    in.read(reinterpret_cast<char*>(entry.tensor.data.data()),
            static_cast<std::streamsize>(entry.tensor.data.size()));
    if (!in) fail_usage(path + ": cannot be read to its end");
    file.tensors.push_back(std::move(entry.tensor));
  }
  return file;
}

}  // namespace kiln
