#include "checkpoints/huggingface/general_fields.h"

#include <limits>
#include <nlohmann/json.hpp>

namespace weft {

void read_general_fields(ConfigReader& config) {
  config.ignore({"model_type",
                 "architectures",
                 "auto_map",
                 "transformers_version",
                 "transformers.js_config",
                 "torch_dtype",
                 "dtype",
                 "use_cache",
                 "initializer_range",
                 "_name_or_path",
                 "_commit_hash",
                 "keys_to_ignore_at_inference",
                 "_attn_implementation",
                 "_attn_implementation_autoset",
                 "attn_implementation",
                 "use_flash_attn",
                 "tokenizer_class",
                 "is_llama_config",
                 "unsloth_fixed",
                 "unsloth_version",
                 "license",
                 "return_dict",
                 "return_dict_in_generate",
                 "output_attentions",
                 "output_hidden_states",
                 "output_scores",
                 "torchscript",
                 "tf_legacy_loss",
                 "use_bfloat16",
                 "problem_type",
                 "task_specific_params",
                 "finetuning_task",
                 "prefix",
                 "id2label",
                 "label2id",
                 "num_labels"});
  // Of generation, in configs of older releases.
  config.ignore({"max_length",
                 "min_length",
                 "do_sample",
                 "early_stopping",
                 "num_beams",
                 "num_beam_groups",
                 "diversity_penalty",
                 "temperature",
                 "top_k",
                 "top_p",
                 "typical_p",
                 "repetition_penalty",
                 "length_penalty",
                 "no_repeat_ngram_size",
                 "encoder_no_repeat_ngram_size",
                 "bad_words_ids",
                 "num_return_sequences",
                 "forced_bos_token_id",
                 "forced_eos_token_id",
                 "remove_invalid_values",
                 "exponential_decay_length_penalty",
                 "suppress_tokens",
                 "begin_suppress_tokens",
                 "decoder_start_token_id",
                 "sep_token_id"});
  for (const char* dropout : {"attention_dropout", "hidden_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"}) {
    if (config.has(dropout)) config.real(dropout, 0.0, 0.0);
  }
  config.expect("pretraining_tp", 1);
  config.expect("chunk_size_feed_forward", 0);
  for (const char* never : {"is_encoder_decoder", "is_decoder", "add_cross_attention", "tie_encoder_decoder",
                            "use_mrope", "rope_interleaved"}) {
    config.expect(never, false);
  }
  config.expect("pruned_heads", nlohmann::json::object());
  if (config.has("quantization_config")) {
    config.refuse("quantization_config",
                  "quantised weights are not read; take the model in bf16, fp16 or fp32, or GGUF");
  }
}

void read_token_ids(ConfigReader& config, const TokenIds& absent, HubModel& model) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  const auto one = [&](const char* key, std::int32_t usual) {
    return static_cast<std::int32_t>(config.integer_or(key, config.names(key) ? -1 : usual, -1, kMost));
  };
  model.bos = one("bos_token_id", absent.bos);
  model.pad = one("pad_token_id", absent.pad);
  model.eos = config.tokens("eos_token_id");
  if (!config.names("eos_token_id") && absent.eos >= 0) model.eos = {absent.eos};
}

}  // namespace weft
