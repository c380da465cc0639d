#include "autograd/memory.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>

#include "autograd/check.h"

namespace weft {
namespace {

std::byte* bytes(void* block) {
  return static_cast<std::byte*>(block);
}

TEST(Arena, TakesTheSmallestHoleThatFits) {
  Arena arena(16 * 256);
  std::byte* base = bytes(arena.allocate(2 * 256));
  void* keep_a = arena.allocate(256);
  void* small_hole = arena.allocate(256);
  void* keep_b = arena.allocate(256);
  arena.release(base);
  arena.release(small_hole);
  // Holes: two blocks at 0, one at 3, the rest from 5.
  EXPECT_EQ(arena.allocate(200), small_hole);
  EXPECT_EQ(arena.allocate(257), base);
  EXPECT_EQ(arena.allocate(1), base + 5 * 256);
  arena.release(keep_a);
  arena.release(keep_b);
}

TEST(Arena, TakesTheLowestOfEqualHoles) {
  Arena arena(8 * 256);
  std::array<void*, 8> blocks;
  for (void*& b : blocks) b = arena.allocate(256);
  arena.release(blocks[5]);
  arena.release(blocks[1]);
  arena.release(blocks[3]);
  EXPECT_EQ(arena.allocate(256), blocks[1]);
  EXPECT_EQ(arena.allocate(256), blocks[3]);
  EXPECT_EQ(arena.allocate(256), blocks[5]);
}

TEST(Arena, MergesHolesInAnyOrderOfRelease) {
  std::array<int, 4> order{0, 1, 2, 3};
  do {
    Arena arena(4 * 256);
    std::array<void*, 4> blocks;
    for (void*& b : blocks) b = arena.allocate(256);
    for (const int i : order) arena.release(blocks[static_cast<std::size_t>(i)]);
    EXPECT_EQ(arena.stats().current_bytes, 0u);
    EXPECT_EQ(arena.allocate(4 * 256), blocks[0]);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST(Arena, BlocksAreAlignedAndEmptyRequestsGetOne) {
  for (const Hygiene hygiene : {Hygiene::trusting, Hygiene::hostile}) {
    Arena arena(1 << 16, hygiene);
    void* a = arena.allocate(0);
    void* b = arena.allocate(0);
    EXPECT_NE(a, b);
    for (void* block : {a, b, arena.allocate(1), arena.allocate(257)}) {
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block) % 256, 0u);
    }
  }
}

TEST(Arena, SaysWhatDidNotFit) {
  Arena arena(1024);
  void* block = arena.allocate(512);
  for (const std::size_t request : {std::size_t{513}, std::size_t{1} << 60, SIZE_MAX}) {
    try {
      arena.allocate(request);
      FAIL() << request;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::internal);
      EXPECT_EQ(std::string(e.what()), fmt::format("arena full: {} bytes requested, 512 of 1024 in use", request));
    }
  }
  arena.release(block);
  EXPECT_NO_THROW(arena.allocate(1024));
}

TEST(Arena, CountsUseAndPeak) {
  Arena arena(1 << 20);
  void* a = arena.allocate(1000);
  void* b = arena.allocate(256);
  EXPECT_EQ(arena.stats().current_bytes, 1024u + 256u);
  arena.release(a);
  EXPECT_EQ(arena.stats().current_bytes, 256u);
  EXPECT_EQ(arena.stats().peak_bytes, 1280u);
  arena.reset_peak();
  EXPECT_EQ(arena.stats().peak_bytes, 256u);
  arena.release(b);
}

TEST(Heap, CountsUseAndPeak) {
  const auto heap = heap_allocator();
  void* a = heap->allocate(1000);
  void* b = heap->allocate(10);
  heap->release(a);
  EXPECT_EQ(heap->stats().current_bytes, 256u);
  EXPECT_EQ(heap->stats().peak_bytes, 1280u);
  heap->release(b);
  EXPECT_EQ(heap->stats().current_bytes, 0u);
}

void check_hostile(Allocator& memory) {
  for (int round = 0; round < 2; ++round) {  // memory that was used before is poisoned again
    auto* values = static_cast<float*>(memory.allocate(100 * sizeof(float)));
    for (int i = 0; i < 100; ++i) EXPECT_TRUE(std::isnan(values[i]));
    std::fill(values, values + 100, 1.0f);
    memory.release(values);
  }
}

TEST(Hygiene, HostileMemoryStartsAsNaN) {
  Arena arena(1 << 16, Hygiene::hostile);
  check_hostile(arena);
  check_hostile(*heap_allocator(Hygiene::hostile));
}

void overrun(Allocator& memory) {
  void* block = memory.allocate(256);
  bytes(block)[256] = std::byte{0};
  memory.release(block);
}

TEST(HygieneDeathTest, CanariesCatchAnOverrun) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        Arena arena(1 << 16, Hygiene::hostile);
        overrun(arena);
      },
      "weft: a kernel wrote past the end of its buffer");
  EXPECT_DEATH(overrun(*heap_allocator(Hygiene::hostile)), "weft: a kernel wrote past the end of its buffer");
}

}  // namespace
}  // namespace weft
