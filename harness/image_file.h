// Reading image files and bringing them to one size, for `kiln import` and `kiln predict`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kiln {

struct Image {
  int height = 0, width = 0, channels = 0;
  std::vector<uint8_t> pixels;  // [height, width, channels]
};

// Does the name end as an image file's (.png .jpg .jpeg .ppm .pgm .pnm, any case)?
bool has_image_extension(const std::string& path);

// The pixels of a PNG, JPEG or binary PPM or PGM file (its bytes tell which), with 1 or 3 channels: colour
// becomes grey as (299 R + 587 G + 114 B) / 1000, grey becomes three equal channels, alpha is dropped, 16
// bits become 8, palettes are looked up; a rotation noted in EXIF is not applied. Throws Error naming the
// file and what is wrong (also that this kiln was built without stb_image, which decodes PNG and JPEG):
// truncated and damaged files are found by their end markers and PNG's checksums.
Image read_image(const std::string& path, int channels);

// Resizes with a triangle filter (bilinear), which on the way down is as wide as the scale, so that every
// pixel counts (antialiasing; what PIL.Image.resize(BILINEAR) and torchvision's antialias=True compute). In
// integers: the same bits on every machine, and the image itself at its own size.
Image resize_image(const Image& image, int height, int width);

// The largest square in the middle.
Image crop_center(const Image& image);

}  // namespace kiln
