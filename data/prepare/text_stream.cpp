#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <string_view>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "autograd/check.h"
#include "data/prepare/input.h"
#include "data/storage/file.h"

namespace weft {

namespace {

constexpr std::size_t kBlock = std::size_t{1} << 20;
// Output that is allowed whatever the input's size, so that small repetitive files pass.
constexpr std::int64_t kFreeExpansion = std::int64_t{64} << 20;

enum class Packed : std::uint8_t { none, gzip, zstd };

Packed recognise(std::string_view head) {
  if (head.starts_with("\x1f\x8b")) return Packed::gzip;
  if (head.starts_with("\x28\xb5\x2f\xfd")) return Packed::zstd;
  // A skippable frame, with which some programs begin zstd files.
  if (head.size() >= 4 && (head[0] & 0xf0) == 0x50 && head.substr(1, 3) == "\x2a\x4d\x18") return Packed::zstd;
  return Packed::none;
}

// Packed forms that are told from text by their first bytes, but not unpacked here.
struct ForeignForm {
  std::string_view magic;
  std::string_view name;
  std::string_view unpack;  // the command that writes the text to its standard output
};
constexpr std::array<ForeignForm, 4> kForeignForms = {{{"\xfd\x37\x7a\x58\x5a", "xz", "xz -dc"},
                                                       {"BZh91AY&SY", "bzip2", "bzip2 -dc"},
                                                       {"\x04\x22\x4d\x18", "lz4", "lz4 -dc"},
                                                       {"PK\x03\x04", "zip", "unzip -p"}}};
constexpr std::size_t kLongestMagic = 10;

void refuse_foreign(const std::string& path, std::string_view head) {
  for (const ForeignForm& form : kForeignForms) {
    if (!head.starts_with(form.magic)) continue;
    config_error("{}: packed with {}, which this build does not read; pipe it in: {} FILE | weft prepare --out DIR -",
                 path, form.name, form.unpack);
  }
}

}  // namespace

struct TextStream::Impl {
  std::string path;
  std::int64_t max_expansion = 0;
  int descriptor = -1;
  bool raw_end = false;
  std::int64_t raw_bytes = 0;
  std::int64_t text_bytes = 0;
  Sha256 hash;
  std::vector<char> block = std::vector<char>(kBlock);
  std::size_t block_at = 0;  // unread part of the block
  std::size_t block_end = 0;
  Packed packed = Packed::none;
  bool inside_member = false;  // compressed data has begun a member or frame that has not ended
  z_stream gzip{};
  ZSTD_DStream* zstd = nullptr;

  ~Impl() {
    if (packed == Packed::gzip) inflateEnd(&gzip);
    if (zstd != nullptr) ZSTD_freeDStream(zstd);
    if (descriptor > 0) ::close(descriptor);
  }

  void read_raw(std::span<char> into, std::size_t& got) {
    got = 0;
    for (;;) {
      const ssize_t n = ::read(descriptor, into.data(), into.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail_with_errno("read", path, errno);
      got = static_cast<std::size_t>(n);
      break;
    }
    if (got == 0) raw_end = true;
    raw_bytes += static_cast<std::int64_t>(got);
    hash.update(std::as_bytes(into.first(got)));
  }

  void refill() {
    if (block_at < block_end || raw_end) return;
    block_at = 0;
    read_raw(block, block_end);
  }

  void start() {
    // A pipe may deliver its first bytes one by one.
    while (block_end < kLongestMagic && !raw_end) {
      std::size_t got = 0;
      read_raw(std::span(block).subspan(block_end), got);
      block_end += got;
    }
    const std::string_view head(block.data(), block_end);
    refuse_foreign(path, head);
    packed = recognise(head);
    if (packed == Packed::gzip && inflateInit2(&gzip, 15 + 16) != Z_OK) {
      packed = Packed::none;
      fail(ExitCode::internal, "zlib cannot start");
    }
    if (packed == Packed::zstd) {
      zstd = ZSTD_createDStream();
      WEFT_CHECK(zstd != nullptr, "zstd cannot start");
    }
  }

  std::size_t read_plain(std::span<char> bytes) {
    if (block_at < block_end) {  // what start() has read ahead
      const std::size_t n = std::min(bytes.size(), block_end - block_at);
      std::memcpy(bytes.data(), block.data() + block_at, n);
      block_at += n;
      return n;
    }
    std::size_t got = 0;
    if (!raw_end) read_raw(bytes, got);
    return got;
  }

  [[noreturn]] void fail_packed(const char* kind, const char* what) const {
    config_error("{}: {} data {} near byte {} of the file", path, kind, what,
                 raw_bytes - static_cast<std::int64_t>(block_end - block_at));
  }

  std::size_t read_gzip(std::span<char> bytes) {
    gzip.next_out = reinterpret_cast<Bytef*>(bytes.data());
    gzip.avail_out = static_cast<uInt>(bytes.size());
    while (gzip.avail_out == bytes.size()) {
      refill();
      if (block_at == block_end) {
        if (inside_member) fail_packed("gzip", "is truncated");
        return 0;
      }
      if (!inside_member && raw_bytes > 0) inside_member = true;
      gzip.next_in = reinterpret_cast<Bytef*>(block.data() + block_at);
      gzip.avail_in = static_cast<uInt>(block_end - block_at);
      const int status = inflate(&gzip, Z_NO_FLUSH);
      block_at = block_end - gzip.avail_in;
      if (status == Z_STREAM_END) {
        inside_member = false;
        inflateReset(&gzip);
      } else if (status != Z_OK && status != Z_BUF_ERROR) {
        fail_packed("gzip", "is damaged");
      }
    }
    return bytes.size() - gzip.avail_out;
  }

  std::size_t read_zstd(std::span<char> bytes) {
    ZSTD_outBuffer out{bytes.data(), bytes.size(), 0};
    while (out.pos == 0) {
      refill();
      // Without input the decoder may still hold output of a frame that has not ended.
      const bool ended = block_at == block_end;
      if (ended && !inside_member) return 0;
      ZSTD_inBuffer in{block.data() + block_at, block_end - block_at, 0};
      const std::size_t status = ZSTD_decompressStream(zstd, &out, &in);
      if (ZSTD_isError(status)) fail_packed("zstd", ZSTD_getErrorName(status));
      block_at += in.pos;
      inside_member = status != 0;
      if (ended && inside_member && out.pos == 0) fail_packed("zstd", "is truncated");
    }
    return out.pos;
  }
};

void check_packing(const std::string& path) {
  const InputFile file(path);
  std::array<char, kLongestMagic> bytes{};
  const std::string_view head(bytes.data(), std::min<std::uint64_t>(bytes.size(), file.size()));
  file.read_at(0, std::as_writable_bytes(std::span(bytes).first(head.size())));
  refuse_foreign(path, head);
  const bool is_gzip = path.ends_with(".gz");
  if (!is_gzip && !path.ends_with(".zst")) return;
  if (recognise(head) == (is_gzip ? Packed::gzip : Packed::zstd)) return;
  config_error("{}: named {}, but its {} bytes are no {} data; fetch it again, or rename it if it is something else",
               path, is_gzip ? ".gz" : ".zst", file.size(), is_gzip ? "gzip" : "zstd");
}

TextStream::TextStream(const PrepareInput& input, std::int64_t max_expansion) : impl_(std::make_unique<Impl>()) {
  impl_->path = input.path == "-" ? "standard input" : input.path;
  impl_->max_expansion = max_expansion;
  impl_->descriptor = input.path == "-" ? STDIN_FILENO : ::open(input.path.c_str(), O_RDONLY | O_CLOEXEC);
  if (impl_->descriptor < 0) fail_with_errno("open", input.path, errno);
  impl_->start();
}

TextStream::~TextStream() = default;

std::size_t TextStream::read(std::span<char> bytes) {
  // zlib counts with 32 bits.
  bytes = bytes.first(std::min(bytes.size(), std::size_t{1} << 30));
  std::size_t n = 0;
  switch (impl_->packed) {
    case Packed::none:
      return impl_->read_plain(bytes);
    case Packed::gzip:
      n = impl_->read_gzip(bytes);
      break;
    case Packed::zstd:
      n = impl_->read_zstd(bytes);
      break;
  }
  impl_->text_bytes += static_cast<std::int64_t>(n);
  if (impl_->text_bytes > kFreeExpansion && impl_->text_bytes / impl_->max_expansion > impl_->raw_bytes) {
    config_error("{}: {} bytes unpack to more than {}, over {} times as many; if it is meant to, unpack it first",
                 impl_->path, impl_->raw_bytes, impl_->text_bytes, impl_->max_expansion);
  }
  return n;
}

std::int64_t TextStream::raw_bytes() const {
  return impl_->raw_bytes;
}
Sha256::Digest TextStream::raw_digest() {
  return impl_->hash.finish();
}

}  // namespace weft
