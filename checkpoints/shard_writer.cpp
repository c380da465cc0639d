#include "checkpoints/shard_writer.h"

#include <algorithm>
#include <system_error>

#include "autograd/check.h"
#include "checkpoints/shard_index.h"
#include "data/storage/crc32c.h"
#include "data/storage/file.h"
#include "data/storage/sha256.h"

namespace weft {

namespace fs = std::filesystem;

namespace {

// Files of a writer that has failed are of no use to anybody.
class RemoveUnlessDone {
 public:
  ~RemoveUnlessDone() {
    std::error_code ignored;
    for (const fs::path& path : paths) fs::remove(path, ignored);
  }
  std::vector<fs::path> paths;
};

fs::path part_of(const fs::path& path) {
  return path.string() + ".part";
}

std::vector<SliceRecord> write_data(const ShardPlan& plan, const fs::path& path, std::span<const Slice> slices) {
  Hdf5Writer file(path, shard_bytes_bound(slices));
  file.set_attribute("/", "format", "weft-checkpoint");
  file.set_attribute("/", "version", std::uint32_t{1});
  file.set_attribute("/", "step", plan.step);
  file.set_attribute("/", "writer", std::int64_t{plan.writer});
  file.set_attribute("/", "nonce", plan.nonce);
  std::vector<SliceRecord> records;
  std::vector<std::byte> produced;
  for (const Slice& slice : slices) {
    std::span<const std::byte> bytes = slice.bytes;
    if (slice.produce) {
      produced.resize(slice.byte_count());
      slice.produce(produced);
      bytes = produced;
    }
    SliceRecord record{slice.kind,     slice.name,  slice.shape, slice.offset,
                       slice.length(), slice.dtype, 0,           block_checksums(bytes, plan.crc_block_bytes)};
    const std::string object = record.object();
    const auto count = static_cast<std::uint64_t>(record.length);
    file.write_dataset(object, stored_type(slice.dtype), std::span(&count, 1), bytes);
    file.set_attribute(object, "global_shape", std::span(slice.shape.begin(), slice.shape.end()));
    file.set_attribute(object, "flat_offset", slice.offset);
    file.set_attribute(object, "dtype", name_of(slice.dtype));
    file.set_attribute(object, "crc32c", record.crc32c.size() == 1 ? record.crc32c[0] : crc32c(bytes));
    record.byte_offset = file.dataset_offset(object);
    records.push_back(std::move(record));
  }
  file.close();
  return records;
}

// What the file says when read again must be what memory said: the library or the file system may have damaged it.
void compare_with_memory(const InputFile& file, std::span<const SliceRecord> records, std::uint64_t crc_block_bytes) {
  std::vector<std::byte> block;
  for (const SliceRecord& record : records) {
    for (std::size_t i = 0; i < record.crc32c.size(); ++i) {
      const std::uint64_t begin = i * crc_block_bytes;
      block.resize(std::min(crc_block_bytes, record.byte_length() - begin));
      file.read_at(record.byte_offset + begin, block);
      if (crc32c(block) != record.crc32c[i]) {
        storage_error("{}: {} read back is not what was written (block {})", file.path().string(), record.object(), i);
      }
    }
  }
}

}  // namespace

Hdf5Type stored_type(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return Hdf5Type::f64;
    case DType::f32:
      return Hdf5Type::f32;
    case DType::bf16:
      return Hdf5Type::u16;
    case DType::i32:
      return Hdf5Type::i32;
    case DType::i64:
      return Hdf5Type::i64;
  }
  fail(ExitCode::internal, "an element type without a stored form");
}

std::vector<std::uint32_t> block_checksums(std::span<const std::byte> bytes, std::uint64_t crc_block_bytes) {
  std::vector<std::uint32_t> sums;
  for (std::size_t at = 0; at < bytes.size(); at += crc_block_bytes) {
    sums.push_back(crc32c(bytes.subspan(at, std::min<std::size_t>(crc_block_bytes, bytes.size() - at))));
  }
  return sums;
}

std::uint64_t shard_bytes_bound(std::span<const Slice> slices) {
  // Object headers, group tables, alignment and the index's entry of a slice stay well below this (tested).
  constexpr std::uint64_t kOverheadOfSlice = 12 * 1024, kOverheadOfFile = 64 * 1024;
  std::uint64_t bytes = kOverheadOfFile;
  for (const Slice& slice : slices) bytes += slice.byte_count() + kOverheadOfSlice;
  return bytes;
}

ShardFile write_shard(const ShardPlan& plan, std::span<const Slice> slices) {
  const auto hook = [&](std::string_view point) {
    if (plan.hook) plan.hook(point);
  };
  ShardFile shard;
  shard.name = shard_name(plan.writer);
  shard.index_name = index_name(plan.writer);
  const fs::path shard_path = plan.directory / shard.name;
  const fs::path index_path = plan.directory / shard.index_name;
  RemoveUnlessDone cleanup;
  cleanup.paths = {part_of(shard_path), shard_path, part_of(index_path), index_path};

  ShardIndex index{plan.step, plan.writer, plan.nonce, plan.crc_block_bytes, {}};
  index.slices = write_data(plan, part_of(shard_path), slices);
  hook("shard: data written");
  {
    const InputFile file(part_of(shard_path));
    shard.bytes = file.size();
    shard.sha256 = hex(sha256_file(file.path()));
    compare_with_memory(file, index.slices, plan.crc_block_bytes);
  }
  hook("shard: verified");
  fsync_file(part_of(shard_path));
  hook("shard: synced");
  rename_durably(part_of(shard_path), shard_path);
  hook("shard: renamed");

  const std::string text = format_index(index);
  shard.index_sha256 = hex(sha256(text));
  OutputFile file(part_of(index_path));
  file.write(text);
  hook("index: written");
  file.fsync();
  file.close();
  hook("index: synced");
  rename_durably(part_of(index_path), index_path);
  hook("index: renamed");
  cleanup.paths.clear();
  return shard;
}

}  // namespace weft
