#include "harness/image_file.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "harness/image_decode.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr std::uintmax_t kLargestFile = std::uintmax_t{1} << 30;

std::vector<uint8_t> read_bytes(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) fail_usage("is a folder");
  const std::uintmax_t bytes = std::filesystem::file_size(path, error);
  if (error) fail_usage("cannot be read: " + error.message());
  if (bytes > kLargestFile) fail_usage("is larger than 1 GiB");
  std::ifstream in(path, std::ios::binary);
  if (!in) fail_usage(std::string("cannot be read: ") + std::strerror(errno));
  std::vector<uint8_t> content(bytes);
  in.read(reinterpret_cast<char*>(content.data()), static_cast<std::streamsize>(bytes));
  if (static_cast<std::uintmax_t>(in.gcount()) != bytes) fail_usage("cannot be read to its end");
  return content;
}

Image decode(std::span<const uint8_t> file) {
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  const auto starts_with = [&](std::string_view magic) { return text.substr(0, magic.size()) == magic; };
  if (file.empty()) fail_usage("is empty");
  const bool png = starts_with("\x89PNG\r\n\x1a\n"), jpeg = starts_with("\xff\xd8\xff");
  if (png || jpeg) {
    const std::string damage = png ? png_damage(file) : jpeg_damage(file);
    if (!damage.empty()) fail_usage(damage);
    return decode_png_or_jpeg(file);
  }
  if (starts_with("P5") || starts_with("P6")) return decode_pnm(file);
  if (starts_with("P2") || starts_with("P3")) fail_usage("is an ASCII PPM or PGM; the binary kinds are read");
  const char* kind = starts_with("GIF8")                                  ? "a GIF image"
                     : starts_with("BM")                                  ? "a BMP image"
                     : starts_with("RIFF") && text.substr(8, 4) == "WEBP" ? "a WebP image"
                     : starts_with("II*") || starts_with("MM")            ? "a TIFF image"
                     : starts_with("<")                                   ? "text"
                                                                          : "of an unknown kind";
  fail_usage(std::string("is ") + kind + "; PNG, JPEG, PPM and PGM are read");
}

uint8_t grey(const uint8_t* rgb) {
  return static_cast<uint8_t>((299 * rgb[0] + 587 * rgb[1] + 114 * rgb[2] + 500) / 1000);
}

// 1 or 3 channels from 1, 3 or 4.
Image with_channels(Image image, int channels) {
  if (image.channels == channels) return image;
  const size_t pixels = static_cast<size_t>(image.height) * image.width, from = image.channels;
  Image result{image.height, image.width, channels, std::vector<uint8_t>(pixels * channels)};
  for (size_t i = 0; i < pixels; ++i) {
    const uint8_t* in = image.pixels.data() + i * from;
    uint8_t* out = result.pixels.data() + i * channels;
    if (channels == 1) {
      *out = from >= 3 ? grey(in) : *in;
    } else {
      for (int c = 0; c < 3; ++c) out[c] = from >= 3 ? in[c] : *in;
    }
  }
  return result;
}

}  // namespace

bool has_image_extension(const std::string& path) {
  std::string end = std::filesystem::path(path).extension().string();
  std::transform(end.begin(), end.end(), end.begin(), [](unsigned char c) { return std::tolower(c); });
  for (const char* known : {".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".pnm"}) {
    if (end == known) return true;
  }
  return false;
}

Image read_image(const std::string& path, int channels) {
  if (channels != 1 && channels != 3) {
    fail_usage("images are read with 1 or 3 channels, not " + std::to_string(channels));
  }
  try {
    return with_channels(decode(read_bytes(path)), channels);
  } catch (const Error& error) {
    throw Error(path + " " + error.what(), error.kind());
  }
}

}  // namespace kiln
