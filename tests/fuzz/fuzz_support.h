// What fuzz targets have in common. A target feeds bytes to one parser, which accepts them or throws an Error that a
// user could read; anything else is a finding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <sys/mman.h>
#include <unistd.h>

#include "autograd/check.h"

namespace weft::fuzz {

// A property that does not hold is a finding, too.
inline void expect(bool holds, const char* property) {
  if (holds) return;
  std::fprintf(stderr, "broken property: %s\n", property);
  std::abort();
}

// Calls f and returns whether it accepted its input. Errors must be the user's (config or storage) and printable.
template <class F>
bool accepts(F&& f) {
  try {
    f();
    return true;
  } catch (const Error& error) {
    expect(error.code() == ExitCode::config || error.code() == ExitCode::storage, "errors are the user's");
    const std::string_view message = error.what();
    for (const char c : message) {
      const auto byte = static_cast<unsigned char>(c);
      expect(byte >= 0x20 && byte != 0x7f, "messages are printable");
    }
    expect(!message.empty() && message.size() < 4096, "messages are short");
    return false;
  }
}

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// A file in memory under a path, for parsers that open files. One object serves all inputs of a process.
class MemoryFile {
 public:
  MemoryFile() : descriptor_(::memfd_create("fuzz", 0)) { expect(descriptor_ >= 0, "memfd_create"); }
  std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }
  void set(std::string_view bytes) const {
    expect(::ftruncate(descriptor_, 0) == 0, "ftruncate");
    expect(::pwrite(descriptor_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()), "pwrite");
  }

 private:
  int descriptor_;
};

}  // namespace weft::fuzz
