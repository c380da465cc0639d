// Counter-based random numbers: Philox 4x32-10 (Salmon et al., SC 2011). Everything random in weft is a pure function
// of (seed, stream, index), so there is no generator state to save.
#pragma once

#include <array>
#include <cstdint>

namespace weft {

using PhiloxCounter = std::array<std::uint32_t, 4>;

constexpr PhiloxCounter philox(PhiloxCounter counter, std::uint64_t key) {
  auto k0 = static_cast<std::uint32_t>(key);
  auto k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = 0xD2511F53ull * counter[0];
    const std::uint64_t p1 = 0xCD9E8D57ull * counter[2];
    counter = {static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ k0, static_cast<std::uint32_t>(p1),
               static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ k1, static_cast<std::uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

// What a number is drawn for. The values are part of saved runs: append only, never renumber.
enum class RandomStream : std::uint32_t {
  document_shuffle = 1,
  window_permutation = 2,
  window_offset = 3,
  row_order = 4,
  mixture = 5,
  bucket = 6,
  parameter_init = 7,
  generation = 8,
  stochastic_rounding = 9,
  test = 10,
  task_train = 11,
  task_validation = 12,
  task_test = 13,
};

// Words of one (seed, stream, index): block b holds words 4b .. 4b+3.
constexpr PhiloxCounter random_block(std::uint64_t seed, RandomStream stream, std::uint64_t index,
                                     std::uint32_t block) {
  return philox({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                 static_cast<std::uint32_t>(stream), block},
                seed);
}

// Successive words of one (seed, stream, index); a value type, made where it is used.
class RandomWords {
 public:
  constexpr RandomWords(std::uint64_t seed, RandomStream stream, std::uint64_t index)
      : seed_(seed), stream_(stream), index_(index) {}

  constexpr std::uint32_t word() {
    if (used_ == 4) {
      block_ = random_block(seed_, stream_, index_, next_block_++);
      used_ = 0;
    }
    return block_[used_++];
  }
  constexpr std::uint64_t word64() {
    const std::uint64_t low = word();
    return low | (static_cast<std::uint64_t>(word()) << 32);
  }
  // Uniform in [0, 1), a multiple of 2^-24.
  constexpr double uniform() { return static_cast<double>(word() >> 8) * 0x1p-24; }
  // Uniform in [0, n), 1 <= n, without bias (multiply and reject).
  constexpr std::uint64_t below(std::uint64_t n) {
    if (n <= 0xffffffffull) {
      const auto threshold = static_cast<std::uint32_t>((std::uint64_t{1} << 32) % n);
      for (;;) {
        const std::uint64_t m = word() * n;
        if (static_cast<std::uint32_t>(m) >= threshold) return m >> 32;
      }
    }
    const std::uint64_t threshold = (0 - n) % n;
    for (;;) {
      __extension__ using Wide = unsigned __int128;
      const Wide m = static_cast<Wide>(word64()) * n;
      if (static_cast<std::uint64_t>(m) >= threshold) return static_cast<std::uint64_t>(m >> 64);
    }
  }

 private:
  std::uint64_t seed_;
  RandomStream stream_;
  std::uint64_t index_;
  PhiloxCounter block_{};
  std::uint32_t next_block_ = 0;
  unsigned used_ = 4;
};

}  // namespace weft
