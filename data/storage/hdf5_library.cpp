#include "data/storage/hdf5_library.h"

#include <cerrno>
#include <string>

#include "autograd/check.h"
#include "data/storage/file.h"

namespace weft {

namespace hdf5 {

namespace {

void set_up_library() {
  // Every file is closed by its owner. At exit the library would close again what a full disk has kept it from closing,
  // and crash.
  H5dont_atexit();
  H5open();
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  // Filters and drivers from shared libraries would run code that a file names.
  H5PLset_loading_state(0);
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  const bool recent = major > 1 || (major == 1 && (minor > 10 || (minor == 10 && release >= 7)));
  if (!recent) storage_error("the HDF5 library is {}.{}.{}; weft needs 1.10.7 or later", major, minor, release);
}

herr_t innermost(unsigned n, const H5E_error2_t* error, void* text) {
  if (n == 0 && error->desc != nullptr) *static_cast<std::string*>(text) = error->desc;
  return 0;
}

}  // namespace

std::unique_lock<std::recursive_mutex> lock_library() {
  static std::recursive_mutex mutex;
  std::unique_lock lock(mutex);
  static const bool ready = (set_up_library(), true);
  static_cast<void>(ready);
  return lock;
}

void fail_with_library_error(std::string_view what, std::string_view object, const std::filesystem::path& path) {
  std::string reason = "unknown reason";
  // Upward: the first entry is where the error arose, and holds the system's error number if there was one.
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, innermost, &reason);
  H5Eclear2(H5E_DEFAULT);
  const std::string operation =
      object.empty() || object == "/" ? std::string(what) : fmt::format("{} {} of", what, object);
  for (const int number : {ENOSPC, EDQUOT}) {
    if (reason.find(fmt::format("errno = {},", number)) != std::string::npos) fail_with_errno(operation, path, number);
  }
  storage_error("cannot {} {}: {}", operation, path.string(), reason);
}

hid_t file_type(Hdf5Type type) {
  switch (type) {
    case Hdf5Type::u8:
      return H5T_STD_U8LE;
    case Hdf5Type::u16:
      return H5T_STD_U16LE;
    case Hdf5Type::u32:
      return H5T_STD_U32LE;
    case Hdf5Type::u64:
      return H5T_STD_U64LE;
    case Hdf5Type::i32:
      return H5T_STD_I32LE;
    case Hdf5Type::i64:
      return H5T_STD_I64LE;
    case Hdf5Type::f32:
      return H5T_IEEE_F32LE;
    case Hdf5Type::f64:
      return H5T_IEEE_F64LE;
    case Hdf5Type::text:
      break;
  }
  fail(ExitCode::internal, "texts have no common HDF5 type");
}

Id text_type(std::size_t length) {
  Id type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type.get(), std::max<std::size_t>(length, 1));
  H5Tset_strpad(type.get(), H5T_STR_NULLPAD);
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  return type;
}

}  // namespace hdf5

std::string hdf5_version() {
  const auto lock = hdf5::lock_library();
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return fmt::format("{}.{}.{}", major, minor, release);
}

}  // namespace weft
