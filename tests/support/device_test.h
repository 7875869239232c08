// A test that runs on the CPU, and on the GPU where there is one.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "kernels/common/device.h"

namespace kiln {

class DeviceTest : public ::testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override {
    if (GetParam() == DeviceKind::kCuda && !cuda_available()) {
      GTEST_SKIP() << "needs a GPU: " << cuda_unavailable_reason();
    }
  }
  const Device& device() const { return GetParam() == DeviceKind::kCuda ? cuda_device() : cpu_device(); }
};

inline auto all_device_kinds() { return ::testing::Values(DeviceKind::kCpu, DeviceKind::kCuda); }

inline std::string device_kind_name(const ::testing::TestParamInfo<DeviceKind>& info) {
  return info.param == DeviceKind::kCpu ? "cpu" : "cuda";
}

}  // namespace kiln
