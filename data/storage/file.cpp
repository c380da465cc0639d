#include "data/storage/file.h"

#include <cerrno>
#include <fcntl.h>
#include <limits>
#include <random>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <system_error>
#include <unistd.h>
#include <utility>

namespace weft {

namespace {

// Linux transfers at most 2^31 - 4096 bytes a call; smaller blocks keep interruptions cheap.
constexpr std::size_t kMaxTransfer = std::size_t{1} << 30;

std::filesystem::path directory_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

int open_retrying(const std::filesystem::path& path, int flags, mode_t mode = 0) {
  for (;;) {
    const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC, mode);
    if (descriptor >= 0 || errno != EINTR) return descriptor;
  }
}

}  // namespace

void fail_with_errno(std::string_view what, const std::filesystem::path& path, int error_number) {
  const std::string message =
      fmt::format("cannot {} {}: {}", what, path.string(), std::generic_category().message(error_number));
  if (error_number == ENOSPC || error_number == EDQUOT) throw DiskFull(message);
  throw Error(ExitCode::storage, message);
}

InputFile::InputFile(const std::filesystem::path& path) : path_(path) {
  // Non-blocking, so that a FIFO in place of a file is refused below instead of hanging the open.
  descriptor_ = open_retrying(path, O_RDONLY | O_NONBLOCK);
  if (descriptor_ < 0) fail_with_errno("open", path, errno);
  struct stat info {};
  const int status = ::fstat(descriptor_, &info);
  const int error_number = errno;
  if (status != 0 || !S_ISREG(info.st_mode)) {
    ::close(descriptor_);
    if (status != 0) fail_with_errno("examine", path, error_number);
    storage_error("cannot read {}: it is not a regular file", path.string());
  }
  size_ = static_cast<std::uint64_t>(info.st_size);
}

InputFile::~InputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), size_(other.size_) {}

InputFile& InputFile::operator=(InputFile&& other) noexcept {
  if (this != &other) {
    if (descriptor_ >= 0) ::close(descriptor_);
    path_ = std::move(other.path_);
    descriptor_ = std::exchange(other.descriptor_, -1);
    size_ = other.size_;
  }
  return *this;
}

void InputFile::read_at(std::uint64_t offset, std::span<std::byte> bytes) const {
  if (offset > size_ || bytes.size() > size_ - offset) {
    storage_error("cannot read {} bytes at offset {} of {}: the file has {} bytes", bytes.size(), offset,
                  path_.string(), size_);
  }
  while (!bytes.empty()) {
    const ssize_t n =
        ::pread(descriptor_, bytes.data(), std::min(bytes.size(), kMaxTransfer), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_with_errno(fmt::format("read {} bytes at offset {} of", bytes.size(), offset), path_, errno);
    if (n == 0) storage_error("cannot read offset {} of {}: the file has become shorter", offset, path_.string());
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
}

OutputFile::OutputFile(const std::filesystem::path& path) : path_(path) {
  descriptor_ = open_retrying(path, O_WRONLY | O_CREAT | O_EXCL, 0666);
  if (descriptor_ < 0) fail_with_errno("create", path, errno);
}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!closed_) ::unlink(path_.c_str());
}

void OutputFile::write(std::span<const std::byte> bytes) {
  WEFT_CHECK(descriptor_ >= 0, "write to {} after close", path_.string());
  while (!bytes.empty()) {
    const ssize_t n = ::write(descriptor_, bytes.data(), std::min(bytes.size(), kMaxTransfer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_with_errno("write to", path_, errno);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    bytes_written_ += static_cast<std::uint64_t>(n);
  }
}

void OutputFile::fsync() {
  WEFT_CHECK(descriptor_ >= 0, "fsync of {} after close", path_.string());
  if (::fsync(descriptor_) != 0) fail_with_errno("fsync", path_, errno);
}

void OutputFile::close() {
  WEFT_CHECK(descriptor_ >= 0, "second close of {}", path_.string());
  // Linux frees the descriptor even when close reports an error, so it is never closed twice.
  if (::close(std::exchange(descriptor_, -1)) != 0) fail_with_errno("close", path_, errno);
  closed_ = true;
}

void fsync_file(const std::filesystem::path& path) {
  const int descriptor = open_retrying(path, O_RDONLY);
  if (descriptor < 0) fail_with_errno("open", path, errno);
  const int status = ::fsync(descriptor);
  const int error_number = errno;
  ::close(descriptor);
  if (status != 0) fail_with_errno("fsync", path, error_number);
}

void fsync_directory(const std::filesystem::path& path) {
  const int descriptor = open_retrying(path, O_RDONLY | O_DIRECTORY);
  if (descriptor < 0) fail_with_errno("open directory", path, errno);
  const int status = ::fsync(descriptor);
  const int error_number = errno;
  ::close(descriptor);
  if (status != 0 && error_number != EINVAL && error_number != ENOTSUP && error_number != EBADF) {
    fail_with_errno("fsync directory", path, error_number);
  }
}

void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    fail_with_errno(fmt::format("rename {} to", from.string()), to, errno);
  }
  fsync_directory(directory_of(to));
}

void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  std::filesystem::path temporary = path;
  temporary += ".tmp-" + random_nonce();
  OutputFile file(temporary);
  file.write(bytes);
  file.fsync();
  file.close();
  try {
    rename_durably(temporary, path);
  } catch (const Error&) {
    ::unlink(temporary.c_str());
    throw;
  }
}

void write_file_atomically(const std::filesystem::path& path, std::string_view text) {
  write_file_atomically(path, std::as_bytes(std::span(text)));
}

std::string read_small_file(const std::filesystem::path& path, std::uint64_t max_bytes) {
  const InputFile file(path);
  if (file.size() > max_bytes) {
    storage_error("{} has {} bytes, at most {} are expected", path.string(), file.size(), max_bytes);
  }
  std::string text(static_cast<std::size_t>(file.size()), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)));
  return text;
}

FreeSpace free_space(const std::filesystem::path& path) {
  struct statvfs info {};
  if (::statvfs(path.c_str(), &info) != 0) fail_with_errno("ask for the free space of", path, errno);
  constexpr auto kUncounted = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  return {static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize,
          info.f_files == 0 ? kUncounted : static_cast<std::uint64_t>(info.f_favail)};
}

std::string random_nonce() {
  std::random_device device;
  const std::uint64_t value = (std::uint64_t{device()} << 32) | device();
  return fmt::format("{:016x}", value);
}

}  // namespace weft
