#include "data/storage/sha256.h"

#include <algorithm>
#include <openssl/evp.h>
#include <vector>

#include "autograd/check.h"
#include "data/storage/file.h"

namespace weft {

struct Sha256::Context {
  EVP_MD_CTX* evp = EVP_MD_CTX_new();
  Context() = default;
  ~Context() { EVP_MD_CTX_free(evp); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  const bool ok = context_->evp != nullptr && EVP_DigestInit_ex(context_->evp, EVP_sha256(), nullptr) == 1;
  WEFT_CHECK(ok, "libcrypto offers no SHA-256");
}

Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::update(std::span<const std::byte> bytes) {
  const bool ok = EVP_DigestUpdate(context_->evp, bytes.data(), bytes.size()) == 1;
  WEFT_CHECK(ok, "SHA-256 of {} bytes failed", bytes.size());
}

Sha256::Digest Sha256::finish() {
  Digest digest{};
  unsigned length = 0;
  const bool ok = EVP_DigestFinal_ex(context_->evp, digest.data(), &length) == 1 && length == digest.size();
  WEFT_CHECK(ok, "SHA-256 could not be finished");
  return digest;
}

Sha256::Digest sha256(std::span<const std::byte> bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.finish();
}

Sha256::Digest sha256(std::string_view text) {
  return sha256(std::as_bytes(std::span(text)));
}

Sha256::Digest sha256_file(const std::filesystem::path& path) {
  const InputFile file(path);
  std::vector<std::byte> block(std::size_t{1} << 20);
  Sha256 hash;
  for (std::uint64_t at = 0; at < file.size();) {
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(block.size(), file.size() - at));
    const std::span<std::byte> part(block.data(), n);
    file.read_at(at, part);
    hash.update(part);
    at += n;
  }
  return hash.finish();
}

std::string hex(std::span<const std::uint8_t> bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * bytes.size());
  for (const std::uint8_t b : bytes) {
    text += kDigits[b >> 4];
    text += kDigits[b & 15];
  }
  return text;
}

}  // namespace weft
