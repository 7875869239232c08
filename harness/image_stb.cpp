// PNG and JPEG through stb_image (Debian's libstb-dev), where it is found; compiled without warnings, for the
// header is the whole decoder.
#include "harness/image_decode.h"
#include "kernels/common/error.h"

#ifdef KILN_WITH_IMAGES
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_NO_STDIO
#define STBI_MAX_DIMENSIONS 65536
#include <stb/stb_image.h>

#include <memory>

namespace kiln {

Image decode_png_or_jpeg(std::span<const uint8_t> file) {
  constexpr int kChannels = 4;  // asked for, whatever the file has
  const auto fail = [] { fail_usage(std::string("cannot be decoded: ") + stbi_failure_reason()); };
  const int bytes = static_cast<int>(file.size());
  Image image;
  int in_file = 0;
  if (!stbi_info_from_memory(file.data(), bytes, &image.width, &image.height, &in_file)) fail();
  if (1LL * image.width * image.height > kMostImagePixels) fail_usage("has too many pixels");
  const std::unique_ptr<stbi_uc, void (*)(void*)> pixels(
      stbi_load_from_memory(file.data(), bytes, &image.width, &image.height, &in_file, kChannels),
      stbi_image_free);
  if (!pixels) fail();
  image.channels = kChannels;
  image.pixels.assign(pixels.get(),
                      pixels.get() + static_cast<size_t>(image.height) * image.width * kChannels);
  return image;
}

}  // namespace kiln
#else
namespace kiln {

Image decode_png_or_jpeg(std::span<const uint8_t>) {
  fail_usage(
      "is a PNG or JPEG file, and this kiln was built without stb_image; on Debian: apt-get install "
      "libstb-dev, then build again");
}

}  // namespace kiln
#endif
