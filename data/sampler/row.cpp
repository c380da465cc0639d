#include "data/sampler/row.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "autograd/check.h"

namespace weft {

namespace {

// The round and the avalanche of XXH64, fed 64-bit words one by one.
constexpr std::uint64_t kPrime1 = 0x9E3779B185EBCA87ull;
constexpr std::uint64_t kPrime2 = 0xC2B2AE3D27D4EB4Full;
constexpr std::uint64_t kPrime3 = 0x165667B19E3779F9ull;
constexpr std::uint64_t kPrime4 = 0x85EBCA77C2B2AE63ull;

class Digest64 {
 public:
  void add(std::uint64_t word) {
    word = std::rotl(word * kPrime2, 31) * kPrime1;
    value_ = std::rotl(value_ ^ word, 27) * kPrime1 + kPrime4;
  }
  template <class T>
  void add_all(const std::vector<T>& values) {
    static_assert(sizeof(T) == 4);
    add(values.size());
    std::size_t i = 0;
    for (; i + 2 <= values.size(); i += 2) {
      std::uint64_t word = 0;
      std::memcpy(&word, &values[i], 8);
      add(word);
    }
    if (i < values.size()) {
      std::uint32_t word = 0;
      std::memcpy(&word, &values[i], 4);
      add(word);
    }
  }
  std::uint64_t finish() const {
    std::uint64_t h = value_;
    h = (h ^ (h >> 33)) * kPrime2;
    h = (h ^ (h >> 29)) * kPrime3;
    return h ^ (h >> 32);
  }

 private:
  std::uint64_t value_ = kPrime3;
};

}  // namespace

std::int64_t Row::valid_labels() const {
  return std::count_if(labels.begin(), labels.end(), [](std::int32_t label) { return label != kIgnoredLabel; });
}

Row join_rows(std::span<const Row> rows) {
  WEFT_CHECK(!rows.empty(), "join_rows of no rows");
  if (rows.size() == 1) return rows[0];
  Row joined;
  joined.cu_seqlens.push_back(0);
  const bool weighted = std::any_of(rows.begin(), rows.end(), [](const Row& row) { return !row.weight.empty(); });
  for (const Row& row : rows) {
    WEFT_CHECK(!row.anchor, "rows with an anchor cannot be joined");
    const std::int32_t begin = joined.cu_seqlens.back();
    joined.tokens.insert(joined.tokens.end(), row.tokens.begin(), row.tokens.end());
    joined.labels.insert(joined.labels.end(), row.labels.begin(), row.labels.end());
    joined.positions.insert(joined.positions.end(), row.positions.begin(), row.positions.end());
    for (std::size_t i = 1; i < row.cu_seqlens.size(); ++i) joined.cu_seqlens.push_back(begin + row.cu_seqlens[i]);
    if (weighted && row.weight.empty()) {
      for (const std::int32_t label : row.labels) joined.weight.push_back(label == kIgnoredLabel ? 0.0f : 1.0f);
    } else {
      joined.weight.insert(joined.weight.end(), row.weight.begin(), row.weight.end());
    }
    joined.cut_tokens += row.cut_tokens;
  }
  return joined;
}

std::uint64_t row_digest(const Row& row) {
  Digest64 digest;
  digest.add_all(row.tokens);
  digest.add_all(row.labels);
  digest.add_all(row.cu_seqlens);
  digest.add_all(row.positions);
  digest.add_all(row.weight);
  digest.add(row.anchor ? 1 : 0);
  return digest.finish();
}

}  // namespace weft
