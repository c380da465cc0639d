// A language model in a GGUF file, seen as a Hugging Face model: the same fields, names and layouts.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoints/gguf/gguf_file.h"
#include "checkpoints/tensor_source.h"
#include "data/tokenizers/tokenizer_files.h"

namespace weft {

// The text of an equivalent config.json, for the architectures llama, qwen2 and qwen3. Error (storage): another
// architecture, or a key of the architecture that is not understood, since it may change the function.
std::string gguf_config_json(const GgufFile& file);

// The files of an equivalent tokenizer: tokenizer.json for byte-level BPE (tokenizer.ggml.model "gpt2") with the
// pre-tokenizers gpt-2, smollm, llama-bpe and qwen2; tokenizer.model and tokenizer_config.json for sentencepiece's BPE
// ("llama"). Error (storage) that names any other model or pre-tokenizer.
std::vector<TokenizerFile> gguf_tokenizer_files(const GgufFile& file);

// The file's tensors under Hugging Face names. Files of the architecture llama hold the rows of each query and key head
// interleaved, (0, d/2, 1, d/2 + 1, ...), for a rotation of neighbouring pairs; here they are back in the order of the
// half-split rotation. The frequency factors of llama3's rope are no tensor here: gguf_config_json has them.
class GgufModelTensors final : public TensorSource {
 public:
  // `file` outlives this. Error (storage) if a tensor has no Hugging Face name.
  explicit GgufModelTensors(const GgufFile& file);

  const std::vector<SourceTensor>& tensors() const override { return tensors_; }
  std::string where(std::string_view) const override { return file_.path().string(); }
  void read_floats(std::string_view name, std::int64_t row_begin, std::int64_t row_end,
                   std::span<float> out) const override;

 private:
  struct Origin {
    std::string name;
    // Rows of a head if they are interleaved, else 0.
    std::int64_t interleaved_rows = 0;
  };

  const GgufFile& file_;
  std::vector<SourceTensor> tensors_;
  // For each of tensors_.
  std::vector<Origin> origins_;
};

// "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"; "" for a name without counterpart.
std::string hugging_face_name(std::string_view gguf_name);

}  // namespace weft
