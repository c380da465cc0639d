#include <algorithm>
#include <utility>

#include "autograd/check.h"
#include "checkpoints/gguf/model.h"
#include "checkpoints/gguf/rope_factors.h"
#include "data/storage/text.h"

namespace weft {

namespace {

constexpr std::pair<std::string_view, std::string_view> kModelNames[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
};

// Behind "blk.<layer>." and "model.layers.<layer>.", before ".weight" or ".bias".
constexpr std::pair<std::string_view, std::string_view> kLayerNames[] = {
    {"attn_norm", "input_layernorm"},    {"ffn_norm", "post_attention_layernorm"},
    {"attn_q", "self_attn.q_proj"},      {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},      {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"}, {"attn_k_norm", "self_attn.k_norm"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
};

// The part of `text` up to `separator`, which is taken off together with it.
std::string_view take_until(std::string_view& text, char separator) {
  const std::size_t at = std::min(text.find(separator), text.size());
  const std::string_view part = text.substr(0, at);
  text.remove_prefix(std::min(at + 1, text.size()));
  return part;
}

bool is_number(std::string_view text) {
  return !text.empty() && text.size() <= 6 && (text == "0" || text[0] != '0') &&
         std::all_of(text.begin(), text.end(), [](char c) { return '0' <= c && c <= '9'; });
}

bool ends_with_any(std::string_view name, std::initializer_list<std::string_view> endings) {
  return std::any_of(endings.begin(), endings.end(), [&](std::string_view ending) { return name.ends_with(ending); });
}

}  // namespace

std::string hugging_face_name(std::string_view gguf_name) {
  for (const auto& [theirs, ours] : kModelNames) {
    if (gguf_name == theirs) return std::string(ours);
  }
  std::string_view rest = gguf_name;
  if (take_until(rest, '.') != "blk") return "";
  const std::string_view layer = take_until(rest, '.');
  const std::string_view part = take_until(rest, '.');
  if (!is_number(layer) || (rest != "weight" && rest != "bias")) return "";
  for (const auto& [theirs, ours] : kLayerNames) {
    if (part == theirs) return fmt::format("model.layers.{}.{}.{}", layer, ours, rest);
  }
  return "";
}

GgufModelTensors::GgufModelTensors(const GgufFile& file) : file_(file) {
  const bool is_llama = file.metadata().require<std::string>("general.architecture") == "llama";
  std::vector<std::pair<SourceTensor, Origin>> all;
  for (const SourceTensor& tensor : file.tensors()) {
    if (is_llama && tensor.name == kRopeFactorsTensor) continue;
    SourceTensor renamed = tensor;
    renamed.name = hugging_face_name(tensor.name);
    if (renamed.name.empty()) {
      storage_error("{}: tensor \"{}\" has no counterpart in a Llama or Qwen model", file.path().string(),
                    printable(tensor.name));
    }
    Origin origin{tensor.name, 0};
    const bool is_query = ends_with_any(tensor.name, {".attn_q.weight", ".attn_q.bias"});
    const bool is_key = ends_with_any(tensor.name, {".attn_k.weight", ".attn_k.bias"});
    if (is_llama && (is_query || is_key)) {
      const auto* key_heads = file.metadata().find<std::int64_t>("llama.attention.head_count_kv");
      const std::int64_t heads = is_key && key_heads != nullptr
                                     ? *key_heads
                                     : file.metadata().require<std::int64_t>("llama.attention.head_count");
      if (heads <= 0 || tensor.rows() % heads != 0 || tensor.rows() / heads % 2 != 0) {
        storage_error("{}: tensor \"{}\": {} rows are not {} heads of an even size", file.path().string(), tensor.name,
                      tensor.rows(), heads);
      }
      origin.interleaved_rows = tensor.rows() / heads;
    }
    all.emplace_back(std::move(renamed), std::move(origin));
  }
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first.name < b.first.name; });
  for (auto& [tensor, origin] : all) {
    tensors_.push_back(std::move(tensor));
    origins_.push_back(std::move(origin));
  }
}

void GgufModelTensors::read_floats(std::string_view name, std::int64_t row_begin, std::int64_t row_end,
                                   std::span<float> out) const {
  const SourceTensor& tensor = require(name);
  const Origin& origin = origins_[static_cast<std::size_t>(&tensor - tensors_.data())];
  if (origin.interleaved_rows == 0) return file_.read_floats(origin.name, row_begin, row_end, out);
  WEFT_CHECK(0 <= row_begin && row_begin <= row_end && row_end <= tensor.rows(), "{}: rows [{}, {}) of {}", tensor.name,
             row_begin, row_end, tensor.rows());
  const std::int64_t row = tensor.row_elements();
  WEFT_CHECK(static_cast<std::int64_t>(out.size()) == (row_end - row_begin) * row, "{}: room for {} elements",
             tensor.name, out.size());
  // Row half * d/2 + i of a head is the file's row 2 * i + half.
  const std::int64_t head_rows = origin.interleaved_rows;
  std::vector<float> head(static_cast<std::size_t>(head_rows * row));
  std::int64_t loaded_head = -1;
  for (std::int64_t r = row_begin; r < row_end; ++r) {
    if (r / head_rows != loaded_head) {
      loaded_head = r / head_rows;
      file_.read_floats(origin.name, loaded_head * head_rows, (loaded_head + 1) * head_rows, head);
    }
    const std::int64_t half = r % head_rows / (head_rows / 2);
    const std::int64_t i = r % (head_rows / 2);
    std::copy_n(head.begin() + (2 * i + half) * row, row, out.begin() + (r - row_begin) * row);
  }
}

}  // namespace weft
