#include "data/record_file.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "data/channel_stats.h"
#include "data/md5.h"
#include "data/safetensors.h"
#include "kernels/common/error.h"

namespace kiln {
namespace {

constexpr const char* kFormat = "kiln_records";
constexpr int64_t kLargestSide = 1 << 15;
constexpr const char* kTensors[] = {"train.images", "train.labels", "test.images", "test.labels"};

const SafeTensor* find(const std::vector<SafeTensor>& tensors, const std::string& name) {
  for (const SafeTensor& t : tensors) {
    if (t.name == name) return &t;
  }
  return nullptr;
}

// The tensor of that name, which is there.
const SafeTensor& require(const std::string& path, const SafeTensors& file, const std::string& name,
                          const std::string& dtype, size_t rank) {
  const SafeTensor& t = *find(file.tensors, name);
  if (t.dtype != dtype || t.shape.size() != rank) {
    fail_usage(path + ": tensor '" + name + "' is " + t.dtype + " with " + std::to_string(t.shape.size()) +
               " dimensions, must be " + dtype + " with " + std::to_string(rank));
  }
  return t;
}

const std::string& metadata(const std::string& path, const SafeTensors& file, const std::string& key) {
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end()) fail_usage(path + ": its metadata has no '" + key + "'");
  return found->second;
}

std::vector<std::string> parse_class_names(const std::string& path, const std::string& text) {
  try {
    const auto names = nlohmann::json::parse(text).get<std::vector<std::string>>();
    if (!names.empty()) return names;
  } catch (const nlohmann::json::exception&) {
  }
  fail_usage(path + ": its class_names must be a JSON array of at least one string, not '" +
             text.substr(0, 60) + "'");
}

// Of the four tensors, all of which are there.
std::string digest(const std::vector<SafeTensor>& tensors) {
  Md5 md5;
  for (const char* name : kTensors) md5.update(find(tensors, name)->data);
  return md5.hex();
}

Dataset read_set(const std::string& path, const SafeTensors& file, const std::string& split, int classes) {
  const SafeTensor& images = require(path, file, split + ".images", "U8", 4);
  const SafeTensor& labels = require(path, file, split + ".labels", "I32", 1);
  for (const size_t i : {1, 2, 3}) {
    if (images.shape[i] < 1 || images.shape[i] > kLargestSide) {
      fail_usage(path + ": tensor '" + images.name + "' has the size " + std::to_string(images.shape[i]) +
                 " in dimension " + std::to_string(i) + ", must be 1 to " + std::to_string(kLargestSide));
    }
  }
  if (images.shape[0] != labels.shape[0] || images.shape[0] < 1 || images.shape[0] > INT32_MAX) {
    fail_usage(path + ": " + split + " has " + std::to_string(images.shape[0]) + " images and " +
               std::to_string(labels.shape[0]) + " labels, must be as many of both, at least 1");
  }
  Dataset data;
  data.height = static_cast<int>(images.shape[1]);
  data.width = static_cast<int>(images.shape[2]);
  data.channels = static_cast<int>(images.shape[3]);
  data.classes = classes;
  data.images = images.data;
  data.labels.resize(static_cast<size_t>(labels.shape[0]));
  std::memcpy(data.labels.data(), labels.data.data(), labels.data.size());
  for (size_t i = 0; i < data.labels.size(); ++i) {
    if (data.labels[i] < 0 || data.labels[i] >= classes) {
      fail_usage(path + ": " + labels.name + "[" + std::to_string(i) + "] is " +
                 std::to_string(data.labels[i]) + ", must be 0 to " + std::to_string(classes - 1));
    }
  }
  return data;
}

void put_set(const std::string& split, Dataset&& data, std::vector<SafeTensor>* labels,
             std::vector<SafeTensor>* images) {
  std::vector<unsigned char> label_bytes(data.labels.size() * sizeof(int32_t));
  if (!label_bytes.empty()) std::memcpy(label_bytes.data(), data.labels.data(), label_bytes.size());
  labels->push_back({split + ".labels", "I32", {data.count()}, std::move(label_bytes)});
  images->push_back({split + ".images",
                     "U8",
                     {data.count(), data.height, data.width, data.channels},
                     std::move(data.images)});
}

DataPair interpret(const std::string& path, const SafeTensors& file) {
  const auto format = file.metadata.find("format");
  if (format == file.metadata.end() || format->second != kFormat) {
    fail_usage(path + " is a safetensors file, but no record file: its metadata must have format '" +
               kFormat + "'; `kiln import` writes record files");
  }
  if (file.tensors.size() != std::size(kTensors)) {
    fail_usage(path + ": has " + std::to_string(file.tensors.size()) + " tensors, must have " +
               std::to_string(std::size(kTensors)));
  }
  for (const char* name : kTensors) {
    if (!find(file.tensors, name)) fail_usage(path + ": tensor '" + name + "' is missing");
  }
  const std::string wanted = metadata(path, file, "md5"), got = digest(file.tensors);
  if (got != wanted) {
    fail_usage(path + ": damaged: the MD5 of its tensors is " + got + ", its metadata says " + wanted);
  }
  DataPair data;
  data.class_names = parse_class_names(path, metadata(path, file, "class_names"));
  const int classes = static_cast<int>(data.class_names.size());
  data.train = read_set(path, file, "train", classes);
  data.test = read_set(path, file, "test", classes);
  const auto named = file.metadata.find("name");
  data.train.name = data.test.name = named == file.metadata.end() ? "records" : named->second;
  if (data.train.height != data.test.height || data.train.width != data.test.width ||
      data.train.channels != data.test.channels) {
    fail_usage(path + ": its test images differ in size or channels from its training images");
  }
  set_channel_stats(data);
  return data;
}

}  // namespace

void write_record_file(const std::string& path, DataPair data) {
  SafeTensors file;
  file.metadata = {{"format", kFormat},
                   {"name", data.train.name},
                   {"class_names", nlohmann::json(data.class_names).dump()}};
  // Labels first: so they lie aligned, whatever the size of an image.
  std::vector<SafeTensor> images;
  put_set("train", std::move(data.train), &file.tensors, &images);
  put_set("test", std::move(data.test), &file.tensors, &images);
  for (SafeTensor& t : images) file.tensors.push_back(std::move(t));
  file.metadata["md5"] = digest(file.tensors);
  write_safetensors(path, file);
}

DataPair read_record_file(const std::string& path) { return interpret(path, read_safetensors(path)); }

}  // namespace kiln
