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
}

ChunkView DocumentTables::Blocks::view() const {
  return {reinterpret_cast<const Chunk*>(numbers(chunks)), numbers(document_offset), count};
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

}  // namespace weft
