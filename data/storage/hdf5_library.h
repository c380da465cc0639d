// What reader and writer share of the HDF5 C library: start-up settings, the mutex, owned identifiers, error reports.
// For .cpp files of this folder and for tests that make unusual files.
#pragma once

#define H5_USE_110_API
#include <filesystem>
#include <hdf5.h>
#include <mutex>
#include <string_view>
#include <utility>

#include "data/storage/hdf5.h"

namespace weft::hdf5 {

// Held during every use of the library; the first one sets the library up.
std::unique_lock<std::recursive_mutex> lock_library();

// Throws with the library's innermost reason: "cannot <what> <object> of <path>: <reason>"; DiskFull for ENOSPC,
// EDQUOT.
[[noreturn]] void fail_with_library_error(std::string_view what, std::string_view object,
                                          const std::filesystem::path& path);

// An identifier that is closed when it goes out of scope.
class Id {
 public:
  using Close = herr_t (*)(hid_t);
  Id() = default;
  Id(hid_t id, Close close) : id_(id), close_(close) {}
  ~Id() { reset(); }
  Id(Id&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Id& operator=(Id&& other) noexcept {
    reset();
    id_ = std::exchange(other.id_, -1);
    close_ = other.close_;
    return *this;
  }
  hid_t get() const { return id_; }
  bool valid() const { return id_ >= 0; }
  // Closes now; false if the library reports an error.
  bool reset() { return id_ < 0 || close_(std::exchange(id_, -1)) >= 0; }

 private:
  hid_t id_ = -1;
  Close close_ = nullptr;
};

// The stored form of an element; not defined for text.
hid_t file_type(Hdf5Type type);
// A fixed-length, zero-padded UTF-8 string.
Id text_type(std::size_t length);

}  // namespace weft::hdf5
