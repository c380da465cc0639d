// write_seeds CORPUS: the first inputs of every fuzz target, CORPUS/<target>/<name>, from the tables of the tests and
// from the golden files.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

#include "checkpoints/gguf/hostile_cases.h"
#include "checkpoints/safetensors/hostile_cases.h"
#include "data/storage/file.h"

namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 20;

class Seeds {
 public:
  Seeds(const fs::path& corpus, const std::string& target) : folder_(corpus / target) {
    fs::create_directories(folder_);
  }
  void add(const std::string& name, const std::string& bytes) const {
    std::ofstream(folder_ / ("seed-" + name), std::ios::binary) << bytes;
  }
  // Cases of a test's table.
  template <class Cases>
  void add_all(const Cases& cases) const {
    for (const auto& hostile : cases) add(hostile.name, hostile.bytes);
  }
  void add_file(const fs::path& path) const { add(path.filename().string(), weft::read_small_file(path, kMostBytes)); }
  void add_folder(const fs::path& folder, const std::string& extension) const {
    for (const auto& file : fs::directory_iterator(folder)) {
      if (file.path().extension() == extension) add_file(file.path());
    }
  }

 private:
  fs::path folder_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: write_seeds CORPUS, from the repository's root\n");
    return 2;
  }
  const fs::path corpus = argv[1];

  const Seeds safetensors(corpus, "safetensors");
  safetensors.add_all(weft::safetensors_tests::hostile_files());
  safetensors.add("one tensor", weft::safetensors_tests::one_tensor("[2,3]", "[0,12]", 12, "F16"));
  safetensors.add("no tensors", weft::safetensors_tests::file_of("{\"__metadata__\":{\"format\":\"pt\"}}"));

  const Seeds index(corpus, "safetensors_index");
  index.add_all(weft::safetensors_tests::hostile_indexes());
  index.add("good",
            "{\"metadata\":{\"total_size\":8},\"weight_map\":{\"a\":\"m.safetensors\",\"b\":\"n.safetensors\"}}");

  const Seeds json(corpus, "json");
  json.add_all(weft::safetensors_tests::hostile_indexes());
  json.add("all kinds", "{\"a\":[1,-2,2.5e-3,true,false,null,\"\\u00e9\\ud83d\\ude00\"],\"b\":{}}");

  const Seeds gguf(corpus, "gguf");
  gguf.add_all(weft::gguf_tests::hostile_files());
  gguf.add_file("tests/golden/gguf/tiny.gguf");

  const Seeds tokenizer_json(corpus, "tokenizer_json");
  tokenizer_json.add_folder("tests/golden/tokenizers", ".json");
  const Seeds sentencepiece(corpus, "sentencepiece");
  sentencepiece.add_folder("tests/golden/sentencepiece", ".model");
  const Seeds config(corpus, "config");
  for (const auto& model : fs::directory_iterator("tests/golden/models")) {
    config.add(model.path().filename().string(), weft::read_small_file(model.path() / "config.json", kMostBytes));
  }
  return 0;
}
