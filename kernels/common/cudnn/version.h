// Which cuDNN is loaded. Needs no cuDNN header; defined where KILN_WITH_CUDNN is.
#pragma once

#include <string>

namespace kiln {

// "9.19.0": of the library that runs, not of the headers.
std::string cudnn_version();

}  // namespace kiln
