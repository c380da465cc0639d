#include "data/sampler/permutation.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

#include "autograd/check.h"

namespace weft {

namespace {
constexpr std::uint64_t kTableBelow = 64;
constexpr std::uint32_t kRounds = 8;
}  // namespace

KeyedPermutation::KeyedPermutation(std::uint64_t key, std::uint32_t epoch, std::uint64_t n)
    : key_(key), epoch_(epoch), n_(n) {
  WEFT_CHECK(n >= 1, "permutation of nothing");
  if (n < kTableBelow) {
    table_.resize(n);
    std::iota(table_.begin(), table_.end(), std::uint8_t{0});
    RandomWords words(key, RandomStream::window_permutation, epoch);
    for (std::uint64_t i = 0; i + 1 < n; ++i) std::swap(table_[i], table_[i + words.below(n - i)]);
    return;
  }
  half_bits_ = (static_cast<unsigned>(std::bit_width(n - 1)) + 1) / 2;
}

std::uint64_t KeyedPermutation::round_word(std::uint64_t half, std::uint32_t round) const {
  const std::uint32_t word = philox({static_cast<std::uint32_t>(half), round, epoch_, 0}, key_)[0];
  return word & ((std::uint64_t{1} << half_bits_) - 1);
}

std::uint64_t KeyedPermutation::encrypt(std::uint64_t x) const {
  std::uint64_t left = x >> half_bits_;
  std::uint64_t right = x & ((std::uint64_t{1} << half_bits_) - 1);
  for (std::uint32_t round = 0; round < kRounds; ++round) {
    const std::uint64_t next = left ^ round_word(right, round);
    left = right;
    right = next;
  }
  return (left << half_bits_) | right;
}

std::uint64_t KeyedPermutation::decrypt(std::uint64_t x) const {
  std::uint64_t left = x >> half_bits_;
  std::uint64_t right = x & ((std::uint64_t{1} << half_bits_) - 1);
  for (std::uint32_t round = kRounds; round-- > 0;) {
    const std::uint64_t previous = right ^ round_word(left, round);
    right = left;
    left = previous;
  }
  return (left << half_bits_) | right;
}

std::uint64_t KeyedPermutation::operator()(std::uint64_t i) const {
  WEFT_CHECK(i < n_, "element {} of a permutation of {}", i, n_);
  if (!table_.empty()) return table_[i];
  do {
    i = encrypt(i);
  } while (i >= n_);
  return i;
}

std::uint64_t KeyedPermutation::inverse(std::uint64_t value) const {
  WEFT_CHECK(value < n_, "value {} of a permutation of {}", value, n_);
  if (!table_.empty()) {
    return static_cast<std::uint64_t>(std::find(table_.begin(), table_.end(), static_cast<std::uint8_t>(value)) -
                                      table_.begin());
  }
  do {
    value = decrypt(value);
  } while (value >= n_);
  return value;
}

int KeyedPermutation::walk_length(std::uint64_t i) const {
  if (!table_.empty()) return 1;
  int steps = 0;
  do {
    i = encrypt(i);
    ++steps;
  } while (i >= n_);
  return steps;
}

}  // namespace weft
