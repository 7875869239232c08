#include "data/dataset.h"

namespace kiln {

DataPair load_data(const std::string& data) {
  return data.empty() ? make_builtin_data() : load_cifar10(data);
}

}  // namespace kiln
