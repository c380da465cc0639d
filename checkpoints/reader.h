// Reading a checkpoint: validation first, then any flat interval of any stored array, whatever ranks wrote it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoints/manifest.h"
#include "checkpoints/shard_index.h"
#include "data/storage/file.h"

namespace weft {

// Whether the data that is read is compared with its checksums.
enum class BlockChecks : std::uint8_t { verify, trust };

class CheckpointReader {
 public:
  // Reads manifest and indices and checks that everything is there: digests, sizes, and that the slices of each stored
  // kind of each parameter tile it exactly. Error (storage) with the reason otherwise. The data itself is checked block
  // by block as it is read.
  explicit CheckpointReader(const std::filesystem::path& directory, BlockChecks checks = BlockChecks::verify);

  const std::filesystem::path& directory() const { return directory_; }
  std::int64_t step() const { return manifest_.step; }
  const std::string& digest() const { return manifest_.digest; }
  const Manifest& manifest() const { return manifest_; }
  // JSON objects as saved.
  const nlohmann::json& mesh() const { return *manifest_.mesh; }
  const nlohmann::json& state() const { return *manifest_.state; }
  const nlohmann::json& provenance() const { return *manifest_.provenance; }
  const std::vector<ParameterRecord>& parameters() const { return manifest_.parameters; }
  // By shard, as in the manifest.
  const std::vector<ShardIndex>& indices() const { return indices_; }

  bool has(std::string_view kind, std::string_view name) const;
  // Error (storage) if it is not stored.
  DType dtype(std::string_view kind, std::string_view name) const;
  // Elements [begin, end) of the flat array into `out`, which has exactly their bytes. Every checksum block that is
  // touched is verified, unless checks are off; Error (storage) on a mismatch. May be called from several threads.
  void read(std::string_view kind, std::string_view name, std::int64_t begin, std::int64_t end,
            std::span<std::byte> out) const;

  const std::vector<AttachedFile>& attachments() const { return manifest_.attachments; }
  // The content, checked against its digest. Error (storage) if it is not attached or damaged.
  std::string read_attachment(std::string_view name) const;

  // SHA-256 of the files (attachments too) i = part, part + parts, ...; Error (storage) on a mismatch.
  void verify_files(int part = 0, int parts = 1) const;
  // Checks every checksum block of every slice of one shard.
  void verify_blocks(std::size_t shard) const;

 private:
  struct Piece {
    std::size_t shard = 0;
    const SliceRecord* slice = nullptr;
  };
  using Key = std::pair<std::string, std::string>;  // kind, name

  const std::vector<Piece>& pieces(std::string_view kind, std::string_view name) const;
  void open_shards();
  void check_tiling();
  // Checksum block `i` of a slice into `block`, which has its size.
  void read_block(const Piece& piece, std::uint64_t i, std::span<std::byte> block) const;

  std::filesystem::path directory_;
  BlockChecks checks_;
  Manifest manifest_;
  std::vector<ShardIndex> indices_;
  std::vector<InputFile> files_;
  std::map<Key, std::vector<Piece>, std::less<>> arrays_;  // pieces by offset
};

// What differs between the stored parameters and the model's (names and shapes), one line each; empty if they agree.
std::vector<std::string> parameter_differences(const std::vector<ParameterRecord>& stored,
                                               const std::vector<ParameterRecord>& model);

}  // namespace weft
