// A folder that is written beside its name and gets it when all is well.
#pragma once

#include <filesystem>
#include <memory>
#include <string_view>

namespace weft {

// While one lives, SIGINT, SIGTERM and SIGHUP remove what it has written, say so, and end the process with 128 +
// signal: nothing is left of a run that a user stopped. Those that the process ignores stay ignored. One at a time in a
// process.
class AsideFolder {
 public:
  // Makes OUT.LABEL-NONCE, and the folders above it. Error (config) if OUT is there already; Error (storage).
  AsideFolder(const std::filesystem::path& out, std::string_view label);
  // Removes the folder, unless it has its name or is kept.
  ~AsideFolder();
  AsideFolder(const AsideFolder&) = delete;
  AsideFolder& operator=(const AsideFolder&) = delete;

  const std::filesystem::path& path() const { return aside_; }
  // Error (config) if something has appeared under the name meanwhile.
  void take_name();
  // Even if take_name() failed afterwards, since it could not be made durable.
  bool named() const;
  // It stays where it is, for a user to look at, unless the process is stopped.
  void keep() { kept_ = true; }

 private:
  class Watch;

  std::filesystem::path out_, aside_;
  bool kept_ = false;
  std::unique_ptr<Watch> watch_;
};

}  // namespace weft
