#include <bit>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <sys/stat.h>
#include <unistd.h>

#include "autograd/check.h"
#include "data/storage/file.h"
#include "data/storage/hdf5.h"
#include "data/storage/hdf5_library.h"

namespace weft {

static_assert(std::endian::native == std::endian::little, "datasets are stored as they lie in memory");

using hdf5::fail_with_library_error;
using hdf5::Id;
using hdf5::lock_library;

namespace {

struct Descriptor {
  explicit Descriptor(int descriptor) : value(descriptor) {}
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int value;
};

void reserve(int descriptor, const std::filesystem::path& path, std::uint64_t bytes) {
  // The size stays as it is: the library takes what lies beyond for its own end of file.
  if (bytes == 0 || ::fallocate(descriptor, FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes)) == 0) return;
  if (errno == ENOSPC || errno == EDQUOT) fail_with_errno(fmt::format("reserve {} bytes for", bytes), path, errno);
}

}  // namespace

struct Hdf5Writer::Handle {
  struct Written {
    std::uint64_t offset = 0;
    std::uint64_t elements = 0;
    std::size_t element_bytes = 0;
  };

  std::filesystem::path path;
  Id file;
  std::map<std::string, Written> datasets;
  bool closed = false;

  Id create(const std::string& object, hid_t type, std::span<const std::uint64_t> dims) {
    WEFT_CHECK(!closed && object.starts_with('/'), "dataset {} of {}", object, path.string());
    WEFT_CHECK(dims.size() == 1 || dims.size() == 2, "dataset {}: {} extents", object, dims.size());
    const std::vector<hsize_t> extents(dims.begin(), dims.end());
    const Id space(H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr), H5Sclose);
    const Id links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
    const Id creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
    H5Pset_create_intermediate_group(links.get(), 1);
    H5Pset_layout(creation.get(), H5D_CONTIGUOUS);
    H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY);
    H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER);
    // The same content gives the same file.
    H5Pset_obj_track_times(creation.get(), false);
    Id dataset(H5Dcreate2(file.get(), object.c_str(), type, space.get(), links.get(), creation.get(), H5P_DEFAULT),
               H5Dclose);
    if (!dataset.valid()) fail_with_library_error("create dataset", object, path);
    Written written{0, 1, H5Tget_size(type)};
    for (const std::uint64_t extent : dims) written.elements *= extent;
    if (written.elements > 0) {
      const haddr_t offset = H5Dget_offset(dataset.get());
      if (offset == HADDR_UNDEF) fail_with_library_error("locate dataset", object, path);
      written.offset = offset;
    }
    datasets[object] = written;
    return dataset;
  }

  void set_attribute(const std::string& object, const std::string& name, hid_t type, const std::uint64_t* count,
                     const void* values) {
    const auto lock = lock_library();
    WEFT_CHECK(!closed, "attribute {} of {} after close", name, path.string());
    hsize_t extent = count == nullptr ? 1 : *count;
    const Id space(count == nullptr ? H5Screate(H5S_SCALAR) : H5Screate_simple(1, &extent, nullptr), H5Sclose);
    const Id attribute(H5Acreate_by_name(file.get(), object.c_str(), name.c_str(), type, space.get(), H5P_DEFAULT,
                                         H5P_DEFAULT, H5P_DEFAULT),
                       H5Aclose);
    if (!attribute.valid()) fail_with_library_error("create attribute " + name, object, path);
    if (extent > 0 && H5Awrite(attribute.get(), type, values) < 0) {
      fail_with_library_error("write attribute " + name, object, path);
    }
  }
};

Hdf5Writer::Hdf5Writer(const std::filesystem::path& path, std::uint64_t reserved_bytes)
    : handle_(std::make_unique<Handle>()) {
  const auto lock = lock_library();
  handle_->path = path;
  const Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_libver_bounds(access.get(), H5F_LIBVER_EARLIEST, H5F_LIBVER_V18);
  H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG);
  H5Pset_alignment(access.get(), 64 * 1024, 4096);
  // One process has the file open; advisory locks fail on some network file systems.
  H5Pset_file_locking(access.get(), false, true);
  // Created here and only filled by the library, so that a failure after creation leaves no file of ours and none of
  // others is touched. The space is tried before the library knows of the file, which it could not close on a full
  // disk, and taken after, because the library truncates the file.
  const Descriptor descriptor(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (descriptor.value < 0) fail_with_errno("create", path, errno);
  try {
    reserve(descriptor.value, path, reserved_bytes);
    handle_->file = Id(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()), H5Fclose);
    if (!handle_->file.valid()) fail_with_library_error("create", "", path);
    reserve(descriptor.value, path, reserved_bytes);
  } catch (const Error&) {
    ::unlink(path.c_str());
    throw;
  }
}

Hdf5Writer::~Hdf5Writer() {
  const auto lock = lock_library();
  if (handle_->closed) return;
  // Without its data the file leaves room for what the library writes when it closes.
  const bool is_emptied = ::truncate(handle_->path.c_str(), 0) == 0;
  static_cast<void>(is_emptied);
  handle_->file.reset();
  H5Eclear2(H5E_DEFAULT);
  ::unlink(handle_->path.c_str());
}

void Hdf5Writer::write_dataset(const std::string& object, Hdf5Type type, std::span<const std::uint64_t> dims,
                               std::span<const std::byte> bytes) {
  const auto lock = lock_library();
  const Id dataset = handle_->create(object, hdf5::file_type(type), dims);
  const auto& written = handle_->datasets[object];
  WEFT_CHECK(bytes.size() == written.elements * written.element_bytes, "dataset {}: {} bytes for {} elements of {}",
             object, bytes.size(), written.elements, name_of(type));
  if (bytes.empty()) return;
  if (H5Dwrite(dataset.get(), hdf5::file_type(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, bytes.data()) < 0) {
    fail_with_library_error("write dataset", object, handle_->path);
  }
}

void Hdf5Writer::create_dataset(const std::string& object, Hdf5Type type, std::uint64_t count) {
  const auto lock = lock_library();
  handle_->create(object, hdf5::file_type(type), std::span(&count, 1));
}

void Hdf5Writer::write_range(const std::string& object, std::uint64_t first, std::span<const std::byte> bytes) {
  const auto lock = lock_library();
  const auto found = handle_->datasets.find(object);
  WEFT_CHECK(!handle_->closed && found != handle_->datasets.end(), "no dataset {} was created", object);
  const auto& written = found->second;
  const std::uint64_t count = bytes.size() / written.element_bytes;
  WEFT_CHECK(
      bytes.size() % written.element_bytes == 0 && first <= written.elements && count <= written.elements - first,
      "dataset {} of {} elements: {} bytes at element {}", object, written.elements, bytes.size(), first);
  if (count == 0) return;
  const Id dataset(H5Dopen2(handle_->file.get(), object.c_str(), H5P_DEFAULT), H5Dclose);
  if (!dataset.valid()) fail_with_library_error("open dataset", object, handle_->path);
  const Id type(H5Dget_type(dataset.get()), H5Tclose);
  const Id in_file(H5Dget_space(dataset.get()), H5Sclose);
  const hsize_t start = first, extent = count;
  const Id in_memory(H5Screate_simple(1, &extent, nullptr), H5Sclose);
  H5Sselect_hyperslab(in_file.get(), H5S_SELECT_SET, &start, nullptr, &extent, nullptr);
  if (H5Dwrite(dataset.get(), type.get(), in_memory.get(), in_file.get(), H5P_DEFAULT, bytes.data()) < 0) {
    fail_with_library_error("write dataset", object, handle_->path);
  }
}

void Hdf5Writer::write_texts(const std::string& object, std::size_t length, std::span<const std::string> texts) {
  const auto lock = lock_library();
  std::vector<char> padded(length * texts.size(), '\0');
  for (std::size_t i = 0; i < texts.size(); ++i) {
    WEFT_CHECK(texts[i].size() <= length, "dataset {}: text {} has {} bytes, at most {} fit", object, i,
               texts[i].size(), length);
    std::memcpy(padded.data() + i * length, texts[i].data(), texts[i].size());
  }
  const Id type = hdf5::text_type(length);
  const std::uint64_t count = texts.size();
  const Id dataset = handle_->create(object, type.get(), std::span(&count, 1));
  if (count > 0 && H5Dwrite(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, padded.data()) < 0) {
    fail_with_library_error("write dataset", object, handle_->path);
  }
}

void Hdf5Writer::set_attribute(const std::string& object, const std::string& name, std::string_view text) {
  const auto lock = lock_library();
  const Id type = hdf5::text_type(text.size());
  const std::string terminated(text);
  handle_->set_attribute(object, name, type.get(), nullptr, terminated.c_str());
}

void Hdf5Writer::set_attribute(const std::string& object, const std::string& name, std::uint32_t value) {
  handle_->set_attribute(object, name, H5T_STD_U32LE, nullptr, &value);
}

void Hdf5Writer::set_attribute(const std::string& object, const std::string& name, std::int64_t value) {
  handle_->set_attribute(object, name, H5T_STD_I64LE, nullptr, &value);
}

void Hdf5Writer::set_attribute(const std::string& object, const std::string& name, std::uint64_t value) {
  handle_->set_attribute(object, name, H5T_STD_U64LE, nullptr, &value);
}

void Hdf5Writer::set_attribute(const std::string& object, const std::string& name,
                               std::span<const std::int64_t> values) {
  const std::uint64_t count = values.size();
  handle_->set_attribute(object, name, H5T_STD_I64LE, &count, values.data());
}

void Hdf5Writer::set_attribute(const std::string& object, const std::string& name,
                               std::span<const std::uint8_t> values) {
  const std::uint64_t count = values.size();
  handle_->set_attribute(object, name, H5T_STD_U8LE, &count, values.data());
}

std::uint64_t Hdf5Writer::dataset_offset(const std::string& object) const {
  const auto found = handle_->datasets.find(object);
  WEFT_CHECK(found != handle_->datasets.end(), "no dataset {} was created", object);
  return found->second.offset;
}

void Hdf5Writer::close() {
  const auto lock = lock_library();
  WEFT_CHECK(!handle_->closed, "second close of {}", handle_->path.string());
  if (!handle_->file.reset()) fail_with_library_error("close", "", handle_->path);
  // Gives reserved blocks beyond the end back.
  struct stat info {};
  if (::stat(handle_->path.c_str(), &info) != 0) fail_with_errno("examine", handle_->path, errno);
  if (::truncate(handle_->path.c_str(), info.st_size) != 0) fail_with_errno("truncate", handle_->path, errno);
  handle_->closed = true;
}

}  // namespace weft
