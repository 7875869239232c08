// A folder of images with a subfolder for each class: which files it holds, and their split into training and
// test.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kiln {

struct LabelledFile {
  std::string path;
  int32_t label;
  bool test;  // only where ImageFolder::split_given
};

struct ImageFolder {
  std::vector<std::string> class_names;  // the subfolders' names, sorted by their bytes
  std::vector<LabelledFile> files;       // by split, class and path
  bool split_given = false;              // the folder has train/ and test/, each with the class subfolders
  std::vector<std::string> notes;        // what was left alone
};

// Looks for image files (by their names' ends) at any depth below each class subfolder; hidden names are left
// out. test/ may be called val/. Throws Error for a folder that is missing or has no class subfolders, a
// class without images, a test class that has no training images.
ImageFolder scan_image_folder(const std::string& folder);

struct Split {
  std::vector<size_t> train, test;  // indices, in a random order
};

// Splits by label: of a class's n images round(n * test_fraction) are for the test, at least 1 and at most
// n - 1; the one image of a class is for training. The same for the same arguments on every machine.
Split stratified_split(const std::vector<int32_t>& labels, double test_fraction, uint64_t seed);

// The split that the files state, each part in a random order.
Split given_split(const std::vector<bool>& is_test, uint64_t seed);

}  // namespace kiln
