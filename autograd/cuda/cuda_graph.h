// Work that was recorded once and is replayed with one call.
#pragma once

#include <functional>

#include "autograd/device.h"

namespace weft {

// Kernels of a replay read and write the addresses of the recording, and its launch parameters are fixed: what changes
// from replay to replay is the content of memory.
class CudaGraph {
 public:
  CudaGraph() = default;
  ~CudaGraph();
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;

  bool recorded() const { return executable_ != nullptr; }
  // Records what `work` enqueues on the stream, without running it; replaces an earlier recording. `work` must not wait
  // for the device nor take memory from the driver: run it once before, so that everything it keeps exists.
  void record(const Stream& stream, const std::function<void()>& work);
  void replay(const Stream& stream) const;

 private:
  void* executable_ = nullptr;  // cudaGraphExec_t
};

}  // namespace weft
