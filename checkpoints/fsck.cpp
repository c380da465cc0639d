#include "checkpoints/fsck.h"

#include <algorithm>
#include <vector>

#include "autograd/check.h"
#include "checkpoints/layout.h"
#include "checkpoints/shard_writer.h"
#include "data/storage/crc32c.h"
#include "data/storage/hdf5.h"

namespace weft {

namespace fs = std::filesystem;

namespace {

template <class A, class B>
void require_equal(const std::string& where, std::string_view what, const A& file, const B& index) {
  if (file != index) storage_error("{}: {} is {} in the HDF5 file, {} in the index", where, what, file, index);
}

// Good checkpoints are described, bad ones accused, in one line.
bool check_one(const fs::path& directory, const PrintLine& print) {
  try {
    const CheckpointReader reader(directory);
    reader.verify_files();
    std::uint64_t bytes = 0;
    for (std::size_t shard = 0; shard < reader.indices().size(); ++shard) {
      reader.verify_blocks(shard);
      compare_with_hdf5(reader, shard);
      bytes += reader.manifest().files[shard].bytes;
    }
    for (const AttachedFile& file : reader.attachments()) bytes += file.bytes;
    print(fmt::format("ok   {}: step {}, {} parameters, {} shard{}, {} bytes", directory.string(), reader.step(),
                      reader.parameters().size(), reader.indices().size(), reader.indices().size() == 1 ? "" : "s",
                      bytes));
    return true;
  } catch (const Error& error) {
    print(fmt::format("BAD  {}: {}", directory.string(), error.what()));
    return false;
  }
}

bool is_shard_name(const std::string& name) {
  return name.starts_with("shard_") && name.ends_with(".h5");
}

}  // namespace

void compare_with_hdf5(const CheckpointReader& reader, std::size_t shard) {
  const ShardIndex& index = reader.indices().at(shard);
  const std::string where = (reader.directory() / reader.manifest().files[shard].name).string();
  const Hdf5Reader file(where);
  require_equal(where, "format", file.text_attribute("/", "format"), std::string("weft-checkpoint"));
  require_equal(where, "version", file.uint32_attribute("/", "version"), 1u);
  require_equal(where, "step", file.int64_attribute("/", "step"), index.step);
  require_equal(where, "writer", file.int64_attribute("/", "writer"), index.writer);
  require_equal(where, "nonce", file.text_attribute("/", "nonce"), index.nonce);
  require_equal(where, "the number of datasets", file.datasets().size(), index.slices.size());
  std::vector<std::byte> block(std::size_t{1} << 20);
  for (const SliceRecord& slice : index.slices) {
    const std::string object = slice.object();
    const std::string at = fmt::format("{}: {}", where, object);
    const Hdf5Dataset& dataset = file.dataset(object, stored_type(slice.dtype));
    require_equal(at, "the number of bytes", dataset.bytes, slice.byte_length());
    require_equal(at, "the offset", dataset.offset, slice.byte_offset);
    require_equal(at, "dtype", file.text_attribute(object, "dtype"), name_of(slice.dtype));
    require_equal(at, "flat_offset", file.int64_attribute(object, "flat_offset"), slice.offset);
    const std::vector<std::int64_t> shape = file.int64s_attribute(object, "global_shape");
    if (!std::equal(shape.begin(), shape.end(), slice.shape.begin(), slice.shape.end())) {
      storage_error("{}: global_shape differs from the index, which says {}", at, slice.shape.str());
    }
    std::uint32_t crc = 0;
    for (std::uint64_t done = 0; done < dataset.bytes;) {
      const std::span<std::byte> part(block.data(), std::min<std::uint64_t>(block.size(), dataset.bytes - done));
      file.read(object, done / dataset.element_bytes, part);
      crc = crc32c(part, crc);
      done += part.size();
    }
    require_equal(at, "crc32c", file.uint32_attribute(object, "crc32c"), crc);
  }
}

CheckpointPath classify_checkpoint_path(const fs::path& path) {
  const std::string name = path.filename().string();
  if (fs::is_regular_file(path)) {
    if (name == kManifestName) return CheckpointPath::checkpoint;
    return is_shard_name(name) ? CheckpointPath::shard : CheckpointPath::none;
  }
  if (!fs::is_directory(path)) return CheckpointPath::none;
  if (step_of_directory_name(name) >= 0 || fs::exists(path / kManifestName)) return CheckpointPath::checkpoint;
  return fs::is_directory(checkpoints_directory(run_of(path))) ? CheckpointPath::run : CheckpointPath::none;
}

fs::path run_of(const fs::path& path) {
  // A trailing slash leaves an empty file name.
  const fs::path clean = path.has_filename() ? path : path.parent_path();
  if (clean.filename() != "checkpoints") return clean;
  return clean.has_parent_path() ? clean.parent_path() : fs::path(".");
}

bool fsck(const fs::path& path, const PrintLine& print) {
  switch (classify_checkpoint_path(path)) {
    case CheckpointPath::checkpoint:
      return check_one(fs::is_directory(path) ? path : path.parent_path(), print);
    case CheckpointPath::run:
      break;
    case CheckpointPath::shard:
    case CheckpointPath::none:
      storage_error("{} is neither a run nor a checkpoint", path.string());
  }
  const fs::path run = run_of(path);
  const std::vector<CheckpointEntry> entries = list_checkpoints(run);
  bool all_good = !entries.empty();
  for (const CheckpointEntry& entry : entries) all_good = check_one(entry.directory, print) && all_good;
  for (const fs::path& debris : list_debris(run)) {
    print(fmt::format("     {}: left by an interrupted save or deletion; removed at the next start", debris.string()));
  }
  if (entries.empty()) print(fmt::format("BAD  {}: no checkpoints", checkpoints_directory(run).string()));
  return all_good;
}

}  // namespace weft
