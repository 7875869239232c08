// Binary PPM and PGM (Netpbm's formats P6 and P5), and is a PNG or JPEG file whole? (PNG: ISO/IEC 15948,
// chunks and their CRC; JPEG: ITU-T T.81, annex B, markers.)
#include <array>
#include <cctype>
#include <string>

#include "harness/image_decode.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr const char* kTruncated = "is truncated";

// The decimal numbers of a PNM header; comments run from # to the end of the line.
class PnmHeader {
 public:
  explicit PnmHeader(std::span<const uint8_t> file) : file_(file) {}
  int number(const char* what, int largest) {
    skip_space();
    long long value = 0;
    size_t digits = 0;
    for (; at_ < file_.size() && std::isdigit(file_[at_]); ++at_, ++digits) {
      value = value * 10 + (file_[at_] - '0');
      if (value > largest) fail_usage(std::string("has an impossible ") + what);
    }
    if (digits == 0 || value < 1) fail_usage(std::string("has a damaged header: no ") + what);
    return static_cast<int>(value);
  }
  // The pixels begin behind one byte of white space.
  std::span<const uint8_t> pixels() const {
    if (at_ >= file_.size() || !std::isspace(file_[at_])) fail_usage("has a damaged header");
    return file_.subspan(at_ + 1);
  }

 private:
  void skip_space() {
    for (; at_ < file_.size(); ++at_) {
      if (file_[at_] == '#') {
        while (at_ < file_.size() && file_[at_] != '\n') ++at_;
      } else if (!std::isspace(file_[at_])) {
        return;
      }
    }
  }

  std::span<const uint8_t> file_;
  size_t at_ = 2;  // behind the magic number
};

uint32_t big_endian(std::span<const uint8_t> file, size_t at, int bytes) {
  uint32_t value = 0;
  for (int i = 0; i < bytes; ++i) value = value << 8 | file[at + static_cast<size_t>(i)];
  return value;
}

constexpr std::array<uint32_t, 256> crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = value & 1 ? 0xedb88320u ^ value >> 1 : value >> 1;
    table[byte] = value;
  }
  return table;
}

uint32_t crc32(std::span<const uint8_t> bytes) {
  static constexpr std::array<uint32_t, 256> kTable = crc_table();
  uint32_t crc = ~0u;
  for (const uint8_t byte : bytes) crc = kTable[(crc ^ byte) & 0xff] ^ crc >> 8;
  return ~crc;
}

}  // namespace

Image decode_pnm(std::span<const uint8_t> file) {
  constexpr int kLargestSide = 1 << 16;
  Image image;
  image.channels = file[1] == '6' ? 3 : 1;
  PnmHeader header(file);
  image.width = header.number("width", kLargestSide);
  image.height = header.number("height", kLargestSide);
  const int largest = header.number("largest value", 65535);
  if (1LL * image.width * image.height > kMostImagePixels) fail_usage("has too many pixels");
  const std::span<const uint8_t> samples = header.pixels();
  const size_t count = static_cast<size_t>(image.width) * image.height * image.channels;
  const size_t sample_bytes = largest > 255 ? 2 : 1;
  if (samples.size() < count * sample_bytes) fail_usage(kTruncated);
  image.pixels.resize(count);
  for (size_t i = 0; i < count; ++i) {
    const uint32_t value = big_endian(samples, i * sample_bytes, static_cast<int>(sample_bytes));
    if (value > static_cast<uint32_t>(largest)) fail_usage("is damaged: a value is over its largest one");
    image.pixels[i] = static_cast<uint8_t>((value * 255 + static_cast<uint32_t>(largest) / 2) / largest);
  }
  return image;
}

std::string png_damage(std::span<const uint8_t> file) {
  constexpr size_t kSignature = 8, kFrame = 12;  // length, type and CRC of a chunk
  for (size_t at = kSignature; at + kFrame <= file.size();) {
    const size_t length = big_endian(file, at, 4);
    if (length > file.size() - at - kFrame) return kTruncated;
    const std::string type(file.begin() + at + 4, file.begin() + at + 8);
    if (crc32(file.subspan(at + 4, length + 4)) != big_endian(file, at + 8 + length, 4)) {
      return "is damaged: a chunk's checksum is wrong";
    }
    if (type == "IEND") return "";
    at += kFrame + length;
  }
  return kTruncated;
}

std::string jpeg_damage(std::span<const uint8_t> file) {
  constexpr uint8_t kEnd = 0xd9, kScan = 0xda;
  size_t at = 2;
  while (at + 4 <= file.size() && file[at + 1] != kScan) {
    if (file[at] != 0xff) return "is damaged: no marker where one must be";
    const bool alone = file[at + 1] == 0xff || (file[at + 1] >= 0xd0 && file[at + 1] <= 0xd8);
    at += file[at + 1] == 0xff ? 1 : alone ? 2 : 2 + big_endian(file, at + 2, 2);
  }
  // In a scan 0xff is followed by 0 or by a marker.
  for (; at + 2 <= file.size(); ++at) {
    if (file[at] == 0xff && file[at + 1] == kEnd) return "";
  }
  return kTruncated;
}

}  // namespace kiln
