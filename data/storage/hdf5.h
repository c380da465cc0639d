// Writing and checked reading of HDF5 files through the C library: numeric datasets in one contiguous piece,
// fixed-length strings, small attributes. Every failure is an Error (storage) that names file and object; no space left
// is a DiskFull.
//
// The library is not thread-safe as packaged, so each call takes one process-wide mutex. Plugins are disabled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

// Element types of datasets, stored little-endian.
enum class Hdf5Type : std::uint8_t { u8, u16, u32, u64, i32, i64, f32, f64, text };

// Bytes of an element; 0 for text, whose length belongs to the dataset.
constexpr std::size_t size_of(Hdf5Type type) {
  constexpr std::size_t sizes[] = {1, 2, 4, 8, 4, 8, 4, 8, 0};
  return sizes[static_cast<int>(type)];
}
constexpr std::string_view name_of(Hdf5Type type) {
  constexpr std::string_view names[] = {"u8", "u16", "u32", "u64", "i32", "i64", "f32", "f64", "text"};
  return names[static_cast<int>(type)];
}

// Writes a file that any HDF5 tool can read: earliest format version, datasets contiguous and allocated at once, those
// over 64 KiB aligned to 4096 bytes, never filled. Missing groups of a path are made. Objects are named "/a/b"; "/" is
// the root.
class Hdf5Writer {
 public:
  // It is an error if the file exists. The file system's blocks for a file of about `reserved_bytes` are taken at once,
  // so that a full disk shows here and not half-way; file systems that cannot reserve are left alone.
  explicit Hdf5Writer(const std::filesystem::path& path, std::uint64_t reserved_bytes = std::uint64_t{64} << 10);
  // Unless close() succeeded, removes the file.
  ~Hdf5Writer();
  Hdf5Writer(const Hdf5Writer&) = delete;
  Hdf5Writer& operator=(const Hdf5Writer&) = delete;

  // `dims` has one or two extents, which may be 0; `bytes` are the elements, row-major, in the host's (little-endian)
  // form.
  void write_dataset(const std::string& object, Hdf5Type type, std::span<const std::uint64_t> dims,
                     std::span<const std::byte> bytes);
  // A dataset of `count` elements that write_range fills piece by piece.
  void create_dataset(const std::string& object, Hdf5Type type, std::uint64_t count);
  void write_range(const std::string& object, std::uint64_t first, std::span<const std::byte> bytes);
  // Strings of at most `length` bytes of UTF-8, padded with zeros.
  void write_texts(const std::string& object, std::size_t length, std::span<const std::string> texts);

  void set_attribute(const std::string& object, const std::string& name, std::string_view text);
  void set_attribute(const std::string& object, const std::string& name, std::uint32_t value);
  void set_attribute(const std::string& object, const std::string& name, std::int64_t value);
  void set_attribute(const std::string& object, const std::string& name, std::uint64_t value);
  void set_attribute(const std::string& object, const std::string& name, std::span<const std::int64_t> values);
  void set_attribute(const std::string& object, const std::string& name, std::span<const std::uint8_t> values);

  // Where the dataset's bytes begin, from the start of the file; 0 for an empty dataset.
  std::uint64_t dataset_offset(const std::string& object) const;

  // Flushes and closes; the content is not yet durable (fsync_file).
  void close();

 private:
  struct Handle;
  std::unique_ptr<Handle> handle_;
};

struct Hdf5Dataset {
  Hdf5Type type = Hdf5Type::u8;
  std::size_t element_bytes = 1;
  std::vector<std::uint64_t> dims;  // none for a single value, else one or two extents
  std::uint64_t offset = 0;         // from the start of the file; 0 if empty
  std::uint64_t bytes = 0;
};

// Reads files of uncertain origin. Opening walks the whole file and refuses everything that Hdf5Writer does not write:
// soft, external and user-defined links, named types, objects linked twice, chunked, compact, compressed, virtual or
// external storage, variable-length and compound types, big-endian numbers, references, extents that overflow or do not
// lie inside the file, more than 10^6 objects, more than 64 attributes of an object, attributes over 64 KiB.
class Hdf5Reader {
 public:
  explicit Hdf5Reader(const std::filesystem::path& path);
  ~Hdf5Reader();
  Hdf5Reader(const Hdf5Reader&) = delete;
  Hdf5Reader& operator=(const Hdf5Reader&) = delete;

  std::uint64_t file_bytes() const;
  const std::map<std::string, Hdf5Dataset>& datasets() const;
  // Error (storage) if there is no such dataset, or its type is another one.
  const Hdf5Dataset& dataset(const std::string& object, Hdf5Type type) const;
  // Elements from `first`; `bytes` is a whole number of them.
  void read(const std::string& object, std::uint64_t first, std::span<std::byte> bytes) const;
  std::vector<std::string> read_texts(const std::string& object) const;

  bool has_attribute(const std::string& object, const std::string& name) const;
  // Error (storage) if the attribute is missing or of another kind. Texts are valid UTF-8.
  std::string text_attribute(const std::string& object, const std::string& name) const;
  std::uint32_t uint32_attribute(const std::string& object, const std::string& name) const;
  std::int64_t int64_attribute(const std::string& object, const std::string& name) const;
  std::uint64_t uint64_attribute(const std::string& object, const std::string& name) const;
  std::vector<std::int64_t> int64s_attribute(const std::string& object, const std::string& name) const;
  std::vector<std::uint8_t> bytes_attribute(const std::string& object, const std::string& name) const;

 private:
  struct Handle;
  std::unique_ptr<Handle> handle_;
};

// "1.10.8", for provenance.
std::string hdf5_version();

}  // namespace weft
