#include <cstdio>
#include <cstdlib>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "autograd/check.h"
#include "autograd/cuda/cuda_check.cuh"
#include "autograd/cuda/cuda_memory.h"
#include "autograd/cuda/gpu_processes.h"
#include "tests/support/gpu.h"

namespace weft {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string said(cudaError_t status, ExitCode code) {
  try {
    detail::cuda_failed(status, "cudaLaunch(...)", "somewhere.cu", 7);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  return "no error";
}

TEST(CudaCheck, SaysWhatAnErrorMeansAndWhatToDo) {
  EXPECT_THAT(said(cudaErrorNoKernelImageForDevice, ExitCode::config),
              AllOf(HasSubstr("built for other GPUs"), HasSubstr("-DWEFT_CUDA_ARCHS=")));
  EXPECT_THAT(said(cudaErrorInsufficientDriver, ExitCode::config), HasSubstr("driver"));
  EXPECT_THAT(said(cudaErrorNoDevice, ExitCode::config), HasSubstr("run.device = \"cpu\""));
  EXPECT_THAT(said(cudaErrorDevicesUnavailable, ExitCode::config), HasSubstr("another process"));
  EXPECT_THAT(said(cudaErrorMemoryAllocation, ExitCode::config), HasSubstr("no memory left for somewhere.cu:7"));
  EXPECT_THAT(said(cudaErrorECCUncorrectable, ExitCode::internal),
              AllOf(HasSubstr("the GPU failed"), HasSubstr("Xid"), Not(HasSubstr("checkpoint"))));
  EXPECT_THAT(said(cudaErrorIllegalAddress, ExitCode::internal),
              AllOf(HasSubstr("kernel went wrong"), HasSubstr("somewhere.cu:7"), HasSubstr("CUDA_LAUNCH_BLOCKING=1")));
  EXPECT_THAT(said(cudaErrorInvalidValue, ExitCode::internal),
              AllOf(HasSubstr("somewhere.cu:7: cudaLaunch(...) failed"), HasSubstr("cudaErrorInvalidValue")));
}

TEST(GpuProcesses, AreNamedWithWhatTheyHold) {
  const std::vector<GpuProcess> list = {{.id = 812, .name = "python3", .bytes = std::size_t{3} << 29},
                                        {.id = 9, .name = "weft", .bytes = std::size_t{1} << 30},
                                        {.id = 77, .name = "", .bytes = 0}};
  EXPECT_EQ(describe_processes(list, 9), "python3 (process 812) 1.50 GiB, this process 1.00 GiB, process 77");
  EXPECT_EQ(describe_processes({}, 9), "");
}

template <class F>
std::string out_of_memory(F&& f) {
  try {
    f();
  } catch (const OutOfGpuMemory& error) {
    EXPECT_EQ(error.code(), ExitCode::config);
    return error.what();
  }
  return "it had room";
}

TEST(CudaCheckGpu, ABlockThatDoesNotFitSaysWhatIsFree) {
  WEFT_NEEDS_GPU();
  EXPECT_THAT(out_of_memory([] { cuda_allocator(0)->allocate(std::size_t{1} << 42); }),
              AllOf(HasSubstr("4096.00 GiB asked"), HasSubstr("GPU 0 ("), HasSubstr("are free")));
  EXPECT_NE(cuda_allocator(0)->allocate(256), nullptr) << "the failure is no longer remembered";
}

TEST(CudaCheckGpu, AnArenaThatIsFullSaysWhatWasAsked) {
  WEFT_NEEDS_GPU();
  CudaArena arena(testing::gpu_stream(), std::size_t{1} << 30);
  void* first = arena.allocate(std::size_t{3} << 28);
  EXPECT_THAT(out_of_memory([&] { arena.allocate(std::size_t{1} << 29); }),
              AllOf(HasSubstr("0.50 GiB asked beside 0.75 in use"), HasSubstr("of 1.00 GiB")));
  arena.release(first);
  arena.release(arena.allocate(std::size_t{1} << 29));
}

__global__ void write_to(int* nowhere) {
  *nowhere = 1;
}

[[noreturn]] void exit_from_a_fault() {
  try {
    const CudaStream stream(0);
    write_to<<<1, 1, 0, cuda_stream(stream)>>>(reinterpret_cast<int*>(16));
    WEFT_CHECK_LAUNCH();
    WEFT_CUDA_CALL(cudaStreamSynchronize(cuda_stream(stream)));
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    std::exit(static_cast<int>(error.code()));
  }
  std::exit(0);
}

// The context is lost with the process, so the process is another one.
TEST(CudaCheckGpu, AFaultOfAKernelIsAnErrorThatEndsTheProcess) {
  WEFT_NEEDS_GPU();
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(exit_from_a_fault(), ::testing::ExitedWithCode(static_cast<int>(ExitCode::internal)),
              "kernel went wrong on the GPU: CUDA: an illegal");
}

}  // namespace
}  // namespace weft
