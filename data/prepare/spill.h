// Encoded documents on their way from reading order to writing order: K files of tokens with an index each. A
// document's 64-bit key says where it goes; reading the files one after the other, each sorted by (key, ordinal), gives
// all documents sorted by key, whatever K is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace weft {

struct SpilledDocument {
  std::uint64_t key = 0;
  std::uint64_t ordinal = 0;
  std::uint32_t tokens = 0;
  std::uint32_t text_bytes = 0;
  std::uint32_t source = 0;
  std::uint32_t padding = 0;
};
static_assert(sizeof(SpilledDocument) == 32);

struct SpillLength {
  std::int64_t index_bytes = 0;
  std::int64_t token_bytes = 0;
};

// Appends documents. Files are opened only to be written to, so that K is not limited by open files.
class SpillWriter {
 public:
  // Files folder/name-K.{index,tokens}; `buffer_bytes` is the most that waits in memory. Existing files are cut to
  // `lengths` (what a journal says was there), or must not exist if it is empty.
  SpillWriter(std::string folder, std::string name, std::int64_t count, std::int64_t buffer_bytes,
              std::span<const SpillLength> lengths);

  void add(const SpilledDocument& document, std::span<const std::byte> tokens);
  // Everything added so far is in the files.
  void flush();
  // Everything added so far is on the device.
  void sync();
  std::vector<SpillLength> lengths() const;

 private:
  struct Spill {
    SpillLength on_disk;
    std::vector<std::byte> index;
    std::vector<std::byte> tokens;
    bool dirty = false;  // written since the last sync
  };
  void flush_one(std::int64_t number);

  std::string folder_;
  std::string name_;
  std::int64_t buffer_each_;
  std::vector<Spill> spills_;
};

std::string spill_path(const std::string& folder, const std::string& name, std::int64_t number, const char* kind);
// floor(key * count / 2^64), so that the order of files is the order of keys.
std::int64_t spill_of(std::uint64_t key, std::int64_t count);

}  // namespace weft
