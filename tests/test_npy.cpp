#include "harness/npy.h"

#include <gtest/gtest.h>

#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "kernels/common/error.h"

namespace kiln {
namespace {

class Npy : public ::testing::Test {
 protected:
  void TearDown() override { std::remove(path_.c_str()); }

  // A file of exactly these bytes: version, header text (padded as NumPy does) and data.
  void put(int version, std::string header, const std::string& data) {
    const size_t lead = version == 1 ? 10 : 12;
    header.append(63 - (lead + header.size()) % 64, ' ');
    header += '\n';
    std::string bytes = std::string("\x93NUMPY") + static_cast<char>(version) + '\0';
    for (size_t i = 0; i < lead - 8; ++i) bytes += static_cast<char>(header.size() >> (8 * i) & 255);
    std::ofstream(path_, std::ios::binary) << bytes << header << data;
  }
  std::string error() {
    try {
      read_npy(path_);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  std::string path_ = ::testing::TempDir() + "kiln_test_" + std::to_string(::getpid()) + ".npy";
};

TEST_F(Npy, WhatIsWrittenReadsBack) {
  for (const DType dtype : {DType::kF32, DType::kI32, DType::kU8}) {
    for (const std::vector<int64_t>& shape : {std::vector<int64_t>{}, {5}, {2, 3}, {2, 1, 3, 4}, {0, 3}}) {
      NpyArray array{shape, dtype, {}};
      size_t count = 1;
      for (const int64_t extent : shape) count *= static_cast<size_t>(extent);
      for (size_t i = 0; i < count * size_of(dtype); ++i)
        array.data.push_back(static_cast<unsigned char>(i * 7));
      write_npy(path_, array);
      const NpyArray back = read_npy(path_);
      EXPECT_EQ(back.shape, array.shape);
      EXPECT_EQ(back.dtype, array.dtype);
      EXPECT_EQ(back.data, array.data);
    }
  }
}

TEST_F(Npy, DataStartsAtAMultipleOf64) {
  write_npy(path_, {{3}, DType::kU8, {1, 2, 3}});
  std::ifstream file(path_, std::ios::binary | std::ios::ate);
  EXPECT_EQ((static_cast<long>(file.tellg()) - 3) % 64, 0);
}

TEST_F(Npy, BothVersionsAndAnyKeyOrder) {
  for (const int version : {1, 2}) {
    put(version, "{'shape': (2,), 'fortran_order': False, 'descr': '<i4'}",
        std::string("\1\0\0\0\2\0\0\0", 8));
    const NpyArray array = read_npy(path_);
    EXPECT_EQ(array.dtype, DType::kI32);
    EXPECT_EQ(reinterpret_cast<const int32_t*>(array.data.data())[1], 2);
  }
}

TEST_F(Npy, ErrorsSayWhatIsWrong) {
  EXPECT_NE(error().find("cannot be opened"), std::string::npos) << error();
  std::ofstream(path_) << "PK not an array";
  EXPECT_NE(error().find("not a .npy file"), std::string::npos) << error();
  put(3, "{}", "");
  EXPECT_NE(error().find("version 3"), std::string::npos) << error();
  put(1, "{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", std::string(8, '\0'));
  EXPECT_NE(error().find("'<f8', expected float32"), std::string::npos) << error();
  put(1, "{'descr': '<f4', 'fortran_order': True, 'shape': (1, 1), }", std::string(4, '\0'));
  EXPECT_NE(error().find("Fortran order"), std::string::npos) << error();
  put(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }", std::string(15, '\0'));
  EXPECT_NE(error().find("needs 16 bytes of data, the file has 15"), std::string::npos) << error();
  put(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }", std::string(17, '\0'));
  EXPECT_NE(error().find("the file has 17"), std::string::npos) << error();
  put(1, "{'descr': '<f4', 'fortran_order': False, }", "");
  EXPECT_NE(error().find("has no 'shape'"), std::string::npos) << error();
  put(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", "");
  EXPECT_NE(error().find("malformed"), std::string::npos) << error();
  put(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 9), }", "");
  EXPECT_NE(error().find("too large"), std::string::npos) << error();
  std::ofstream(path_, std::ios::binary) << std::string("\x93NUMPY\1\0\x76", 9);
  EXPECT_NE(error().find("damaged"), std::string::npos) << error();
}

TEST_F(Npy, WritingToAMissingFolderFails) {
  EXPECT_THROW(write_npy("/nonexistent/folder/a.npy", {{1}, DType::kU8, {1}}), Error);
  EXPECT_THROW(write_npy(path_, {{1}, DType::kBF16, {1, 2}}), Error);
}

}  // namespace
}  // namespace kiln
