// Record files: a data set in one file that any language reads, for it is a safetensors file
// (data/safetensors.h).
//
//   train.images  U8   [count, height, width, channels]      test.images  of the same height, width, channels
//   train.labels  I32  [count], each in [0, classes)         test.labels
//   metadata      format       "kiln_records"
//                 name         of the data set
//                 class_names  a JSON array of strings, one a class
//                 md5          of the bytes of train.images, train.labels, test.images, test.labels, in this
//                 order
#pragma once

#include <string>

#include "data/dataset.h"

namespace kiln {

// Writes under a temporary name, then renames. mean, std and notes are not written. Throws Error for a set
// that read_record_file would refuse.
void write_record_file(const std::string& path, DataPair data);

// Throws Error naming the file and the rule for one that is truncated, damaged (MD5), or breaks a rule above.
DataPair read_record_file(const std::string& path);

}  // namespace kiln
