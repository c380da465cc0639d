// The GPU of the tests. Tests that need one have "Gpu" in the name of their suite and start with WEFT_NEEDS_GPU().
#pragma once

#include <gtest/gtest.h>
#include <memory>

#include "autograd/device.h"
#include "autograd/memory.h"

namespace weft::testing {

// Whether this build and machine have one.
bool gpu_available();

// A stream of the first GPU, made on first use.
Stream gpu_stream();
// An arena of its own for one evaluation; hostile. With WEFT_TESTS_EXACT_BLOCKS=poisoned or =unwritten in the
// environment each block is a piece of device memory by itself, as tools/gpu-sanitize wants it.
std::shared_ptr<Allocator> gpu_memory(std::size_t bytes = std::size_t{1} << 30);

}  // namespace weft::testing

#define WEFT_NEEDS_GPU() \
  if (!::weft::testing::gpu_available()) GTEST_SKIP() << "no GPU here"
