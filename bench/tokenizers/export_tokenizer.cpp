// Writes a tokenizer as an export has it, for bench/tokenizers/compare_sentencepiece.py.
//
//   export_tokenizer TOKENIZER FOLDER
//
// Prints why a tokenizer.model is alone in the folder, if it is.
#include <cstdio>
#include <fmt/format.h>

#include "autograd/check.h"
#include "checkpoints/huggingface/write_tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    fmt::print(stderr, "usage: export_tokenizer TOKENIZER FOLDER\n");
    return 2;
  }
  try {
    fmt::print("{}", weft::write_tokenizer(weft::open_tokenizer(argv[1]), 0, argv[2]));
    return 0;
  } catch (const weft::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return static_cast<int>(error.code());
  }
}
