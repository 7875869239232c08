// Files: what is written is read back, and a damaged file is refused with its path and reason.
#include "data/safetensors.h"
#include "tests/test_nn_support.h"

namespace kiln {
namespace {

using test::expect_error;
using test::temp_path;

void write_raw(const std::string& path, const std::string& header, const std::string& data) {
  std::ofstream out(path, std::ios::binary);
  const uint64_t length = header.size();
  out.write(reinterpret_cast<const char*>(&length), sizeof length);
  out << header << data;
}

TEST(NnSafetensors, RoundTrip) {
  const std::string path = temp_path("a.safetensors");
  SafeTensors file;
  file.metadata = {{"format", "pt"}};
  file.tensors = {f32_tensor("w", {2, 3}, {1, 2, 3, 4, 5, 6}), i64_tensor("n", -5),
                  f32_tensor("empty", {0, 4}, {})};
  write_safetensors(path, file);
  const SafeTensors read = read_safetensors(path);
  EXPECT_EQ(read.metadata, file.metadata);
  ASSERT_EQ(read.tensors.size(), 3u);
  for (const SafeTensor& wanted : file.tensors) {
    const auto got = std::find_if(read.tensors.begin(), read.tensors.end(),
                                  [&](const SafeTensor& t) { return t.name == wanted.name; });
    ASSERT_NE(got, read.tensors.end()) << wanted.name;
    EXPECT_EQ(got->shape, wanted.shape);
    EXPECT_EQ(got->dtype, wanted.dtype);
    EXPECT_EQ(got->data, wanted.data);
  }
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(path).parent_path())) {
    EXPECT_EQ(entry.path().string(), path) << "a temporary file was left";
  }
}

TEST(NnSafetensors, RefusesDamagedFiles) {
  const std::string path = temp_path("bad.safetensors");
  expect_error([&] { read_safetensors(temp_path("none.safetensors")); },
               {"none.safetensors", "cannot be read"});
  std::ofstream(path) << "abc";
  expect_error([&] { read_safetensors(path); }, {path, "not a safetensors file"});
  write_raw(path, "{nonsense", "");
  expect_error([&] { read_safetensors(path); }, {"not a JSON object"});
  write_raw(path, R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "1234");
  expect_error([&] { read_safetensors(path); }, {"truncated", "need 8 bytes", "has 4"});
  write_raw(path, R"({"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", "12345678");
  expect_error([&] { read_safetensors(path); }, {"tensor 'w'", "does not fit its shape"});
  write_raw(path, R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", "12345678");
  expect_error([&] { read_safetensors(path); }, {"tensor 'w' begins at byte 4"});
  write_raw(path, R"({"w":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}})", "1234");
  expect_error([&] { read_safetensors(path); }, {"tensor 'w'", "F99"});
  write_raw(path, R"({"w":{"dtype":"F32","data_offsets":[0,4]}})", "1234");
  expect_error([&] { read_safetensors(path); }, {"damaged", "tensor 'w'"});
  write_raw(path, R"({"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", "1234");
  expect_error([&] { read_safetensors(path); }, {"tensor 'w'", "impossible shape"});
}

TEST(NnSafetensors, AFolderThatIsNotThereIsAnError) {
  expect_error([] { write_safetensors("/nonexistent/folder/w.safetensors", {}); },
               {"/nonexistent/folder", "cannot be written"});
}

}  // namespace
}  // namespace kiln
