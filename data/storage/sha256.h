// SHA-256: the digest that identifies files, datasets and checkpoints.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace weft {

class Sha256 {
 public:
  using Digest = std::array<std::uint8_t, 32>;

  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void update(std::span<const std::byte> bytes);
  // Ends the digest; the object takes no more bytes.
  Digest finish();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

Sha256::Digest sha256(std::span<const std::byte> bytes);
Sha256::Digest sha256(std::string_view text);
// Reads the whole file in blocks; Error (storage) if it cannot be read.
Sha256::Digest sha256_file(const std::filesystem::path& path);

// Two lower-case hexadecimal digits a byte.
std::string hex(std::span<const std::uint8_t> bytes);

}  // namespace weft
