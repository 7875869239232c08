#include "nn/ranges.h"

#include <nvtx3/nvToolsExt.h>

namespace kiln {

RangeScope::RangeScope(const std::string& name) : open_(!name.empty()) {
  if (open_) nvtxRangePushA(name.c_str());
}
RangeScope::~RangeScope() {
  if (open_) nvtxRangePop();
}

}  // namespace kiln
