// Throughput of `weft prepare` with the byte tokenizer, on text and jsonl.

#include <benchmark/benchmark.h>
#include <filesystem>
#include <fstream>

#include "autograd/philox.h"
#include "data/prepare/prepare.h"

namespace weft::bench {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kBytes = std::int64_t{256} << 20;

// English-like lines; as text each is a document, as jsonl an object.
void write_corpus(const fs::path& path, bool jsonl) {
  constexpr const char* kWords[] = {"the", "loom", "carries", "a", "thread", "across", "every", "warp", "and", "back"};
  std::ofstream out(path, std::ios::binary);
  RandomWords words(1, RandomStream::test, 0);
  std::string block;
  for (std::int64_t written = 0; written < kBytes;) {
    block.clear();
    while (block.size() < (1 << 20)) {
      std::string line;
      for (std::uint64_t n = 40 + words.below(400); n > 0; --n) line += std::string(kWords[words.below(10)]) + ' ';
      block += jsonl ? "{\"text\": \"" + line + "\", \"id\": 1}\n" : line + "\n\n";
    }
    out.write(block.data(), static_cast<std::streamsize>(block.size()));
    written += static_cast<std::int64_t>(block.size());
  }
}

void prepare_corpus(benchmark::State& state, bool jsonl, bool shuffled) {
  const fs::path folder = fs::temp_directory_path() / "weft-bench-prepare";
  fs::remove_all(folder);
  fs::create_directories(folder);
  const fs::path corpus = folder / (jsonl ? "corpus.jsonl" : "corpus.txt");
  write_corpus(corpus, jsonl);
  PrepareOptions options;
  options.inputs = {corpus.string()};
  options.out = (folder / "out").string();
  if (!jsonl) options.split = TextSplit::blank;
  options.threads = static_cast<int>(state.range(0));
  if (!shuffled) options.shuffle_seed.reset();
  for (auto _ : state) {
    state.PauseTiming();
    fs::remove_all(folder / "out");
    state.ResumeTiming();
    prepare(options);
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(fs::file_size(corpus)));
  fs::remove_all(folder);
}

BENCHMARK_CAPTURE(prepare_corpus, text, false, true)->Arg(1)->Arg(2)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(prepare_corpus, text_unshuffled, false, false)->Arg(1)->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(prepare_corpus, jsonl, true, true)->Arg(1)->Arg(2)->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace weft::bench
