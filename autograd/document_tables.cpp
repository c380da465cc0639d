#include "autograd/document_tables.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "autograd/check.h"

#ifdef WEFT_CUDA
#include "autograd/cuda/cuda_check.cuh"
#endif

namespace weft {

struct DocumentTables::Blocks {
  std::byte* device = nullptr;
  std::int64_t count = 0;  // of chunks
  Chunk* chunks() const { return reinterpret_cast<Chunk*>(device); }
  std::int32_t* document_offset() const { return reinterpret_cast<std::int32_t*>(chunks() + count); }
};

#ifdef WEFT_CUDA

namespace {

std::byte* device_bytes(const Stream& stream, std::size_t bytes) {
  void* block = nullptr;
  WEFT_CUDA_CALL(cudaSetDevice(stream.device.index));
  WEFT_CUDA_CALL(cudaMalloc(&block, bytes));
  return static_cast<std::byte*>(block);
}

}  // namespace

// Pinned memory that copies are made from, in blocks that are filled piece by piece, one after another.
struct DocumentTables::Staging {
  explicit Staging(std::size_t room) : block_bytes(room) {}
  ~Staging() {
    for (const Block& block : blocks) (void)cudaFreeHost(block.host);
  }

  // Not handed out again until rewind().
  void* take(std::size_t bytes) {
    while (current < blocks.size() && used + bytes > blocks[current].bytes) ++current, used = 0;
    if (current == blocks.size()) {
      Block block{.host = nullptr, .bytes = std::max(bytes, block_bytes)};
      WEFT_CUDA_CALL(cudaMallocHost(&block.host, block.bytes));
      blocks.push_back(block);
    }
    std::byte* const piece = static_cast<std::byte*>(blocks[current].host) + used;
    used += bytes;
    return piece;
  }
  void rewind() { current = used = 0; }

  struct Block {
    void* host;
    std::size_t bytes;
  };
  std::size_t block_bytes;
  std::vector<Block> blocks;
  std::size_t current = 0, used = 0;  // the block that is being filled, and how far
};

DocumentTables::DocumentTables(const Stream& stream, std::int64_t tokens, std::int64_t documents)
    : stream_(stream), tokens_(tokens), documents_(documents) {
  if (stream.device.planned()) return;
  const auto T = static_cast<std::size_t>(tokens), N = static_cast<std::size_t>(documents);
  device_ = device_bytes(stream, (2 * N + 1 + T) * sizeof(std::int32_t));
  cu_seqlens_ = reinterpret_cast<std::int32_t*>(device_);
  pos0_ = cu_seqlens_ + N + 1;
  positions_ = pos0_ + N;
  staging_ = std::make_unique<Staging>(8 * (2 * N + 1 + T) * sizeof(std::int32_t) + 4096);
}

DocumentTables::~DocumentTables() {
  (void)cudaFree(device_);
  for (const auto& [block, blocks] : blocks_) (void)cudaFree(blocks.device);
}

void DocumentTables::upload(void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  void* const piece = staging_->take(bytes);
  std::memcpy(piece, from, bytes);
  WEFT_CUDA_CALL(cudaMemcpyAsync(to, piece, bytes, cudaMemcpyHostToDevice, cuda_stream(stream_)));
}

void DocumentTables::rewind() {
  if (staging_ != nullptr) staging_->rewind();
}

DocumentTables::Blocks& DocumentTables::add_blocks(std::int32_t block) {
  Blocks blocks;
  blocks.count = tokens_ / block + documents_;
  if (!stream_.device.planned())
    blocks.device = device_bytes(stream_, static_cast<std::size_t>(blocks.count) * sizeof(Chunk) +
                                              static_cast<std::size_t>(documents_ + 1) * sizeof(std::int32_t));
  return blocks_.emplace(block, blocks).first->second;
}

#else

struct DocumentTables::Staging {};

DocumentTables::DocumentTables(const Stream& stream, std::int64_t tokens, std::int64_t documents)
    : stream_(stream), tokens_(tokens), documents_(documents) {
  if (!stream.device.planned()) fail(ExitCode::internal, "device tables in a build without CUDA");
}
DocumentTables::~DocumentTables() = default;
void DocumentTables::upload(void*, const void*, std::size_t) {}
void DocumentTables::rewind() {}
DocumentTables::Blocks& DocumentTables::add_blocks(std::int32_t block) {
  Blocks& blocks = blocks_[block];
  blocks.count = tokens_ / block + documents_;
  return blocks;
}

#endif

void DocumentTables::load(const Documents& documents) {
  if (stream_.device.planned()) return;
  WEFT_CHECK(documents.tokens() == tokens_ && documents.count() <= documents_,
             "a row of {} tokens in {} documents for tables of {} tokens in {} documents", documents.tokens(),
             documents.count(), tokens_, documents_);
  std::vector<std::int32_t> cu(documents.cu_seqlens());
  cu.resize(static_cast<std::size_t>(documents_) + 1, static_cast<std::int32_t>(tokens_));
  std::vector<std::int32_t> pos0(static_cast<std::size_t>(documents_), 0);
  for (std::int64_t n = 0; n < documents.count(); ++n) pos0[static_cast<std::size_t>(n)] = documents.pos0(n);
  const auto bytes = [](const auto& v) { return v.size() * sizeof(v[0]); };
  upload(cu_seqlens_, cu.data(), bytes(cu));
  upload(pos0_, pos0.data(), bytes(pos0));
  upload(positions_, documents.positions().data(), bytes(documents.positions()));
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
  upload(blocks.chunks(), chunks.data(), chunks.size() * sizeof(Chunk));
  upload(blocks.document_offset(), offset.data(), offset.size() * sizeof(std::int32_t));
}

ChunkView DocumentTables::chunks(const Documents& documents, std::int32_t block) {
  const auto it = blocks_.find(block);
  if (it != blocks_.end()) return {it->second.chunks(), it->second.document_offset(), it->second.count};
  const Blocks& blocks = add_blocks(block);
  load_blocks(block, blocks, documents);
  return {blocks.chunks(), blocks.document_offset(), blocks.count};
}

}  // namespace weft
