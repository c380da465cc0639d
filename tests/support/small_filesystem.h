// A file system of a few mebibytes to fill up. Needs the right to mount; without it, tests skip and say so.
#pragma once

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <sys/mount.h>

namespace weft::testing_support {

class SmallFilesystem {
 public:
  SmallFilesystem(const std::filesystem::path& directory, std::size_t bytes) : directory_(directory) {
    std::filesystem::create_directories(directory);
    const std::string options = "size=" + std::to_string(bytes);
    mounted_ = ::mount("tmpfs", directory.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, options.c_str()) == 0;
    if (!mounted_) reason_ = std::strerror(errno);
  }
  ~SmallFilesystem() {
    if (mounted_) ::umount2(directory_.c_str(), MNT_DETACH);
  }
  SmallFilesystem(const SmallFilesystem&) = delete;
  SmallFilesystem& operator=(const SmallFilesystem&) = delete;

  bool mounted() const { return mounted_; }
  const std::string& reason() const { return reason_; }
  const std::filesystem::path& directory() const { return directory_; }

 private:
  std::filesystem::path directory_;
  bool mounted_ = false;
  std::string reason_;
};

}  // namespace weft::testing_support
