#include "harness/npy.h"

#include <bit>
#include <charconv>
#include <climits>
#include <cstring>
#include <fstream>

#include "kernels/common/error.h"

namespace kiln {
namespace {

static_assert(std::endian::native == std::endian::little, "arrays are written as they lie in memory");

constexpr char kMagic[] = "\x93NUMPY";
constexpr size_t kMagicBytes = 6;
constexpr size_t kAlignment = 64;

const char* descr_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "<f4";
    case DType::kI32:
      return "<i4";
    case DType::kU8:
      return "|u1";
    default:
      fail_usage(std::string(".npy files hold fp32, int32 or uint8, not ") + name_of(dtype));
  }
}

// The text behind "'key':" in the header's Python dictionary, from its first character that is no space.
std::string_view value_of(std::string_view header, std::string_view key, const std::string& path) {
  const std::string quoted = "'" + std::string(key) + "':";
  const size_t at = header.find(quoted);
  if (at == std::string_view::npos)
    fail_usage(path + ": the .npy header has no " + quoted.substr(0, quoted.size() - 1));
  std::string_view rest = header.substr(at + quoted.size());
  while (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
  return rest;
}

std::vector<int64_t> parse_shape(std::string_view text, const std::string& path) {
  const auto malformed = [&]() { fail_usage(path + ": the .npy header's shape is malformed"); };
  std::vector<int64_t> shape;
  if (text.empty() || text.front() != '(') malformed();
  text.remove_prefix(1);
  for (;;) {
    while (!text.empty() && (text.front() == ' ' || text.front() == ',')) text.remove_prefix(1);
    if (text.empty()) malformed();
    if (text.front() == ')') return shape;
    int64_t extent = 0;
    const auto result = std::from_chars(text.data(), text.data() + text.size(), extent);
    if (result.ec != std::errc() || extent < 0) malformed();
    shape.push_back(extent);
    text.remove_prefix(static_cast<size_t>(result.ptr - text.data()));
  }
}

DType parse_descr(std::string_view text, const std::string& path) {
  for (const DType dtype : {DType::kF32, DType::kI32, DType::kU8}) {
    const std::string quoted = std::string("'") + descr_of(dtype) + "'";
    if (text.substr(0, quoted.size()) == quoted) return dtype;
  }
  if (text.substr(0, 5) == "'<u1'") return DType::kU8;
  const std::string got(text.substr(0, text.find(',')));
  fail_usage(path + ": elements are " + got +
             ", expected float32 ('<f4'), int32 ('<i4') or uint8 ('|u1'); in NumPy: a.astype(np.float32)");
}

size_t bytes_of(const std::vector<int64_t>& shape, DType dtype, const std::string& path) {
  size_t bytes = size_of(dtype);
  for (const int64_t extent : shape) {
    if (extent != 0 && bytes > static_cast<size_t>(LLONG_MAX) / static_cast<size_t>(extent)) {
      fail_usage(path + ": shape " + shape_text(shape) + " is too large");
    }
    bytes *= static_cast<size_t>(extent);
  }
  return bytes;
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

NpyArray read_npy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail_usage(path + ": cannot be opened: " + std::strerror(errno));
  unsigned char lead[12] = {};
  file.read(reinterpret_cast<char*>(lead), 8);
  if (!file || std::memcmp(lead, kMagic, kMagicBytes) != 0) fail_usage(path + ": not a .npy file");
  const int version = lead[6];
  if (version != 1 && version != 2)
    fail_usage(path + ": .npy version " + std::to_string(version) + ", expected 1 or 2");
  const int length_bytes = version == 1 ? 2 : 4;
  file.read(reinterpret_cast<char*>(lead + 8), length_bytes);
  uint32_t header_bytes = 0;
  for (int i = length_bytes - 1; i >= 0; --i) header_bytes = header_bytes << 8 | lead[8 + i];
  if (!file || header_bytes > (1u << 20)) fail_usage(path + ": the .npy header is damaged");
  std::string header(header_bytes, ' ');
  file.read(header.data(), header_bytes);
  if (!file) fail_usage(path + ": the .npy header is cut off");

  NpyArray array;
  array.dtype = parse_descr(value_of(header, "descr", path), path);
  array.shape = parse_shape(value_of(header, "shape", path), path);
  const std::string_view order = value_of(header, "fortran_order", path);
  if (order.substr(0, 5) != "False") {
    fail_usage(path + ": the array is in Fortran order; in NumPy: np.ascontiguousarray(a)");
  }
  const size_t bytes = bytes_of(array.shape, array.dtype, path);
  const std::streamoff begin = file.tellg();
  file.seekg(0, std::ios::end);
  const auto present = static_cast<size_t>(file.tellg() - begin);
  if (present != bytes) {
    fail_usage(path + ": shape " + shape_text(array.shape) + " needs " + std::to_string(bytes) +
               " bytes of data, the file has " + std::to_string(present));
  }
  file.seekg(begin);
  array.data.resize(bytes);
  file.read(reinterpret_cast<char*>(array.data.data()), static_cast<std::streamsize>(bytes));
  if (!file) fail_failure(path + ": cannot be read");
  return array;
}

void write_npy(const std::string& path, const NpyArray& array) {
  std::string header = std::string("{'descr': '") + descr_of(array.dtype) +
                       "', 'fortran_order': False, 'shape': " + shape_text(array.shape) + ", }";
  const size_t lead = kMagicBytes + 4;
  header.append(kAlignment - 1 - (lead + header.size()) % kAlignment, ' ');
  header += '\n';
  std::ofstream file(path, std::ios::binary);
  if (!file) fail_failure(path + ": cannot be written: " + std::strerror(errno));
  const unsigned char version_and_length[] = {1, 0, static_cast<unsigned char>(header.size() & 255),
                                              static_cast<unsigned char>(header.size() >> 8)};
  file.write(kMagic, kMagicBytes);
  file.write(reinterpret_cast<const char*>(version_and_length), 4);
  file << header;
  file.write(reinterpret_cast<const char*>(array.data.data()),
             static_cast<std::streamsize>(array.data.size()));
  file.close();
  if (!file) fail_failure(path + ": writing failed; is the disk full?");
}

}  // namespace kiln
