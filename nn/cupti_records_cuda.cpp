#include "nn/cupti_records.h"

#ifdef KILN_WITH_CUPTI
#include <cupti.h>
#include <dlfcn.h>

#include <cstdlib>
#include <mutex>
#endif

namespace kiln {

#ifndef KILN_WITH_CUPTI
CuptiRecords::~CuptiRecords() = default;
std::string CuptiRecords::start() { return "this build was made without CUPTI's headers"; }
std::string CuptiRecords::stop(std::vector<CuptiRecord>*) { return ""; }
uint64_t CuptiRecords::now_ns() const { return 0; }
#else
namespace {

// Newest layouts that these headers have; a newer library of the same major version only appends fields.
#if CUPTI_API_VERSION >= 130000
using KernelActivity = CUpti_ActivityKernel10;
using CopyActivity = CUpti_ActivityMemcpy6;
#else
using KernelActivity = CUpti_ActivityKernel9;
using CopyActivity = CUpti_ActivityMemcpy5;
#endif
using FillActivity = CUpti_ActivityMemset4;

constexpr CUpti_ActivityKind kKinds[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY,
                                         CUPTI_ACTIVITY_KIND_MEMSET};
constexpr size_t kBufferBytes = size_t{4} << 20, kBufferAlign = 64;

// 13 for 130001; before CUDA 13 the number counted up, from 18 for CUDA 12.0 on.
constexpr uint32_t major_of(uint32_t version) { return version >= 10000 ? version / 10000 : 12; }

// The library's functions and what its callbacks collect. CUPTI's own thread may call back until the process
// ends: so this is never freed.
struct Cupti {
  std::string missing;  // why it cannot be used
  decltype(&cuptiGetVersion) get_version = nullptr;
  decltype(&cuptiGetResultString) get_result_string = nullptr;
  decltype(&cuptiActivityRegisterCallbacks) register_callbacks = nullptr;
  decltype(&cuptiActivityEnable) enable = nullptr;
  decltype(&cuptiActivityDisable) disable = nullptr;
  decltype(&cuptiActivityFlushAll) flush_all = nullptr;
  decltype(&cuptiActivityGetNextRecord) next_record = nullptr;
  decltype(&cuptiActivityGetNumDroppedRecords) num_dropped = nullptr;
  decltype(&cuptiGetTimestamp) get_timestamp = nullptr;

  std::mutex mutex;  // of what follows
  std::vector<CuptiRecord> records;
  size_t dropped = 0, untimed = 0;
  std::string error;

  Cupti() { missing = load(); }
  static Cupti& get() {
    static Cupti* const cupti = new Cupti;
    return *cupti;
  }

  std::string text(CUptiResult status) const {
    const char* text = nullptr;
    if (get_result_string && get_result_string(status, &text) == CUPTI_SUCCESS && text) return text;
    return "error " + std::to_string(static_cast<int>(status));
  }

 private:
  std::string load();
};

void CUPTIAPI buffer_requested(uint8_t** buffer, size_t* size, size_t* most_records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(kBufferAlign, kBufferBytes));
  *size = *buffer ? kBufferBytes : 0;
  *most_records = 0;  // as many as fit
}

CuptiRecord record_of(const CUpti_Activity* activity) {
  if (activity->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
    const auto* a = reinterpret_cast<const CopyActivity*>(activity);
    return {TracedNode::Kind::kCopy, "[copy]", a->start, a->end, a->graphId != 0 || a->graphNodeId != 0};
  }
  if (activity->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
    const auto* a = reinterpret_cast<const FillActivity*>(activity);
    return {TracedNode::Kind::kFill, "[fill]", a->start, a->end, a->graphId != 0 || a->graphNodeId != 0};
  }
  const auto* a = reinterpret_cast<const KernelActivity*>(activity);
  return {TracedNode::Kind::kKernel, a->name ? a->name : "", a->start, a->end,
          a->graphId != 0 || a->graphNodeId != 0};
}

void CUPTIAPI buffer_completed(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t bytes) {
  Cupti& c = Cupti::get();
  {
    const std::lock_guard<std::mutex> lock(c.mutex);
    CUpti_Activity* activity = nullptr;
    CUptiResult status = bytes > 0 ? CUPTI_SUCCESS : CUPTI_ERROR_MAX_LIMIT_REACHED;
    while (status == CUPTI_SUCCESS) {
      status = c.next_record(buffer, bytes, &activity);
      if (status != CUPTI_SUCCESS) break;
      const CUpti_ActivityKind kind = activity->kind;
      if (kind != CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL && kind != CUPTI_ACTIVITY_KIND_KERNEL &&
          kind != CUPTI_ACTIVITY_KIND_MEMCPY && kind != CUPTI_ACTIVITY_KIND_MEMSET) {
        continue;
      }
      c.records.push_back(record_of(activity));
      const CuptiRecord& record = c.records.back();
      if (record.start_ns == 0 || record.end_ns < record.start_ns) ++c.untimed;
    }
    if (status != CUPTI_ERROR_MAX_LIMIT_REACHED) c.error = "reading records: " + c.text(status);
    size_t dropped = 0;
    if (c.num_dropped(nullptr, 0, &dropped) == CUPTI_SUCCESS) c.dropped += dropped;
  }
  std::free(buffer);
}

std::string Cupti::load() {
  const std::string file = "libcupti.so." + std::to_string(major_of(CUPTI_API_VERSION));
  std::vector<std::string> paths = {file};  // the loader's own search first
  for (const char* folder :
       {KILN_CUPTI_FOLDER, "/usr/local/cuda/lib64", "/usr/local/cuda/extras/CUPTI/lib64"}) {
    if (*folder) paths.push_back(std::string(folder) + "/" + file);
  }
  void* library = nullptr;
  for (const std::string& path : paths) {
    if ((library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL))) break;
  }
  if (!library) {
    return file + " was not found (it comes with the CUDA Toolkit; its folder can be put on LD_LIBRARY_PATH)";
  }
  std::string absent;
  const auto find = [&](auto* function, const char* name) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)> >(dlsym(library, name));
    if (!*function) absent = name;
  };
  find(&get_version, "cuptiGetVersion");
  find(&get_result_string, "cuptiGetResultString");
  find(&register_callbacks, "cuptiActivityRegisterCallbacks");
  find(&enable, "cuptiActivityEnable");
  find(&disable, "cuptiActivityDisable");
  find(&flush_all, "cuptiActivityFlushAll");
  find(&next_record, "cuptiActivityGetNextRecord");
  find(&num_dropped, "cuptiActivityGetNumDroppedRecords");
  find(&get_timestamp, "cuptiGetTimestamp");
  if (!absent.empty()) return file + " lacks " + absent;
  uint32_t version = 0;
  if (get_version(&version) != CUPTI_SUCCESS || major_of(version) != major_of(CUPTI_API_VERSION)) {
    return file + " has API version " + std::to_string(version) + ", this build is for " +
           std::to_string(CUPTI_API_VERSION);
  }
  const CUptiResult status = register_callbacks(buffer_requested, buffer_completed);
  return status == CUPTI_SUCCESS ? "" : "cuptiActivityRegisterCallbacks: " + text(status);
}

}  // namespace

CuptiRecords::~CuptiRecords() {
  if (on_) stop(nullptr);
}

std::string CuptiRecords::start() {
  Cupti& c = Cupti::get();
  if (!c.missing.empty()) return c.missing;
  {
    const std::lock_guard<std::mutex> lock(c.mutex);
    c.records.clear();
    c.dropped = c.untimed = 0;
    c.error.clear();
  }
  on_ = true;
  for (const CUpti_ActivityKind kind : kKinds) {
    const CUptiResult status = c.enable(kind);
    if (status == CUPTI_SUCCESS) continue;
    stop(nullptr);
    return "cuptiActivityEnable: " + c.text(status);
  }
  return "";
}

std::string CuptiRecords::stop(std::vector<CuptiRecord>* records) {
  Cupti& c = Cupti::get();
  on_ = false;
  // Complete buffers first; what is left then is forced out, or it would come with the next collection.
  CUptiResult status = c.flush_all(0);
  const CUptiResult forced = c.flush_all(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
  if (status == CUPTI_SUCCESS) status = forced;
  for (const CUpti_ActivityKind kind : kKinds) c.disable(kind);
  const std::lock_guard<std::mutex> lock(c.mutex);
  if (records) *records = std::move(c.records);
  c.records.clear();
  if (status != CUPTI_SUCCESS) return "cuptiActivityFlushAll: " + c.text(status);
  if (!c.error.empty()) return c.error;
  if (c.dropped > 0) return std::to_string(c.dropped) + " records were lost";
  if (c.untimed > 0) return std::to_string(c.untimed) + " records have no time";
  return "";
}

uint64_t CuptiRecords::now_ns() const {
  uint64_t now = 0;
  Cupti::get().get_timestamp(&now);
  return now;
}
#endif

}  // namespace kiln
