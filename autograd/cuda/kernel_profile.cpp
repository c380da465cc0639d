#include "autograd/cuda/kernel_profile.h"

#include <algorithm>
#include <cstdlib>
#include <cxxabi.h>
#include <dlfcn.h>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>

#include "autograd/check.h"

#if defined(WEFT_CUDA) && __has_include(<cupti.h>)
#include <cuda_runtime_api.h>
#include <cupti.h>
#define WEFT_CUPTI 1
#endif

namespace weft {

std::string readable_kernel_name(const std::string& mangled) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> demangled(
      abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status), std::free);
  if (status != 0) return mangled;
  std::string name = demangled.get();
  for (const std::string_view scope : {"(anonymous namespace)::", "weft::", "std::"}) {
    for (std::size_t at = 0; (at = name.find(scope, at)) != std::string::npos;) name.erase(at, scope.size());
  }
  int depth = 0;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < name.size(); ++i) {
    const char c = name[i];
    if (c == '<') ++depth;
    if (c == '>') --depth;
    if (depth > 0) continue;
    if (c == ' ') begin = i + 1;  // what came before was the return type
    if (c == '(') return name.substr(begin, i - begin);
  }
  return name.substr(begin);
}

#ifdef WEFT_CUPTI

namespace {

constexpr std::size_t kBufferBytes = std::size_t{4} << 20;

#if CUDART_VERSION >= 13000
using KernelRecord = CUpti_ActivityKernel10;
#else
using KernelRecord = CUpti_ActivityKernel9;
#endif
using MemcpyRecord = CUpti_ActivityMemcpy6;
using MemsetRecord = CUpti_ActivityMemset4;
constexpr CUpti_ActivityKind kKinds[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY,
                                         CUPTI_ACTIVITY_KIND_MEMSET};

// The functions of the library, which stays open: it must not go while the driver may call back.
struct Cupti {
  decltype(&cuptiActivityRegisterCallbacks) register_callbacks = nullptr;
  decltype(&cuptiActivityEnable) enable = nullptr;
  decltype(&cuptiActivityDisable) disable = nullptr;
  decltype(&cuptiActivityFlushAll) flush_all = nullptr;
  decltype(&cuptiActivityGetNextRecord) next_record = nullptr;
  decltype(&cuptiGetResultString) result_string = nullptr;
  std::string missing;

  Cupti() {
    const std::string name = fmt::format("libcupti.so.{}", CUDART_VERSION / 1000);
    void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    // Beside the runtime that this process uses, where the loader does not look.
    Dl_info runtime{};
    if (library == nullptr && dladdr(reinterpret_cast<void*>(&cudaGetDeviceCount), &runtime) != 0) {
      std::string folder = runtime.dli_fname;
      folder.resize(folder.find_last_of('/') + 1);
      for (const char* place : {"", "../extras/CUPTI/lib64/"}) {
        if (library == nullptr) library = dlopen((folder + place + name).c_str(), RTLD_NOW | RTLD_LOCAL);
      }
    }
    if (library == nullptr) {
      missing =
          name + " is not there; it comes with the CUDA toolkit (cuda-cupti), and LD_LIBRARY_PATH may name its folder";
      return;
    }
    const auto find = [&](auto& function, const char* symbol) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
      if (function == nullptr) missing = fmt::format("{} has no {}", name, symbol);
    };
    find(register_callbacks, "cuptiActivityRegisterCallbacks");
    find(enable, "cuptiActivityEnable");
    find(disable, "cuptiActivityDisable");
    find(flush_all, "cuptiActivityFlushAll");
    find(next_record, "cuptiActivityGetNextRecord");
    find(result_string, "cuptiGetResultString");
  }

  std::string text(CUptiResult result) const {
    const char* string = nullptr;
    if (result_string != nullptr) result_string(result, &string);
    return string == nullptr ? "unknown" : string;
  }
};

const Cupti& cupti() {
  static const Cupti functions;
  return functions;
}

// Records come in on a thread of the library.
std::mutex times_mutex;
std::map<std::string, KernelTime>* times = nullptr;

void CUPTIAPI give_buffer(std::uint8_t** buffer, std::size_t* size, std::size_t* most_records) {
  *buffer = static_cast<std::uint8_t*>(std::aligned_alloc(8, kBufferBytes));
  *size = *buffer == nullptr ? 0 : kBufferBytes;
  *most_records = 0;
}

void add(const std::string& name, std::uint64_t start, std::uint64_t end) {
  KernelTime& entry = (*times)[name];
  entry.calls += 1;
  entry.seconds += 1e-9 * static_cast<double>(end - start);
}

void CUPTIAPI take_buffer(CUcontext, std::uint32_t, std::uint8_t* buffer, std::size_t, std::size_t valid) {
  {
    const std::scoped_lock lock(times_mutex);
    CUpti_Activity* record = nullptr;
    while (times != nullptr && valid > 0 && cupti().next_record(buffer, valid, &record) == CUPTI_SUCCESS) {
      if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL || record->kind == CUPTI_ACTIVITY_KIND_KERNEL) {
        const auto* kernel = reinterpret_cast<const KernelRecord*>(record);
        add(kernel->name, kernel->start, kernel->end);
      } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
        const auto* copied = reinterpret_cast<const MemcpyRecord*>(record);
        add("[copy of memory]", copied->start, copied->end);
      } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
        const auto* filled = reinterpret_cast<const MemsetRecord*>(record);
        add("[fill of memory]", filled->start, filled->end);
      }
    }
  }
  std::free(buffer);
}

}  // namespace

KernelProfile::KernelProfile() : missing_(cupti().missing) {
  if (!missing_.empty()) return;
  {
    const std::scoped_lock lock(times_mutex);
    WEFT_CHECK(times == nullptr, "two profiles of kernels at a time");
    times = new std::map<std::string, KernelTime>();
  }
  CUptiResult result = cupti().register_callbacks(give_buffer, take_buffer);
  for (const CUpti_ActivityKind kind : kKinds) {
    if (result == CUPTI_SUCCESS) result = cupti().enable(kind);
  }
  if (result != CUPTI_SUCCESS) missing_ = "CUPTI: " + cupti().text(result);
}

KernelProfile::~KernelProfile() {
  if (cupti().missing.empty()) {
    for (const CUpti_ActivityKind kind : kKinds) (void)cupti().disable(kind);
    (void)cupti().flush_all(0);
  }
  const std::scoped_lock lock(times_mutex);
  delete std::exchange(times, nullptr);
}

std::vector<KernelTime> KernelProfile::take() {
  if (!missing_.empty()) return {};
  (void)cupti().flush_all(0);
  std::map<std::string, KernelTime> by_name;
  const std::scoped_lock lock(times_mutex);
  for (const auto& [name, time] : *times) {
    KernelTime& entry = by_name[readable_kernel_name(name)];
    entry.calls += time.calls;
    entry.seconds += time.seconds;
  }
  times->clear();
  std::vector<KernelTime> list;
  for (auto& [name, entry] : by_name) {
    entry.name = name;
    list.push_back(entry);
  }
  std::ranges::stable_sort(list, std::greater(), &KernelTime::seconds);
  return list;
}

#else

KernelProfile::KernelProfile() : missing_("this weft was built without CUDA, or without CUPTI's header") {}
KernelProfile::~KernelProfile() = default;
std::vector<KernelTime> KernelProfile::take() {
  return {};
}

#endif

}  // namespace weft
