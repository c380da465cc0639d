#include "checkpoints/reader.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "autograd/check.h"
#include "checkpoints/layout.h"
#include "data/storage/crc32c.h"
#include "data/storage/sha256.h"

namespace weft {

namespace fs = std::filesystem;

CheckpointReader::CheckpointReader(const fs::path& directory, BlockChecks checks)
    : directory_(directory), checks_(checks), manifest_(read_manifest(directory)) {
  const std::int64_t named = step_of_directory_name(directory.filename().string());
  if (named >= 0 && named != manifest_.step) {
    storage_error("{}: its manifest is that of step {}", directory.string(), manifest_.step);
  }
  open_shards();
  check_tiling();
}

void CheckpointReader::open_shards() {
  // All sizes first: they show a missing or truncated file at little cost.
  for (const ShardFile& file : manifest_.files) {
    files_.emplace_back(directory_ / file.name);
    if (files_.back().size() != file.bytes) {
      storage_error("{}: {} bytes, its manifest says {}", files_.back().path().string(), files_.back().size(),
                    file.bytes);
    }
  }
  for (const AttachedFile& file : manifest_.attachments) {
    const InputFile opened(directory_ / file.name);
    if (opened.size() != file.bytes) {
      storage_error("{}: {} bytes, its manifest says {}", opened.path().string(), opened.size(), file.bytes);
    }
  }
  indices_.reserve(manifest_.files.size());
  for (const ShardFile& file : manifest_.files) {
    const fs::path path = directory_ / file.index_name;
    const std::string text = read_small_file(path, kMaxIndexBytes);
    if (hex(sha256(text)) != file.index_sha256) {
      storage_error("{}: damaged: its content does not match the digest in the manifest", path.string());
    }
    indices_.push_back(parse_index(text, path.string(), file.bytes));
    const ShardIndex& index = indices_.back();
    if (index.step != manifest_.step || index.nonce != manifest_.nonce) {
      storage_error("{}: it belongs to another checkpoint (step {}, nonce {})", path.string(), index.step, index.nonce);
    }
  }
}

void CheckpointReader::check_tiling() {
  std::map<std::string_view, const ParameterRecord*> known;
  for (const ParameterRecord& parameter : manifest_.parameters) {
    known[parameter.name] = &parameter;
    for (const std::string& kind : parameter.store) arrays_[{kind, parameter.name}];
  }
  for (std::size_t shard = 0; shard < indices_.size(); ++shard) {
    const std::string source = (directory_ / manifest_.files[shard].index_name).string();
    for (const SliceRecord& slice : indices_[shard].slices) {
      const auto parameter = known.find(slice.name);
      const auto array = arrays_.find(Key{slice.kind, slice.name});
      if (parameter == known.end() || array == arrays_.end()) {
        storage_error("{}: {} is not in the manifest", source, slice.object());
      }
      if (slice.shape != parameter->second->shape) {
        storage_error("{}: {} has shape {}, the manifest says {}", source, slice.object(), slice.shape.str(),
                      parameter->second->shape.str());
      }
      if (!array->second.empty() && array->second.front().slice->dtype != slice.dtype) {
        storage_error("{}: {} is {}, another slice of it is {}", source, slice.object(), name_of(slice.dtype),
                      name_of(array->second.front().slice->dtype));
      }
      array->second.push_back({shard, &slice});
    }
  }
  for (auto& [key, pieces] : arrays_) {
    const std::int64_t numel = known.at(key.second)->shape.numel();
    std::sort(pieces.begin(), pieces.end(),
              [](const Piece& a, const Piece& b) { return a.slice->offset < b.slice->offset; });
    std::int64_t covered = 0;
    for (const Piece& piece : pieces) {
      if (piece.slice->offset != covered) {
        storage_error("{}: {} of {}: elements [{}, {}) are {}", directory_.string(), key.first, key.second,
                      std::min(covered, piece.slice->offset), std::max(covered, piece.slice->offset),
                      piece.slice->offset < covered ? "stored twice" : "missing");
      }
      covered += piece.slice->length;
    }
    if (covered != numel || (numel == 0 && pieces.size() != 1)) {
      storage_error("{}: {} of {}: {} of {} elements are stored", directory_.string(), key.first, key.second, covered,
                    numel);
    }
  }
}

bool CheckpointReader::has(std::string_view kind, std::string_view name) const {
  return arrays_.contains(Key{kind, name});
}

const std::vector<CheckpointReader::Piece>& CheckpointReader::pieces(std::string_view kind,
                                                                     std::string_view name) const {
  const auto found = arrays_.find(Key{kind, name});
  if (found == arrays_.end()) storage_error("{}: {} of {} is not stored", directory_.string(), kind, name);
  return found->second;
}

DType CheckpointReader::dtype(std::string_view kind, std::string_view name) const {
  return pieces(kind, name).front().slice->dtype;
}

void CheckpointReader::read_block(const Piece& piece, std::uint64_t i, std::span<std::byte> block) const {
  const SliceRecord& slice = *piece.slice;
  const InputFile& file = files_[piece.shard];
  file.read_at(slice.byte_offset + i * indices_[piece.shard].crc_block_bytes, block);
  if (checks_ == BlockChecks::trust) return;
  const std::uint32_t found = crc32c(block);
  if (found != slice.crc32c[i]) {
    storage_error("{}: damaged: block {} of {} has CRC-32C {:08x}, its index says {:08x}", file.path().string(), i,
                  slice.object(), found, slice.crc32c[i]);
  }
}

void CheckpointReader::read(std::string_view kind, std::string_view name, std::int64_t begin, std::int64_t end,
                            std::span<std::byte> out) const {
  const std::vector<Piece>& all = pieces(kind, name);
  const SliceRecord& last = *all.back().slice;
  WEFT_CHECK(begin >= 0 && begin <= end && end <= last.offset + last.length, "elements [{}, {}) of {} {} of {}", begin,
             end, kind, name, last.offset + last.length);
  const std::uint64_t width = size_of(last.dtype);
  WEFT_CHECK(out.size() == static_cast<std::uint64_t>(end - begin) * width, "{} bytes for {} elements of {}",
             out.size(), end - begin, name_of(last.dtype));
  if (begin == end) return;
  auto piece = std::upper_bound(all.begin(), all.end(), begin,
                                [](std::int64_t at, const Piece& p) { return at < p.slice->offset; });
  std::vector<std::byte> scratch;
  for (--piece; piece != all.end() && piece->slice->offset < end; ++piece) {
    const SliceRecord& slice = *piece->slice;
    const std::uint64_t block_bytes = indices_[piece->shard].crc_block_bytes;
    // Bytes wanted, from the start of this slice.
    const std::uint64_t from = static_cast<std::uint64_t>(std::max(begin, slice.offset) - slice.offset) * width;
    const std::uint64_t to =
        static_cast<std::uint64_t>(std::min(end, slice.offset + slice.length) - slice.offset) * width;
    for (std::uint64_t i = from / block_bytes; i * block_bytes < to; ++i) {
      const std::uint64_t block_begin = i * block_bytes;
      const std::uint64_t block_end = std::min(block_begin + block_bytes, slice.byte_length());
      const std::uint64_t wanted_begin = std::max(from, block_begin), wanted_end = std::min(to, block_end);
      const std::span<std::byte> target = out.first(wanted_end - wanted_begin);
      if (wanted_begin == block_begin && wanted_end == block_end) {
        read_block(*piece, i, target);
      } else {
        // Widened to the block, which is what has a checksum.
        scratch.resize(block_end - block_begin);
        read_block(*piece, i, scratch);
        std::memcpy(target.data(), scratch.data() + (wanted_begin - block_begin), target.size());
      }
      out = out.subspan(target.size());
    }
  }
}

void CheckpointReader::verify_files(int part, int parts) const {
  const std::vector<AttachedFile>& attached = manifest_.attachments;
  const std::size_t all = files_.size() + attached.size();
  for (std::size_t i = static_cast<std::size_t>(part); i < all; i += static_cast<std::size_t>(parts)) {
    const bool is_shard = i < files_.size();
    const fs::path path = is_shard ? files_[i].path() : directory_ / attached[i - files_.size()].name;
    const std::string& expected = is_shard ? manifest_.files[i].sha256 : attached[i - files_.size()].sha256;
    if (hex(sha256_file(path)) != expected) {
      storage_error("{}: damaged: its SHA-256 is not that of the manifest", path.string());
    }
  }
}

std::string CheckpointReader::read_attachment(std::string_view name) const {
  for (const AttachedFile& file : manifest_.attachments) {
    if (file.name != name) continue;
    const fs::path path = directory_ / file.name;
    std::string content = read_small_file(path, kMaxAttachmentBytes);
    if (hex(sha256(content)) != file.sha256) {
      storage_error("{}: damaged: its SHA-256 is not that of the manifest", path.string());
    }
    return content;
  }
  storage_error("{}: the checkpoint has no {}", directory_.string(), name);
}

void CheckpointReader::verify_blocks(std::size_t shard) const {
  std::vector<std::byte> block;
  for (const SliceRecord& slice : indices_.at(shard).slices) {
    const std::uint64_t block_bytes = indices_[shard].crc_block_bytes;
    for (std::uint64_t i = 0; i < slice.crc32c.size(); ++i) {
      block.resize(std::min(block_bytes, slice.byte_length() - i * block_bytes));
      read_block({shard, &slice}, i, block);
    }
  }
}

std::vector<std::string> parameter_differences(const std::vector<ParameterRecord>& stored,
                                               const std::vector<ParameterRecord>& model) {
  std::map<std::string_view, const ParameterRecord*> in_checkpoint;
  for (const ParameterRecord& parameter : stored) in_checkpoint[parameter.name] = &parameter;
  std::vector<std::string> differences;
  for (const ParameterRecord& parameter : model) {
    const auto found = in_checkpoint.find(parameter.name);
    if (found == in_checkpoint.end()) {
      differences.push_back(
          fmt::format("{} {}: the checkpoint does not have it", parameter.name, parameter.shape.str()));
      continue;
    }
    if (found->second->shape != parameter.shape) {
      differences.push_back(fmt::format("{}: the model has shape {}, the checkpoint {}", parameter.name,
                                        parameter.shape.str(), found->second->shape.str()));
    }
    in_checkpoint.erase(found);
  }
  for (const ParameterRecord& parameter : stored) {
    if (in_checkpoint.contains(parameter.name)) {
      differences.push_back(fmt::format("{} {}: the model does not have it", parameter.name, parameter.shape.str()));
    }
  }
  return differences;
}

}  // namespace weft
