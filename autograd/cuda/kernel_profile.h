// Times of the kernels that a piece of work runs, by name, as the GPU itself takes them (CUPTI, of the CUDA toolkit).
// The library is looked for when it is asked for; weft runs without it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weft {

struct KernelTime {
  std::string name;  // readable_kernel_name
  std::int64_t calls = 0;
  double seconds = 0.0;  // of all calls; kernels may run side by side
};

class KernelProfile {
 public:
  // From here on kernels count, those of replayed graphs too, and copies and fills of memory. One at a time.
  KernelProfile();
  ~KernelProfile();
  KernelProfile(const KernelProfile&) = delete;
  KernelProfile& operator=(const KernelProfile&) = delete;

  // Why there are no times: "libcupti.so.13 is not there"; empty if there are.
  const std::string& missing() const { return missing_; }
  // Of what the device has done so far (wait for it before), most seconds first.
  std::vector<KernelTime> take();

 private:
  std::string missing_;
};

// The name that the compiler gave, without return type, arguments, namespaces that say nothing and types of template
// arguments: "attention_cuda::forward_kernel<128, 128, 0>".
std::string readable_kernel_name(const std::string& mangled);

}  // namespace weft
