// CPU kernel of block_choice.h: a work item is a tile of queries for the heads of one group. It walks the summaries
// they see, tile by tile, adds up the scores of blocks, and takes the best for each query.
#pragma once

#include "modules/families/block_sparse/block_choice.h"
#include "modules/families/block_sparse/block_sparse_tiles.h"

namespace weft {

// Takes blocks for a query whose own block is `current`, by score[0 ... current], into idx [slots]; `best` has room for
// rule.selected indices.
template <class T>
void take_blocks(const T* score, std::int64_t current, const BlockRule& rule, std::int32_t* best, std::int32_t* idx) {
  const std::int64_t first_end = std::min(rule.first, current + 1);
  const std::int64_t local_begin = std::max(first_end, current - rule.local + 1);
  const std::int64_t room = rule.selected - first_end - (current + 1 - local_begin);
  std::int64_t count = 0;
  for (std::int64_t j = first_end; j < local_begin; ++j) {
    if (count == room && (room == 0 || !(score[j] > score[best[room - 1]]))) continue;
    std::int64_t at = count < room ? count++ : room - 1;
    for (; at > 0 && score[j] > score[best[at - 1]]; --at) best[at] = best[at - 1];
    best[at] = static_cast<std::int32_t>(j);
  }
  std::sort(best, best + count);
  std::int32_t* to = idx;
  for (std::int64_t j = 0; j < first_end; ++j) *to++ = static_cast<std::int32_t>(j);
  to = std::copy(best, best + count, to);
  for (std::int64_t j = local_begin; j <= current; ++j) *to++ = static_cast<std::int32_t>(j);
  std::fill(to, idx + rule.slots(), -1);
}

template <class T>
class BlockChoiceCpu {
 public:
  explicit BlockChoiceCpu(const BlockChoice& a)
      : a_(a),
        G_(a.H_Q / a.H_KV),
        tokens_(block_sparse::tile_entries(G_)),
        lists_(a.score == BlockScore::logit ? G_ : 1),
        unit_(static_cast<T>(kLog2e / std::sqrt(static_cast<double>(a.D)))) {
    for (std::int64_t n = 0; n < a.document_count; ++n) {
      const BlockSparseDocument& d = a.documents[n];
      blocks_ = std::max(blocks_, (d.query_position + d.query_count - 1) / a.rule.block + 1);
    }
  }

  std::size_t workspace() const { return static_cast<std::size_t>(worker_count() * scratch_size()) * sizeof(T); }

  void run(T* workspace) const {
    struct Item {
      const BlockSparseDocument* document;
      std::int64_t begin, end;  // of its queries
    };
    std::vector<Item> items;
    for (std::int64_t n = 0; n < a_.document_count; ++n) {
      const BlockSparseDocument& d = a_.documents[n];
      for (std::int64_t begin = 0; begin < d.query_count; begin += tokens_) {
        items.push_back({&d, begin, std::min<std::int64_t>(begin + tokens_, d.query_count)});
      }
    }
    const auto tiles = static_cast<std::int64_t>(items.size());
    // Late queries see most summaries: they go first.
    block_sparse::parallel_items(tiles * a_.H_KV, [&](std::int64_t i, std::int64_t worker) {
      const Item& item = items[static_cast<std::size_t>(tiles - 1 - i % tiles)];
      query_tile(*item.document, item.begin, item.end, i / tiles, workspace + worker * scratch_size());
    });
  }

 private:
  struct Scratch {
    T *q, *k_columns, *score;            // [R][D], [D][kTileKeys], [R][kTileKeys]
    T* lse;                              // [R] in powers of 2
    T* blocks;                           // [tokens][lists][blocks] scores
    block_sparse::Statistics<T>* stats;  // [R]
    std::int32_t* best;                  // [selected]
  };
  Scratch carve(Carver<T>& carver) const {
    const std::int64_t R = tokens_ * G_;
    Scratch s;
    s.q = carver.take(R * a_.D);
    s.k_columns = carver.take(a_.D * block_sparse::kTileKeys);
    s.score = carver.take(R * block_sparse::kTileKeys);
    s.lse = carver.take(R);
    s.blocks = carver.take(tokens_ * lists_ * blocks_);
    s.stats = reinterpret_cast<block_sparse::Statistics<T>*>(carver.take(2 * R));
    s.best = reinterpret_cast<std::int32_t*>(carver.take(a_.rule.selected));
    return s;
  }
  std::int64_t scratch_size() const {
    Carver<T> carver(nullptr);
    carve(carver);
    return carver.used();
  }

  // Queries [begin, end) of a document for one group of heads.
  void query_tile(const BlockSparseDocument& d, std::int64_t begin, std::int64_t end, std::int64_t head,
                  T* scratch) const {
    Carver<T> carver(scratch);
    const Scratch s = carve(carver);
    const std::int64_t last = d.query_position + end - 1;
    if (!a_.rule.takes_all(last)) {
      const auto* q = static_cast<const T*>(a_.q);
      for (std::int64_t t = begin; t < end; ++t) {
        std::copy_n(q + ((d.query_row + t) * a_.H_Q + head * G_) * a_.D, G_ * a_.D, s.q + (t - begin) * G_ * a_.D);
      }
      std::fill(s.blocks, s.blocks + (end - begin) * lists_ * blocks_, T(0));
      if (a_.score != BlockScore::logit) denominators(d, begin, end, head, s);
      for_summaries(d, begin, end, head, s, [&](std::int64_t key, std::int64_t t, std::int64_t bound) {
        T* rows = s.score + (t - begin) * G_ * block_sparse::kTileKeys;
        T* blocks = s.blocks + (t - begin) * lists_ * blocks_;
        a_.score == BlockScore::logit ? copy_logits(key, bound, rows, blocks)
                                      : add_probabilities(key, bound, rows, s.lse + (t - begin) * G_, blocks);
      });
    }
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t position = d.query_position + t;
      for (std::int64_t c = 0; c < lists_; ++c) {
        const std::int64_t row = (d.query_row + t) * a_.H_KV * lists_ + head * lists_ + c;
        std::int32_t* idx = a_.idx + row * a_.rule.slots();
        if (a_.rule.takes_all(position)) {
          const std::int64_t count = position / a_.rule.block + 1;
          for (std::int64_t j = 0; j < a_.rule.slots(); ++j) idx[j] = j < count ? static_cast<std::int32_t>(j) : -1;
        } else {
          take_blocks(s.blocks + ((t - begin) * lists_ + c) * blocks_, position / a_.rule.block, a_.rule, s.best, idx);
        }
      }
    }
  }

  // Products of the tile's rows with every tile of summaries that one of them sees; then f(first summary of the tile,
  // query, summaries of the tile that it sees).
  template <class F>
  void for_summaries(const BlockSparseDocument& d, std::int64_t begin, std::int64_t end, std::int64_t head,
                     const Scratch& s, F&& f) const {
    using block_sparse::kTileKeys;
    const block_sparse::KeyRows<T> keys(d, a_.k, nullptr, a_.H_KV, a_.D, 0, head);
    const auto visible = [&](std::int64_t t) {
      return std::min<std::int64_t>(d.key_count, a_.span.count(d.query_position + t + 1));
    };
    const std::int64_t most = visible(end - 1);
    for (std::int64_t key = 0; key < most; key += kTileKeys) {
      const std::int64_t count = std::min(kTileKeys, most - key);
      block_sparse::pack_columns([&](std::int64_t i) { return keys.k(key + i); }, count, a_.D, s.k_columns);
      tile::product<tile::Left::rows>((end - begin) * G_, tile::padded(count), a_.D, s.q, a_.D, s.k_columns, kTileKeys,
                                      s.score, kTileKeys, false);
      for (std::int64_t t = begin; t < end; ++t) {
        const std::int64_t bound = std::clamp<std::int64_t>(visible(t) - key, 0, count);
        if (bound > 0) f(key, t, bound);
      }
    }
  }

  // lse of the tile's rows.
  void denominators(const BlockSparseDocument& d, std::int64_t begin, std::int64_t end, std::int64_t head,
                    const Scratch& s) const {
    const std::int64_t count = (end - begin) * G_;
    if (a_.lse != nullptr) {
      const auto* lse = static_cast<const T*>(a_.lse);
      for (std::int64_t r = 0; r < count; ++r) {
        s.lse[r] = lse[(d.query_row + begin + r / G_) * a_.H_Q + head * G_ + r % G_] * static_cast<T>(kLog2e);
      }
      return;
    }
    std::fill(s.stats, s.stats + count, block_sparse::Statistics<T>{});
    for_summaries(d, begin, end, head, s, [&](std::int64_t, std::int64_t t, std::int64_t bound) {
      for (std::int64_t r = (t - begin) * G_; r < (t - begin + 1) * G_; ++r) {
        block_sparse::softmax_row(s.score + r * block_sparse::kTileKeys, bound, bound, unit_, s.stats[r]);
      }
    });
    for (std::int64_t r = 0; r < count; ++r) s.lse[r] = s.stats[r].top + std::log2(s.stats[r].mass);
  }

  // Block j's score is the product with summary j.
  void copy_logits(std::int64_t key, std::int64_t bound, const T* rows, T* blocks) const {
    for (std::int64_t c = 0; c < lists_; ++c) {
      std::copy_n(rows + c * block_sparse::kTileKeys, bound, blocks + c * blocks_ + key);
    }
  }

  // Adds the group's probabilities of `bound` summaries from `key` on to the blocks whose tokens they stand for.
  void add_probabilities(std::int64_t key, std::int64_t bound, T* rows, const T* lse, T* blocks) const {
    using V = tile::Vector<T>;
    using block_sparse::kTileKeys;
    for (std::int64_t c = 0; c < bound; c += tile::kLanes<T>) {
      V sum{};
      for (std::int64_t g = 0; g < G_; ++g) {
        sum += tile::exp2(V(tile::load(rows + g * kTileKeys + c) * tile::broadcast(unit_) - tile::broadcast(lse[g])));
      }
      tile::store(rows + c, sum);
    }
    const std::int64_t strides = a_.span.length / a_.span.stride;   // of a summary
    const std::int64_t per_block = a_.rule.block / a_.span.stride;  // strides of a block
    for (std::int64_t shared = 0; shared < strides; ++shared) {
      std::int64_t block = (key + shared) / per_block;
      std::int64_t left = (block + 1) * per_block - (key + shared);
      for (std::int64_t c = 0; c < bound; ++c) {
        if (left == 0) {
          ++block;
          left = per_block;
        }
        --left;
        blocks[block] =
            a_.score == BlockScore::overlap_sum ? blocks[block] + rows[c] : std::max(blocks[block], rows[c]);
      }
    }
  }

  const BlockChoice& a_;
  std::int64_t G_, tokens_, lists_;
  T unit_;
  std::int64_t blocks_ = 0;  // most that a query chooses from
};

}  // namespace weft
