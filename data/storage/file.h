// Files as datasets and checkpoints need them: positional checked reads, exclusive creation, durable renames.
// Every failure is an Error of code storage whose message names the operation, the path and the system's reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "autograd/check.h"

namespace weft {

// No space or no quota left on the device.
class DiskFull : public Error {
 public:
  explicit DiskFull(const std::string& message) : Error(ExitCode::storage, message) {}
};

// Throws DiskFull for "no space" and "quota exceeded", Error (storage) otherwise: "cannot <what> <path>: <reason>".
[[noreturn]] void fail_with_errno(std::string_view what, const std::filesystem::path& path, int error_number);

// A regular file opened for reading. Reads are positional, so one object may serve several threads.
class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&& other) noexcept;

  const std::filesystem::path& path() const { return path_; }
  // Bytes, as found when the file was opened.
  std::uint64_t size() const { return size_; }
  // Fills `bytes` from `offset`; a range that does not lie inside the file is an error.
  void read_at(std::uint64_t offset, std::span<std::byte> bytes) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

// A file created for writing; it is an error if it exists. Unless close() succeeded, the destructor removes it.
class OutputFile {
 public:
  explicit OutputFile(const std::filesystem::path& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::uint64_t bytes_written() const { return bytes_written_; }
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  // Waits until the content is on the device. A failure is final: the file must be rewritten under another name.
  void fsync();
  void close();

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  bool closed_ = false;
  std::uint64_t bytes_written_ = 0;
};

// Opens, fsyncs and closes a file that a library has written.
void fsync_file(const std::filesystem::path& path);
// Makes the entries of a directory durable; file systems that cannot do this count as success.
void fsync_directory(const std::filesystem::path& path);
// Renames (replacing a file) within one file system; that the new name is there is durable.
void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to);
// The file has either its old content (or none) or the new one at every instant: temporary name, fsync, rename.
void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes);
void write_file_atomically(const std::filesystem::path& path, std::string_view text);

// The whole content; a file larger than `max_bytes` is an error.
std::string read_small_file(const std::filesystem::path& path, std::uint64_t max_bytes);

// What the file system that holds `path` has left for an unprivileged user. Inodes: 2^63-1 where they are not counted.
struct FreeSpace {
  std::uint64_t bytes = 0;
  std::uint64_t inodes = 0;
};
FreeSpace free_space(const std::filesystem::path& path);

// 64 random bits as 16 hexadecimal digits, for temporary names. Not part of any computed result.
std::string random_nonce();

}  // namespace weft
