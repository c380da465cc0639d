#include "autograd/check.h"
#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_graph.h"

namespace weft {

CudaGraph::~CudaGraph() {
  if (executable_ != nullptr) (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
}

void CudaGraph::record(const Stream& stream, const std::function<void()>& work) {
  WEFT_CUDA_CALL(cudaStreamBeginCapture(cuda_stream(stream), cudaStreamCaptureModeThreadLocal));
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    (void)cudaStreamEndCapture(cuda_stream(stream), &graph);
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    throw;
  }
  WEFT_CUDA_CALL(cudaStreamEndCapture(cuda_stream(stream), &graph));
  if (executable_ != nullptr) WEFT_CUDA_CALL(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_)));
  executable_ = nullptr;
  cudaGraphExec_t executable = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
  (void)cudaGraphDestroy(graph);
  WEFT_CUDA_CALL(status);
  executable_ = executable;
}

void CudaGraph::replay(const Stream& stream) const {
  WEFT_CHECK(recorded(), "replay of a graph that was not recorded");
  WEFT_CUDA_CALL(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), cuda_stream(stream)));
}

}  // namespace weft
