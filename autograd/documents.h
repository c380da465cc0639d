// The documents of a packed row and the block tables that kernels walk.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "autograd/device.h"

namespace weft {

// One block of one document: tokens [begin, end) of the row, the index-th block of that document.
struct Chunk {
  std::int32_t document;
  std::int32_t index;
  std::int32_t begin;
  std::int32_t end;
};

// Blocks restart at each document and never straddle two.
struct ChunkTable {
  std::vector<Chunk> chunks;                  // in row order
  std::vector<std::int32_t> document_offset;  // [N+1]: first chunk of each document
};

// A chunk table where kernels read it. `count` entries, of which those with begin = end are padding.
struct ChunkView {
  const Chunk* chunks = nullptr;
  const std::int32_t* document_offset = nullptr;  // [N+1]
  std::int64_t count = 0;
};

class DocumentTables;

// cu_seqlens [N+1]: 0 = cu[0] <= cu[1] <= ... <= cu[N] = T; empty documents are legal and produce nothing.
// pos0 [N]: position of each document's first token, 0 unless it continues one begun elsewhere (a cached prefix).
//
// An anchored row starts with a one-token document at position 0 that the softmax layers of every other document may
// also attend to (arXiv:2411.13476); the others' positions then start at 1. Other mixers see an ordinary document.
enum class Anchor : std::uint8_t { none, first_token };

class Documents {
 public:
  explicit Documents(std::vector<std::int32_t> cu_seqlens, std::vector<std::int32_t> pos0 = {},
                     Anchor anchor = Anchor::none);
  static std::shared_ptr<const Documents> single(std::int64_t tokens, std::int32_t pos0 = 0);
  static std::shared_ptr<const Documents> from_lengths(std::span<const std::int32_t> lengths);
  // One token for each of the positions, which continues a document begun elsewhere: a decode step.
  static std::shared_ptr<const Documents> single_tokens(std::span<const std::int32_t> positions);

  std::int64_t tokens() const { return cu_seqlens_.back(); }
  std::int64_t count() const { return static_cast<std::int64_t>(pos0_.size()); }
  std::int32_t begin(std::int64_t n) const { return cu_seqlens_[static_cast<std::size_t>(n)]; }
  std::int32_t end(std::int64_t n) const { return cu_seqlens_[static_cast<std::size_t>(n) + 1]; }
  std::int32_t length(std::int64_t n) const { return end(n) - begin(n); }
  bool anchored() const { return anchor_ == Anchor::first_token; }
  std::int32_t pos0(std::int64_t n) const { return pos0_[static_cast<std::size_t>(n)]; }
  const std::vector<std::int32_t>& cu_seqlens() const { return cu_seqlens_; }
  // Position of every token in its document, pos0 included: [T].
  const std::vector<std::int32_t>& positions() const { return positions_; }
  std::int32_t max_position() const;

  // Built on first use for each block length and kept with the batch; call it from one thread.
  const ChunkTable& chunks(std::int32_t block) const;

  // The same for kernels on the device of `stream`: host memory for the CPU, else the attached tables, or tables of
  // this row's own, made on first use. With tables, N is DocumentTables::document_count().
  void attach(std::shared_ptr<DocumentTables> tables) const { tables_ = std::move(tables); }
  std::int64_t count_on(const Stream& stream) const;
  const std::int32_t* cu_seqlens_on(const Stream& stream) const;  // [N+1]
  const std::int32_t* pos0_on(const Stream& stream) const;        // [N]
  const std::int32_t* positions_on(const Stream& stream) const;   // [T]
  ChunkView chunks_on(const Stream& stream, std::int32_t block) const;
  // For what layers make of a row beside these. Not on the CPU.
  DocumentTables& tables(const Stream& stream) const;

 private:
  std::vector<std::int32_t> cu_seqlens_;
  std::vector<std::int32_t> pos0_;
  std::vector<std::int32_t> positions_;
  Anchor anchor_;
  mutable std::map<std::int32_t, ChunkTable> chunk_tables_;
  mutable std::shared_ptr<DocumentTables> tables_;
};

using DocumentsPtr = std::shared_ptr<const Documents>;

}  // namespace weft
