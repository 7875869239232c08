// Labelled uint8 images in host memory, and where they come from: CIFAR's binary files, a record file that
// `kiln import` wrote, or the built-in set.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kiln {

// Images are stored NHWC, whatever the file's order.
struct Dataset {
  std::string name;  // "builtin", "cifar10", "cifar100", or the record file's
  int height = 0, width = 0, channels = 0, classes = 0;
  std::vector<uint8_t> images;  // [count, height, width, channels]
  std::vector<int32_t> labels;  // [count], each in [0, classes)
  long long count() const { return static_cast<long long>(labels.size()); }
};

struct DataPair {
  Dataset train, test;
  std::vector<std::string> class_names;
  std::vector<float> mean, std;  // per channel, of the training pixels / 255
  std::vector<std::string>
      notes;  // lines worth printing, for example "data_batch_1.bin differs from the official archive"
};

// The built-in procedural 10-class 32x32x3 set (needs no file): a linear classifier stays below 60 %,
// small_cnn passes 95 %. The same bits for the same arguments on every machine.
DataPair make_builtin_data(long long train_count = 10000, long long test_count = 2000, uint64_t seed = 0);

// The six CIFAR-10 binary files (data_batch_1..5.bin, test_batch.bin) in `folder` or its
// cifar-10-batches-bin. Throws Error for missing, truncated or foreign files and label bytes over 9; files
// whose MD5 is not the official one are read, with a note.
DataPair load_cifar10(const std::string& folder);

// The two CIFAR-100 binary files (train.bin, test.bin) in `folder` or its cifar-100-binary, with the 100 fine
// labels; class names from fine_label_names.txt, where it is there. Throws Error as load_cifar10 does.
DataPair load_cifar100(const std::string& folder);

// `data`: "" for the built-in set; else a folder of CIFAR-10's or CIFAR-100's binary files, or a record file
// (data/record_file.h). "cifar10" and "cifar100", where nothing of that name is here, mean the folder that
// scripts/fetch filled. Throws Error that says what was found and what is needed.
DataPair load_data(const std::string& data);

}  // namespace kiln
