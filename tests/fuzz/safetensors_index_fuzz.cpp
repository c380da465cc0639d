// model.safetensors.index.json: whatever it says, file names stay inside the folder.
#include "checkpoints/safetensors/index.h"
#include "tests/fuzz/fuzz_support.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weft;
  fuzz::accepts([&] {
    const auto files = parse_safetensors_index(fuzz::text_of(data, size), "input");
    for (const auto& [tensor, file] : files) {
      const std::filesystem::path path(file);
      fuzz::expect(path.filename() == path && path.is_relative() && file != ".." && file.ends_with(".safetensors"),
                   "file names are bare");
    }
    fuzz::expect(parse_safetensors_index(format_safetensors_index(files, 0), "written") == files,
                 "a written index comes back");
  });
  return 0;
}
