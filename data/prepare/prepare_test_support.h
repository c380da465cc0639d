// Inputs for the tests of prepare.
#pragma once

#include <fcntl.h>
#include <map>
#include <string>
#include <unistd.h>
#include <vector>
#include <zlib.h>
#include <zstd.h>

#include "autograd/philox.h"
#include "data/dataset_test_support.h"
#include "data/prepare/prepare.h"

namespace weft::data_test {

// All files of a dataset: name to content.
inline std::map<std::string, std::string> content_of(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    files[entry.path().filename().string()] = read_text(entry.path().string());
  }
  return files;
}

// Paragraphs of a few sentences, some in two-byte script.
inline std::string random_text(std::uint64_t seed, std::size_t bytes) {
  RandomWords words(seed, RandomStream::test, 9);
  std::string text;
  while (text.size() < bytes) {
    const std::string piece = words.below(8) == 0 ? "\u0434\u043e\u043c " : "word";
    for (std::uint64_t n = 1 + words.below(60); n > 0; --n) {
      text += piece;
      text += std::to_string(words.below(1000));
      text += words.below(12) == 0 ? "\n" : " ";
    }
    text += "\n\n";
  }
  return text;
}

inline std::string gzip(const std::string& text) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string packed(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  deflate(&stream, Z_FINISH);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

inline std::string zstd(const std::string& text) {
  std::string packed(ZSTD_compressBound(text.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), text.data(), text.size(), 3));
  return packed;
}

// Standard input read from a file for the lifetime of the object.
class StandardInput {
 public:
  explicit StandardInput(const std::string& path) : saved_(::dup(STDIN_FILENO)) {
    const int descriptor = ::open(path.c_str(), O_RDONLY);
    ::dup2(descriptor, STDIN_FILENO);
    ::close(descriptor);
  }
  ~StandardInput() {
    ::dup2(saved_, STDIN_FILENO);
    ::close(saved_);
  }

 private:
  int saved_;
};

// Text is split at blank lines.
inline PrepareOptions options_for(const std::string& out, std::vector<std::string> inputs) {
  PrepareOptions options;
  options.out = out;
  options.inputs = std::move(inputs);
  options.split = TextSplit::blank;
  return options;
}

inline PrepareOptions jsonl_options(const std::string& out, std::vector<std::string> inputs) {
  PrepareOptions options = options_for(out, std::move(inputs));
  options.split = TextSplit::file;
  options.shuffle_seed.reset();
  return options;
}

}  // namespace weft::data_test
