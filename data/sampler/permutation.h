// Keyed permutations of [0, n): any element in constant time, without a table or a state.
#pragma once

#include <cstdint>
#include <vector>

#include "autograd/philox.h"

namespace weft {

// A balanced Feistel network on the even number of bits that holds n-1, eight rounds of Philox, applied again until the
// value is below n (cycle walking; the domain is at most 4n, so at most 4 applications on average). Below n = 64 the
// network reaches visibly fewer than n! permutations, so there it is a Fisher-Yates table.
class KeyedPermutation {
 public:
  KeyedPermutation(std::uint64_t key, std::uint32_t epoch, std::uint64_t n);

  std::uint64_t size() const { return n_; }
  std::uint64_t operator()(std::uint64_t i) const;
  std::uint64_t inverse(std::uint64_t value) const;
  // Applications of the network that element i takes; 1 for table permutations.
  int walk_length(std::uint64_t i) const;

 private:
  std::uint64_t encrypt(std::uint64_t x) const;
  std::uint64_t decrypt(std::uint64_t x) const;
  std::uint64_t round_word(std::uint64_t half, std::uint32_t round) const;

  std::uint64_t key_;
  std::uint32_t epoch_;
  std::uint64_t n_;
  unsigned half_bits_ = 1;
  std::vector<std::uint8_t> table_;
};

// The key of the permutations of one purpose: distinct for every (seed, stream, index).
inline std::uint64_t permutation_key(std::uint64_t seed, RandomStream stream, std::uint64_t index) {
  return RandomWords(seed, stream, index).word64();
}

}  // namespace weft
