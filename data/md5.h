// MD5 (RFC 1321), to tell the official data files from others. Not for security: collisions are easy to make.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace kiln {

// The digest as 32 lower-case hexadecimal digits.
std::string md5_hex(std::span<const uint8_t> message);

}  // namespace kiln
