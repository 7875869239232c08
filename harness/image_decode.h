// The decoders behind read_image(). They throw Error with what is wrong, without the file's name.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "harness/image_file.h"

namespace kiln {

constexpr long long kMostImagePixels = 1 << 28;

Image decode_pnm(std::span<const uint8_t> file);          // begins with P5 or P6; 1 or 3 channels
Image decode_png_or_jpeg(std::span<const uint8_t> file);  // 4 channels: RGB and alpha

// "" for a PNG or JPEG file that is whole, else what is wrong. stb_image would decode some of these.
std::string png_damage(std::span<const uint8_t> file);
std::string jpeg_damage(std::span<const uint8_t> file);

}  // namespace kiln
