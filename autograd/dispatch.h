// The two-slot table through which an operation reaches the kernel of its device.
#pragma once

#include "autograd/check.h"
#include "autograd/device.h"

namespace weft {

// Args is the operation's argument struct of one direction; both slots share it, so a changed struct fails to compile.
template <class Args>
struct Dispatch {
  using Launcher = void (*)(const Args&, const Launch&);
  using Workspace = std::size_t (*)(const Args&);  // bytes of scratch memory

  const char* op;
  Launcher cpu = nullptr;
  Launcher cuda = nullptr;
  Workspace cpu_workspace = nullptr;  // null: none
  Workspace cuda_workspace = nullptr;

  void operator()(const Args& args, const Launch& launch) const {
    const bool on_cpu = launch.stream.device.is_cpu();
    const Launcher launcher = on_cpu ? cpu : cuda;
    if (launcher == nullptr) {
      fail(ExitCode::config, "{} has no {} kernel in this build; build with `cmake --preset {}`", op,
           on_cpu ? "CPU" : "CUDA", on_cpu ? "cpu" : "cuda");
    }
    if (!launch.stream.device.planned()) launcher(args, launch);
  }

  // Launches where `place` (a Tape, or a Backward) runs, with the scratch memory that the kernel there asks for.
  template <class Place>
  void run(const Place& place, const Args& args) const {
    const Workspace workspace = place.device().is_cpu() ? cpu_workspace : cuda_workspace;
    (*this)(args, place.launch(workspace == nullptr ? 0 : workspace(args)));
  }
};

// A launcher of a .cu file, for the CUDA slots of a table; null in a build without CUDA.
#ifdef WEFT_CUDA
#define WEFT_ON_CUDA(function) function
#else
#define WEFT_ON_CUDA(function) nullptr
#endif

// Whether a kernel replaces what its output buffer holds, or adds to it.
enum class Write : std::uint8_t { overwrite, accumulate };

template <class T>
inline void store(T& target, T value, Write write) {
  target = write == Write::overwrite ? value : target + value;
}

}  // namespace weft
