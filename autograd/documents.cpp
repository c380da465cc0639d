#include "autograd/documents.h"

#include <algorithm>
#include <numeric>

#include "autograd/check.h"
#include "autograd/document_tables.h"

namespace weft {

Documents::Documents(std::vector<std::int32_t> cu_seqlens, std::vector<std::int32_t> pos0, Anchor anchor)
    : cu_seqlens_(std::move(cu_seqlens)), pos0_(std::move(pos0)), anchor_(anchor) {
  WEFT_CHECK(!cu_seqlens_.empty() && cu_seqlens_.front() == 0, "cu_seqlens must start with 0");
  WEFT_CHECK(std::is_sorted(cu_seqlens_.begin(), cu_seqlens_.end()), "cu_seqlens must not decrease");
  if (pos0_.empty()) pos0_.assign(cu_seqlens_.size() - 1, 0);
  WEFT_CHECK(pos0_.size() + 1 == cu_seqlens_.size(), "{} start positions for {} documents", pos0_.size(),
             cu_seqlens_.size() - 1);
  WEFT_CHECK(!anchored() || (count() > 0 && length(0) == 1), "an anchored row starts with a document of one token");
  positions_.resize(static_cast<std::size_t>(tokens()));
  for (std::int64_t n = 0; n < count(); ++n) {
    for (std::int32_t t = begin(n); t < end(n); ++t)
      positions_[static_cast<std::size_t>(t)] = t - begin(n) + Documents::pos0(n);
  }
}

DocumentsPtr Documents::single(std::int64_t tokens, std::int32_t pos0) {
  return std::make_shared<const Documents>(std::vector<std::int32_t>{0, static_cast<std::int32_t>(tokens)},
                                           std::vector<std::int32_t>{pos0});
}

DocumentsPtr Documents::from_lengths(std::span<const std::int32_t> lengths) {
  std::vector<std::int32_t> cu{0};
  for (const std::int32_t n : lengths) cu.push_back(cu.back() + n);
  return std::make_shared<const Documents>(std::move(cu));
}

DocumentsPtr Documents::single_tokens(std::span<const std::int32_t> positions) {
  std::vector<std::int32_t> cu(positions.size() + 1);
  std::iota(cu.begin(), cu.end(), 0);
  return std::make_shared<const Documents>(std::move(cu),
                                           std::vector<std::int32_t>(positions.begin(), positions.end()));
}

std::int32_t Documents::max_position() const {
  return positions_.empty() ? 0 : *std::max_element(positions_.begin(), positions_.end());
}

const ChunkTable& Documents::chunks(std::int32_t block) const {
  WEFT_CHECK(block > 0, "block length {}", block);
  const auto [it, inserted] = chunk_tables_.try_emplace(block);
  if (inserted) {
    ChunkTable& table = it->second;
    table.document_offset.push_back(0);
    for (std::int64_t n = 0; n < count(); ++n) {
      std::int32_t index = 0;
      for (std::int32_t t = begin(n); t < end(n); t += block) {
        table.chunks.push_back({static_cast<std::int32_t>(n), index++, t, std::min(t + block, end(n))});
      }
      table.document_offset.push_back(static_cast<std::int32_t>(table.chunks.size()));
    }
  }
  return it->second;
}

DocumentTables& Documents::tables(const Stream& stream) const {
  if (tables_ == nullptr) {
    tables_ = std::make_shared<DocumentTables>(stream, tokens(), count());
    tables_->load(*this);
  }
  return *tables_;
}

std::int64_t Documents::count_on(const Stream& stream) const {
  return stream.device.is_cpu() ? count() : tables(stream).document_count();
}

const std::int32_t* Documents::cu_seqlens_on(const Stream& stream) const {
  return stream.device.is_cpu() ? cu_seqlens_.data() : tables(stream).cu_seqlens();
}

const std::int32_t* Documents::pos0_on(const Stream& stream) const {
  return stream.device.is_cpu() ? pos0_.data() : tables(stream).pos0();
}

const std::int32_t* Documents::positions_on(const Stream& stream) const {
  return stream.device.is_cpu() ? positions_.data() : tables(stream).positions();
}

ChunkView Documents::chunks_on(const Stream& stream, std::int32_t block) const {
  if (!stream.device.is_cpu()) return tables(stream).chunks(*this, block);
  const ChunkTable& table = chunks(block);
  return {table.chunks.data(), table.document_offset.data(), static_cast<std::int64_t>(table.chunks.size())};
}

}  // namespace weft
