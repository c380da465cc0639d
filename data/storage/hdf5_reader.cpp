#include <algorithm>
#include <cstring>
#include <set>

#include "autograd/check.h"
#include "data/storage/file.h"
#include "data/storage/hdf5.h"
#include "data/storage/hdf5_library.h"
#include "data/storage/text.h"
#include "data/storage/utf8.h"

namespace weft {

using hdf5::fail_with_library_error;
using hdf5::Id;
using hdf5::lock_library;

namespace {

constexpr std::size_t kMaxObjects = 1'000'000;
constexpr hsize_t kMaxAttributes = 64;
constexpr hsize_t kMaxAttributeBytes = 64 * 1024;

bool is_utf8(std::string_view text) {
  return valid_utf8_prefix(text) == text.size();
}

}  // namespace

struct Hdf5Reader::Handle {
  std::filesystem::path path;
  std::uint64_t file_bytes = 0;
  Id file;
  std::map<std::string, Hdf5Dataset> datasets;

  [[noreturn]] void refuse(const std::string& object, const std::string& what) const {
    storage_error("{}: object {}: {}", path.string(), printable(object), what);
  }

  // The closed list of stored types; anything else, committed types included, is refused.
  Hdf5Type checked_type(hid_t type, const std::string& object) const {
    if (H5Tcommitted(type) != 0) refuse(object, "a named type is not allowed");
    for (const Hdf5Type known : {Hdf5Type::u8, Hdf5Type::u16, Hdf5Type::u32, Hdf5Type::u64, Hdf5Type::i32,
                                 Hdf5Type::i64, Hdf5Type::f32, Hdf5Type::f64}) {
      if (H5Tequal(type, hdf5::file_type(known)) > 0) return known;
    }
    if (H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0) return Hdf5Type::text;
    refuse(object, "element type is neither a little-endian number of weft's list nor a fixed-length string");
  }

  void check_attributes(hid_t object, const std::string& name, hsize_t count) const {
    if (count > kMaxAttributes)
      refuse(name, fmt::format("{} attributes, at most {} are allowed", count, kMaxAttributes));
    for (hsize_t i = 0; i < count; ++i) {
      const Id attribute(H5Aopen_by_idx(object, ".", H5_INDEX_NAME, H5_ITER_INC, i, H5P_DEFAULT, H5P_DEFAULT),
                         H5Aclose);
      if (!attribute.valid()) fail_with_library_error("open an attribute", printable(name), path);
      const Id type(H5Aget_type(attribute.get()), H5Tclose);
      const Id space(H5Aget_space(attribute.get()), H5Sclose);
      if (!type.valid() || !space.valid()) fail_with_library_error("read an attribute", printable(name), path);
      checked_type(type.get(), name);
      const int rank = H5Sget_simple_extent_ndims(space.get());
      hsize_t extent = 1;
      if (H5Sget_simple_extent_type(space.get()) == H5S_NULL || rank > 1 || rank < 0) {
        refuse(name, "an attribute is neither a single value nor a list");
      }
      if (rank == 1 && H5Sget_simple_extent_dims(space.get(), &extent, nullptr) != 1) {
        fail_with_library_error("read an attribute", printable(name), path);
      }
      if (extent > kMaxAttributeBytes / std::max<hsize_t>(H5Tget_size(type.get()), 1)) {
        refuse(name, fmt::format("an attribute is larger than {} bytes", kMaxAttributeBytes));
      }
    }
  }

  void check_dataset(hid_t object, const std::string& name) {
    Hdf5Dataset dataset;
    const Id type(H5Dget_type(object), H5Tclose);
    const Id space(H5Dget_space(object), H5Sclose);
    const Id creation(H5Dget_create_plist(object), H5Pclose);
    if (!type.valid() || !space.valid() || !creation.valid()) {
      fail_with_library_error("read dataset", printable(name), path);
    }
    dataset.type = checked_type(type.get(), name);
    dataset.element_bytes = H5Tget_size(type.get());
    if (H5Pget_layout(creation.get()) != H5D_CONTIGUOUS) refuse(name, "storage is not contiguous");
    if (H5Pget_external_count(creation.get()) != 0) refuse(name, "external storage is not allowed");
    if (H5Pget_nfilters(creation.get()) != 0) refuse(name, "filters are not allowed");
    const int rank = H5Sget_simple_extent_ndims(space.get());
    if (rank < 0 || rank > 2 || H5Sget_simple_extent_type(space.get()) == H5S_NULL) {
      refuse(name, fmt::format("rank {}, at most 2 is allowed", rank));
    }
    std::array<hsize_t, 2> dims{};
    if (H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr) != rank) {
      fail_with_library_error("read the extents of", printable(name), path);
    }
    std::uint64_t bytes = dataset.element_bytes;
    for (int i = 0; i < rank; ++i) {
      const std::uint64_t extent = dims[static_cast<std::size_t>(i)];
      dataset.dims.push_back(extent);
      if (__builtin_mul_overflow(bytes, extent, &bytes)) refuse(name, "its extents overflow");
    }
    dataset.bytes = bytes;
    if (bytes > file_bytes) refuse(name, fmt::format("{} bytes in a file of {}", bytes, file_bytes));
    if (bytes > 0) {
      const haddr_t offset = H5Dget_offset(object);
      if (offset == HADDR_UNDEF) refuse(name, "its storage was never allocated");
      if (offset > file_bytes - bytes)
        refuse(name, fmt::format("{} bytes at offset {} of a file of {}", bytes, offset, file_bytes));
      dataset.offset = offset;
    }
    datasets.emplace(name, std::move(dataset));
  }

  struct Links {
    std::vector<std::string> names;
    std::string refused;
    bool too_many = false;
  };

  static herr_t collect_link(hid_t, const char* name, const H5L_info_t* info, void* out) {
    auto& links = *static_cast<Links*>(out);
    if (info->type != H5L_TYPE_HARD) {
      links.refused = name;
      return 1;
    }
    links.names.emplace_back(name);
    links.too_many = links.names.size() > kMaxObjects;
    return links.too_many ? 1 : 0;
  }

  void walk() {
    std::set<haddr_t> visited;
    std::vector<std::string> pending{"/"};
    while (!pending.empty()) {
      const std::string name = std::move(pending.back());
      pending.pop_back();
      const Id object(H5Oopen(file.get(), name.c_str(), H5P_DEFAULT), H5Oclose);
      H5O_info_t info{};
      if (!object.valid() || H5Oget_info2(object.get(), &info, H5O_INFO_BASIC | H5O_INFO_NUM_ATTRS) < 0) {
        fail_with_library_error("open", printable(name), path);
      }
      if (!visited.insert(info.addr).second) refuse(name, "it is linked more than once");
      if (visited.size() > kMaxObjects) refuse(name, fmt::format("more than {} objects", kMaxObjects));
      if (info.type != H5O_TYPE_GROUP && info.type != H5O_TYPE_DATASET) refuse(name, "it is neither group nor dataset");
      check_attributes(object.get(), name, info.num_attrs);
      if (info.type == H5O_TYPE_DATASET) {
        check_dataset(object.get(), name);
        continue;
      }
      Links links;
      if (H5Literate(object.get(), H5_INDEX_NAME, H5_ITER_INC, nullptr, collect_link, &links) < 0) {
        fail_with_library_error("list", printable(name), path);
      }
      const std::string prefix = name == "/" ? name : name + "/";
      if (!links.refused.empty()) refuse(prefix + links.refused, "only hard links are allowed");
      if (links.too_many || links.names.size() + pending.size() + visited.size() > kMaxObjects) {
        refuse(name, fmt::format("more than {} objects", kMaxObjects));
      }
      for (const std::string& link : links.names) {
        if (link.empty() || link == "." || link.find('/') != std::string::npos || !is_utf8(link)) {
          refuse(prefix + link, "its name is not allowed");
        }
        pending.push_back(prefix + link);
      }
    }
  }

  // The attribute's raw elements, after comparing its type.
  std::vector<std::byte> attribute(const std::string& object, const std::string& name, Hdf5Type expected) const {
    const auto lock = lock_library();
    if (H5Aexists_by_name(file.get(), object.c_str(), name.c_str(), H5P_DEFAULT) <= 0) {
      refuse(object, fmt::format("attribute {} is missing", name));
    }
    const Id attribute(H5Aopen_by_name(file.get(), object.c_str(), name.c_str(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
    const Id type(H5Aget_type(attribute.get()), H5Tclose);
    const Id space(H5Aget_space(attribute.get()), H5Sclose);
    const Hdf5Type found = checked_type(type.get(), object);
    if (found != expected) {
      refuse(object, fmt::format("attribute {} is {}, expected {}", name, name_of(found), name_of(expected)));
    }
    const hssize_t count = H5Sget_simple_extent_npoints(space.get());
    std::vector<std::byte> bytes(static_cast<std::size_t>(std::max<hssize_t>(count, 0)) * H5Tget_size(type.get()));
    if (!bytes.empty() && H5Aread(attribute.get(), type.get(), bytes.data()) < 0) {
      fail_with_library_error("read attribute " + name, object, path);
    }
    return bytes;
  }

  template <class T>
  std::vector<T> numbers(const std::string& object, const std::string& name, Hdf5Type type) const {
    const std::vector<std::byte> bytes = attribute(object, name, type);
    std::vector<T> values(bytes.size() / sizeof(T));
    if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }

  template <class T>
  T number(const std::string& object, const std::string& name, Hdf5Type type) const {
    const std::vector<T> values = numbers<T>(object, name, type);
    if (values.size() != 1) refuse(object, fmt::format("attribute {} has {} values, expected 1", name, values.size()));
    return values[0];
  }

  std::string text(const std::string& object, std::span<const std::byte> bytes) const {
    std::string value(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    value.resize(std::min(value.find('\0'), value.size()));
    if (!is_utf8(value)) refuse(object, "a text is not valid UTF-8");
    return value;
  }
};

Hdf5Reader::Hdf5Reader(const std::filesystem::path& path) : handle_(std::make_unique<Handle>()) {
  const auto lock = lock_library();
  handle_->path = path;
  {
    const InputFile file(path);
    handle_->file_bytes = file.size();
    constexpr std::string_view kSignature = "\x89HDF\r\n\x1a\n";
    std::array<char, 8> start{};
    if (file.size() >= start.size()) file.read_at(0, std::as_writable_bytes(std::span(start)));
    if (std::string_view(start.data(), start.size()) != kSignature) {
      storage_error("{}: not an HDF5 file (no signature at its start)", path.string());
    }
  }
  const Id access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG);
  H5Pset_file_locking(access.get(), false, true);
  handle_->file = Id(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose);
  if (!handle_->file.valid()) fail_with_library_error("open", "", path);
  const Id creation(H5Fget_create_plist(handle_->file.get()), H5Pclose);
  hsize_t user_block = 0;
  if (H5Pget_userblock(creation.get(), &user_block) < 0 || user_block != 0) {
    storage_error("{}: a user block is not allowed", path.string());
  }
  handle_->walk();
}

Hdf5Reader::~Hdf5Reader() {
  const auto lock = lock_library();
  handle_.reset();
}

std::uint64_t Hdf5Reader::file_bytes() const {
  return handle_->file_bytes;
}

const std::map<std::string, Hdf5Dataset>& Hdf5Reader::datasets() const {
  return handle_->datasets;
}

const Hdf5Dataset& Hdf5Reader::dataset(const std::string& object, Hdf5Type type) const {
  const auto found = handle_->datasets.find(object);
  if (found == handle_->datasets.end())
    storage_error("{}: dataset {} is missing", handle_->path.string(), printable(object));
  if (found->second.type != type) {
    handle_->refuse(object, fmt::format("elements are {}, expected {}", name_of(found->second.type), name_of(type)));
  }
  return found->second;
}

void Hdf5Reader::read(const std::string& object, std::uint64_t first, std::span<std::byte> bytes) const {
  const auto found = handle_->datasets.find(object);
  WEFT_CHECK(found != handle_->datasets.end(), "no dataset {} in {}", object, handle_->path.string());
  const Hdf5Dataset& dataset = found->second;
  WEFT_CHECK(bytes.size() % dataset.element_bytes == 0, "{} bytes of elements of {}", bytes.size(),
             dataset.element_bytes);
  const std::uint64_t elements = dataset.bytes / dataset.element_bytes;
  if (first > elements || bytes.size() / dataset.element_bytes > elements - first) {
    handle_->refuse(object, fmt::format("has {} elements; element {} and {} bytes from there were asked for", elements,
                                        first, bytes.size()));
  }
  // Contiguous and little-endian, so the bytes in the file are the elements.
  InputFile(handle_->path).read_at(dataset.offset + first * dataset.element_bytes, bytes);
}

std::vector<std::string> Hdf5Reader::read_texts(const std::string& object) const {
  const Hdf5Dataset& found = dataset(object, Hdf5Type::text);
  std::vector<std::byte> bytes(found.bytes);
  read(object, 0, bytes);
  std::vector<std::string> texts;
  for (std::size_t at = 0; at < bytes.size(); at += found.element_bytes) {
    texts.push_back(handle_->text(object, std::span(bytes).subspan(at, found.element_bytes)));
  }
  return texts;
}

bool Hdf5Reader::has_attribute(const std::string& object, const std::string& name) const {
  const auto lock = lock_library();
  return H5Aexists_by_name(handle_->file.get(), object.c_str(), name.c_str(), H5P_DEFAULT) > 0;
}

std::string Hdf5Reader::text_attribute(const std::string& object, const std::string& name) const {
  return handle_->text(object, handle_->attribute(object, name, Hdf5Type::text));
}

std::uint32_t Hdf5Reader::uint32_attribute(const std::string& object, const std::string& name) const {
  return handle_->number<std::uint32_t>(object, name, Hdf5Type::u32);
}

std::int64_t Hdf5Reader::int64_attribute(const std::string& object, const std::string& name) const {
  return handle_->number<std::int64_t>(object, name, Hdf5Type::i64);
}

std::uint64_t Hdf5Reader::uint64_attribute(const std::string& object, const std::string& name) const {
  return handle_->number<std::uint64_t>(object, name, Hdf5Type::u64);
}

std::vector<std::int64_t> Hdf5Reader::int64s_attribute(const std::string& object, const std::string& name) const {
  return handle_->numbers<std::int64_t>(object, name, Hdf5Type::i64);
}

std::vector<std::uint8_t> Hdf5Reader::bytes_attribute(const std::string& object, const std::string& name) const {
  return handle_->numbers<std::uint8_t>(object, name, Hdf5Type::u8);
}

}  // namespace weft
