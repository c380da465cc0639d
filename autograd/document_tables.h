// The tables of a packed row in device memory, at addresses that do not change from batch to batch.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "autograd/device.h"
#include "autograd/documents.h"
#include "autograd/tensor.h"

namespace weft {

// Room for rows of at most `tokens` tokens in at most `documents` documents. A captured graph reads whatever batch was
// loaded last: a chunk table has room for every row that fits, and its entries beyond the batch's chunks are empty
// (begin = end = T), so that the number of entries is the same for all of them.
class DocumentTables {
 public:
  DocumentTables(const Stream& stream, std::int64_t tokens, std::int64_t documents);
  ~DocumentTables();
  DocumentTables(const DocumentTables&) = delete;
  DocumentTables& operator=(const DocumentTables&) = delete;

  // Replaces the content, in the order of the stream. The row has exactly the tokens, and at most the documents, that
  // there is room for; documents that are not there are empty ones at its end.
  void load(const Documents& documents);

  // Call it when the stream has done all that was asked of it. Loads never wait: each since the last call has pinned
  // memory of its own, since its copies may wait behind the work of those before.
  void rewind();

  const std::int32_t* cu_seqlens() const { return data_of(cu_seqlens_); }  // [N + 1]
  const std::int32_t* pos0() const { return data_of(pos0_); }              // [N]
  const std::int32_t* positions() const { return data_of(positions_); }    // [T]
  std::int64_t document_count() const { return documents_; }
  // Made on first use for each block length.
  ChunkView chunks(const Documents& documents, std::int32_t block);

  // What a layer makes of a row on the host: i32 [count], filled by `make`, on first use of `name` and again for each
  // row loaded. `make` sees the documents that there is room for, those that are not there as empty ones.
  using MakeNumbers = std::function<void(const Documents&, std::span<std::int32_t>)>;
  Tensor numbers_of(const Documents& documents, const std::string& name, std::int64_t count, const MakeNumbers& make);
  // The same for another row made of this one, of as many tokens and documents whatever the lengths are.
  using MakeRow = std::function<Documents(const Documents&)>;
  DocumentsPtr row_of(const Documents& documents, const std::string& name, const MakeRow& make);

 private:
  // On a planned device there are none.
  static const std::int32_t* data_of(const Tensor& table) {
    return table.defined() ? table.data<std::int32_t>() : nullptr;
  }
  struct Blocks {
    Tensor chunks, document_offset;  // i32 [count, 4]: Chunk; i32 [N + 1]
    std::int64_t count = 0;          // of chunks

    ChunkView view() const;
  };
  struct Numbers {
    Tensor numbers;
    MakeNumbers make;
  };
  struct Row {
    std::shared_ptr<DocumentTables> tables;
    DocumentsPtr documents;
    MakeRow make;
  };
  // With empty documents up to the number that there is room for.
  Documents padded(const Documents& documents) const;
  void load_numbers(const Numbers& entry, const Documents& documents);
  void load_row(Row& row, const Documents& documents) const;
  void upload(const Tensor& to, const void* from);
  Blocks& add_blocks(std::int32_t block);
  void load_blocks(std::int32_t block, const Blocks& blocks, const Documents& documents);

  Stream stream_;
  std::int64_t tokens_, documents_;
  std::shared_ptr<Allocator> memory_;
  Tensor cu_seqlens_, pos0_, positions_;
  std::map<std::int32_t, Blocks> blocks_;
  std::map<std::string, Numbers> numbers_;
  std::map<std::string, Row> rows_;
  class Staging;
  std::unique_ptr<Staging> staging_;
};

}  // namespace weft
