// A safetensors file: header, rules, and reading all its tensors.
#include <cstring>
#include <string>
#include <vector>

#include "checkpoints/safetensors/reader.h"
#include "tests/fuzz/fuzz_support.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weft;
  static const fuzz::MemoryFile memory;
  std::string bytes(fuzz::text_of(data, size));
  // Lengths past the end are refused at once, and are tested elsewhere; here they become lengths inside.
  if (size > 8) {
    std::uint64_t length;
    std::memcpy(&length, bytes.data(), 8);
    if (length > size - 8) length %= size - 7;
    std::memcpy(bytes.data(), &length, 8);
  }
  memory.set(bytes);
  fuzz::accepts([&] {
    const SafetensorsFile file(memory.path());
    std::uint64_t data_bytes = 0;
    std::vector<SafetensorsEntry> entries;
    for (const SourceTensor& tensor : file.tensors()) {
      const SafetensorsEntry& entry = file.entry(tensor.name);
      entries.push_back(entry);
      data_bytes += entry.end - entry.begin;
      std::vector<std::byte> stored(static_cast<std::size_t>(entry.end - entry.begin));
      file.read(tensor.name, stored);
      if (!holds_reals(entry.dtype)) continue;
      fuzz::accepts([&] {
        std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
        file.read_floats(tensor.name, 0, tensor.rows(), values);
      });
    }
    fuzz::expect(data_bytes <= size, "tensors are no larger than the file");
    const std::string header = format_safetensors_header(entries, file.metadata());
    const auto again = parse_safetensors_header(std::string_view(header).substr(8), data_bytes, "written");
    fuzz::expect(again.metadata == file.metadata(), "metadata comes back");
    fuzz::expect(again.entries.size() == entries.size(), "entries come back");
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const SafetensorsEntry &a = entries[i], &b = again.entries[i];
      fuzz::expect(a.name == b.name && a.dtype == b.dtype && a.shape == b.shape && a.begin == b.begin, "entries agree");
    }
  });
  return 0;
}
