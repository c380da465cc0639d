// A file system of a few mebibytes to fill up or write-protect. Needs the right to mount; without it, tests skip and
// say so.
#pragma once

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <sys/mount.h>

namespace weft::testing_support {

class SmallFilesystem {
 public:
  // `inodes` 0: as many as fit.
  SmallFilesystem(const std::filesystem::path& directory, std::size_t bytes, std::size_t inodes = 0)
      : directory_(directory), options_("size=" + std::to_string(bytes) + ",nr_inodes=" + std::to_string(inodes)) {
    std::filesystem::create_directories(directory);
    mounted_ = ::mount("tmpfs", directory.c_str(), "tmpfs", kFlags, options_.c_str()) == 0;
    if (!mounted_) reason_ = std::strerror(errno);
  }
  ~SmallFilesystem() {
    if (mounted_) ::umount2(directory_.c_str(), MNT_DETACH);
  }
  SmallFilesystem(const SmallFilesystem&) = delete;
  SmallFilesystem& operator=(const SmallFilesystem&) = delete;

  bool set_read_only(bool read_only) const {
    const unsigned long protection = read_only ? MS_RDONLY : 0;
    return ::mount("tmpfs", directory_.c_str(), "tmpfs", kFlags | MS_REMOUNT | protection, options_.c_str()) == 0;
  }

  bool mounted() const { return mounted_; }
  const std::string& reason() const { return reason_; }
  const std::filesystem::path& directory() const { return directory_; }

 private:
  static constexpr unsigned long kFlags = MS_NOSUID | MS_NODEV;
  std::filesystem::path directory_;
  std::string options_;
  bool mounted_ = false;
  std::string reason_;
};

}  // namespace weft::testing_support
