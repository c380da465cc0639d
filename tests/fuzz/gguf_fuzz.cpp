// A GGUF file: header, dequantising all its tensors, and what it becomes for Hugging Face.
#include <vector>

#include "checkpoints/gguf/model.h"
#include "tests/fuzz/fuzz_support.h"

namespace {

void read_all(const weft::TensorSource& source, std::size_t file_bytes) {
  for (const weft::SourceTensor& tensor : source.tensors()) {
    // No type has more than two elements a byte.
    weft::fuzz::expect(static_cast<std::uint64_t>(tensor.elements()) <= 8 * file_bytes, "tensors fit the file");
    std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
    weft::fuzz::accepts([&] { source.read_floats(tensor.name, 0, tensor.rows(), values); });
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace weft;
  static const fuzz::MemoryFile memory;
  memory.set(fuzz::text_of(data, size));
  fuzz::accepts([&] {
    const GgufFile file(memory.path());
    read_all(file, size);
    fuzz::accepts([&] { read_all(GgufModelTensors(file), size); });
    fuzz::accepts([&] { gguf_config_json(file); });
    fuzz::accepts([&] { gguf_tokenizer_files(file); });
  });
  return 0;
}
