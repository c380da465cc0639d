#include "autograd/document_tables.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "autograd/check.h"
#include "autograd/cuda/cuda_memory.h"
#include "autograd/transfer.h"

namespace weft {

static_assert(sizeof(Chunk) == 4 * sizeof(std::int32_t));

// Pinned memory that copies are made from, in blocks that are filled piece by piece, one after another.
class DocumentTables::Staging {
 public:
  explicit Staging(std::int64_t room) : room_(room) {}

  // i32 [elements]; not handed out again until rewind().
  Tensor take(std::int64_t elements) {
    while (current_ < blocks_.size() && used_ + elements > blocks_[current_].numel()) ++current_, used_ = 0;
    if (current_ == blocks_.size()) blocks_.emplace_back(Shape{std::max(elements, room_)}, DType::i32, memory_);
    used_ += elements;
    return blocks_[current_].rows(used_ - elements, used_);
  }
  void rewind() { current_ = 0, used_ = 0; }

 private:
  std::int64_t room_;
  std::shared_ptr<Allocator> memory_ = pinned_allocator();
  std::vector<Tensor> blocks_;
  std::size_t current_ = 0;  // the block that is being filled
  std::int64_t used_ = 0;    // and how far
};

DocumentTables::DocumentTables(const Stream& stream, std::int64_t tokens, std::int64_t documents)
    : stream_(stream), tokens_(tokens), documents_(documents) {
  if (stream.device.planned()) return;
  memory_ = lasting_memory(stream.device);
  const std::int64_t all = 2 * documents + 1 + tokens;
  const Tensor tables({all}, DType::i32, memory_);
  cu_seqlens_ = tables.rows(0, documents + 1);
  pos0_ = tables.rows(documents + 1, 2 * documents + 1);
  positions_ = tables.rows(2 * documents + 1, all);
  staging_ = std::make_unique<Staging>(8 * all + 1024);
}

DocumentTables::~DocumentTables() = default;

void DocumentTables::upload(const Tensor& to, const void* from) {
  if (to.numel() == 0) return;
  const Tensor piece = staging_->take(to.numel());
  std::memcpy(piece.raw(), from, to.nbytes());
  copy(to.reshape(piece.shape()), piece, stream_);
}

void DocumentTables::rewind() {
  if (staging_ != nullptr) staging_->rewind();
  for (const auto& [name, row] : rows_) row.tables->rewind();
}

ChunkView DocumentTables::Blocks::view() const {
  return {reinterpret_cast<const Chunk*>(data_of(chunks)), data_of(document_offset), count};
}

DocumentTables::Blocks& DocumentTables::add_blocks(std::int32_t block) {
  Blocks blocks{.chunks = {}, .document_offset = {}, .count = tokens_ / block + documents_};
  if (!stream_.device.planned()) {
    blocks.chunks = Tensor({blocks.count, 4}, DType::i32, memory_);
    blocks.document_offset = Tensor({documents_ + 1}, DType::i32, memory_);
  }
  return blocks_.emplace(block, blocks).first->second;
}

void DocumentTables::load(const Documents& documents) {
  if (stream_.device.planned()) return;
  WEFT_CHECK(documents.tokens() == tokens_ && documents.count() <= documents_,
             "a row of {} tokens in {} documents for tables of {} tokens in {} documents", documents.tokens(),
             documents.count(), tokens_, documents_);
  std::vector<std::int32_t> cu(documents.cu_seqlens());
  cu.resize(static_cast<std::size_t>(documents_) + 1, static_cast<std::int32_t>(tokens_));
  std::vector<std::int32_t> pos0(static_cast<std::size_t>(documents_), 0);
  for (std::int64_t n = 0; n < documents.count(); ++n) pos0[static_cast<std::size_t>(n)] = documents.pos0(n);
  upload(cu_seqlens_, cu.data());
  upload(pos0_, pos0.data());
  upload(positions_, documents.positions().data());
  for (const auto& [block, blocks] : blocks_) load_blocks(block, blocks, documents);
  if (numbers_.empty() && rows_.empty()) return;
  const Documents all = padded(documents);
  for (const auto& [name, entry] : numbers_) load_numbers(entry, all);
  for (auto& [name, row] : rows_) load_row(row, all);
}

void DocumentTables::load_blocks(std::int32_t block, const Blocks& blocks, const Documents& documents) {
  if (stream_.device.planned()) return;
  const ChunkTable& table = documents.chunks(block);
  const auto T = static_cast<std::int32_t>(tokens_);
  const auto last = static_cast<std::int32_t>(documents_ - 1);
  std::vector<Chunk> chunks(table.chunks);
  chunks.resize(static_cast<std::size_t>(blocks.count), Chunk{.document = last, .index = 0, .begin = T, .end = T});
  std::vector<std::int32_t> offset(table.document_offset);
  offset.resize(static_cast<std::size_t>(documents_) + 1, offset.back());
  upload(blocks.chunks, chunks.data());
  upload(blocks.document_offset, offset.data());
}

ChunkView DocumentTables::chunks(const Documents& documents, std::int32_t block) {
  if (const auto it = blocks_.find(block); it != blocks_.end()) return it->second.view();
  const Blocks& blocks = add_blocks(block);
  load_blocks(block, blocks, documents);
  return blocks.view();
}

Documents DocumentTables::padded(const Documents& documents) const {
  std::vector<std::int32_t> cu(documents.cu_seqlens()), pos0;
  cu.resize(static_cast<std::size_t>(documents_) + 1, cu.back());
  for (std::int64_t n = 0; n < documents.count(); ++n) pos0.push_back(documents.pos0(n));
  pos0.resize(static_cast<std::size_t>(documents_), 0);
  return Documents(std::move(cu), std::move(pos0), documents.anchored() ? Anchor::first_token : Anchor::none);
}

void DocumentTables::load_numbers(const Numbers& entry, const Documents& documents) {
  if (stream_.device.planned()) return;
  std::vector<std::int32_t> values(static_cast<std::size_t>(entry.numbers.numel()), 0);
  entry.make(documents, values);
  upload(entry.numbers, values.data());
}

void DocumentTables::load_row(Row& row, const Documents& documents) const {
  row.documents = std::make_shared<const Documents>(row.make(documents));
  if (row.tables == nullptr) {
    row.tables = std::make_shared<DocumentTables>(stream_, row.documents->tokens(), row.documents->count());
  }
  row.tables->load(*row.documents);
  row.documents->attach(row.tables);
}

Tensor DocumentTables::numbers_of(const Documents& documents, const std::string& name, std::int64_t count,
                                  const MakeNumbers& make) {
  auto it = numbers_.find(name);
  if (it == numbers_.end()) {
    const auto memory = memory_ != nullptr ? memory_ : lasting_memory(stream_.device);
    it = numbers_.emplace(name, Numbers{Tensor({count}, DType::i32, memory), make}).first;
    load_numbers(it->second, padded(documents));
  }
  WEFT_CHECK(it->second.numbers.numel() == count, "{}: {} numbers, now {}", name, it->second.numbers.numel(), count);
  return it->second.numbers;
}

DocumentsPtr DocumentTables::row_of(const Documents& documents, const std::string& name, const MakeRow& make) {
  auto it = rows_.find(name);
  if (it == rows_.end()) {
    it = rows_.emplace(name, Row{.tables = nullptr, .documents = nullptr, .make = make}).first;
    load_row(it->second, padded(documents));
  }
  return it->second.documents;
}

}  // namespace weft
