// The GPU of the tests. Tests that need one have "Gpu" in the name of their suite and start with WEFT_NEEDS_GPU().
#pragma once

#include <cstdint>
#include <gtest/gtest.h>
#include <memory>

#include "autograd/device.h"
#include "autograd/memory.h"

namespace weft::testing {

// Whether this build and machine have one.
bool gpu_available();

// A stream of the first GPU, made on first use.
Stream gpu_stream();
// How tools/gpu-sanitize wants tests to run, from WEFT_TESTS_SANITIZE in the environment: "memory" makes each block a
// piece of device memory by itself, "unwritten" also leaves it unwritten, "unwritten_f32" as well and without bf16, and
// any value lets checks of operations take each case once, without repeats and references, which say nothing new about
// accesses and take minutes there.
enum class Sanitize : std::uint8_t { no, races, memory, unwritten, unwritten_f32 };
Sanitize sanitize();

// An arena of its own for one evaluation; hostile.
std::shared_ptr<Allocator> gpu_memory(std::size_t bytes = std::size_t{1} << 30);

}  // namespace weft::testing

#define WEFT_NEEDS_GPU() \
  if (!::weft::testing::gpu_available()) GTEST_SKIP() << "no GPU here"
