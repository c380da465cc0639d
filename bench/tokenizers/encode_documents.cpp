// Encodes documents with one thread, for bench/tokenizers/compare.py.
//
//   encode_documents TOKENIZER DOCUMENTS IDS REPEATS
//
// DOCUMENTS are separated by zero bytes. IDS receives, for every document, the number of its ids and the ids, as
// little-endian int32. Prints a JSON object: processor seconds of loading, of the first pass and of the fastest one,
// and bytes.
#include <ctime>
#include <fmt/format.h>
#include <fstream>
#include <iterator>

#include "autograd/check.h"
#include "data/tokenizers/tokenizer.h"

namespace {

// Of the processor: the machine may be shared.
double now() {
  return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

int run(const std::vector<std::string>& arguments) {
  const double load_start = now();
  const auto tokenizer = weft::make_tokenizer(arguments[0]);
  const double load = now() - load_start;
  std::ifstream input(arguments[1], std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(input), {}};
  std::vector<std::string_view> documents;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\0', begin), text.size());
    documents.push_back(std::string_view(text).substr(begin, end - begin));
    begin = end + 1;
  }
  std::vector<std::int32_t> ids;
  std::vector<std::int32_t> output;
  double first = 0;
  double fastest = 1e30;
  for (int pass = 0; pass < std::stoi(arguments[3]); ++pass) {
    output.clear();
    const double start = now();
    for (const std::string_view document : documents) {
      ids.clear();
      tokenizer->encode(document, ids);
      output.push_back(static_cast<std::int32_t>(ids.size()));
      output.insert(output.end(), ids.begin(), ids.end());
    }
    const double seconds = now() - start;
    if (pass == 0) first = seconds;
    fastest = std::min(fastest, seconds);
  }
  std::ofstream(arguments[2], std::ios::binary)
      .write(reinterpret_cast<const char*>(output.data()), static_cast<std::streamsize>(output.size() * 4));
  fmt::print("{{\"load\": {}, \"first\": {}, \"fastest\": {}, \"bytes\": {}}}\n", load, first, fastest, text.size());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    fmt::print(stderr, "usage: encode_documents TOKENIZER DOCUMENTS IDS REPEATS\n");
    return 2;
  }
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
