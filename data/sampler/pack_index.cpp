#include "data/sampler/pack_index.h"

#include <algorithm>
#include <numeric>
#include <set>

namespace weft {

namespace {

constexpr std::int64_t kBlockDocuments = 65536;

PackIndex pack_block(std::span<const std::int64_t> doc_offsets, std::int64_t capacity, std::int64_t max_pieces) {
  std::vector<Piece> pieces;
  for (std::size_t d = 0; d + 1 < doc_offsets.size(); ++d) {
    std::int64_t start = doc_offsets[d];
    for (std::int64_t left = doc_offsets[d + 1] - start - 1; left > 0;) {
      const std::int64_t length = std::min(left, capacity);
      pieces.push_back({start, static_cast<std::int32_t>(length)});
      start += length;
      left -= length;
    }
  }
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.length > b.length; });

  std::vector<std::int32_t> bin_of(pieces.size());
  std::vector<std::int64_t> count;
  std::set<std::pair<std::int64_t, std::int32_t>> open;  // (room, bin)
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const std::int64_t length = pieces[i].length;
    auto found = open.lower_bound({length, 0});
    std::int64_t room = capacity;
    std::int32_t bin = static_cast<std::int32_t>(count.size());
    if (found != open.end()) {
      room = found->first;
      bin = found->second;
      open.erase(found);
    } else {
      count.push_back(0);
    }
    bin_of[i] = bin;
    ++count[static_cast<std::size_t>(bin)];
    if (room > length && count[static_cast<std::size_t>(bin)] < max_pieces) open.emplace(room - length, bin);
  }

  PackIndex index;
  index.bins.assign(count.size() + 1, 0);
  std::partial_sum(count.begin(), count.end(), index.bins.begin() + 1);
  index.pieces.resize(pieces.size());
  std::vector<std::int64_t> next(index.bins.begin(), index.bins.end() - 1);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    index.pieces[static_cast<std::size_t>(next[static_cast<std::size_t>(bin_of[i])]++)] = pieces[i];
  }
  return index;
}

}  // namespace

PackIndex build_pack_index(std::span<const std::int64_t> doc_offsets, std::int64_t capacity, std::int64_t max_pieces) {
  const auto documents = static_cast<std::int64_t>(doc_offsets.size()) - 1;
  const std::int64_t blocks = (documents + kBlockDocuments - 1) / kBlockDocuments;
  std::vector<PackIndex> parts(static_cast<std::size_t>(blocks));
#pragma omp parallel for schedule(dynamic) if (blocks > 1)
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t first = block * kBlockDocuments;
    const auto n = static_cast<std::size_t>(std::min(kBlockDocuments, documents - first) + 1);
    parts[static_cast<std::size_t>(block)] =
        pack_block(doc_offsets.subspan(static_cast<std::size_t>(first), n), capacity, max_pieces);
  }
  PackIndex index;
  index.bins.push_back(0);
  for (PackIndex& part : parts) {
    const std::int64_t base = index.bins.back();
    for (std::size_t b = 1; b < part.bins.size(); ++b) index.bins.push_back(base + part.bins[b]);
    index.pieces.insert(index.pieces.end(), part.pieces.begin(), part.pieces.end());
    part = PackIndex();
  }
  return index;
}

}  // namespace weft
