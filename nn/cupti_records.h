// What ran on the GPU and when, from NVIDIA's profiling library (CUPTI activity records; no root needed). The
// library is loaded at run time, when it is first asked for; where it is missing, everything else works.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nn/step_profile.h"

namespace kiln {

struct CuptiRecord {
  TracedNode::Kind kind{};
  std::string name;  // mangled; "[copy]" and "[fill]" for what is no kernel
  uint64_t start_ns = 0, end_ns = 0;
  bool in_graph = false;  // a node of a graph that was launched
};

// Collects records of the whole process. One collection at a time.
class CuptiRecords {
 public:
  ~CuptiRecords();
  // Begins. Returns the reason why it cannot, "" where it can.
  std::string start();
  // Ends; the device must be idle. `records` come in no order, and may be null. Returns the reason why they
  // are not all there, or "".
  std::string stop(std::vector<CuptiRecord>* records);
  // Now, on the clock of the records.
  uint64_t now_ns() const;

 private:
  bool on_ = false;
};

}  // namespace kiln
