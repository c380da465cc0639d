#!/usr/bin/env python3
"""Makes tests/golden/models: tiny random models with what transformers computes for them.

Each folder NAME has config.json, model.safetensors (one is sharded, with its index) and expected.json: input ids, the
shape of the logits and the tokens that greedy decoding appends to the first ids; expected.bin holds the logits, fp32.
rope.json has the rotary frequencies of transformers for several scalings.

Needs torch, transformers and safetensors; tests read the result and need none of them.
"""

import json
import pathlib
import shutil
import struct

import torch
import transformers
from transformers import (
    KimiLinearConfig,
    KimiLinearForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MiniMaxConfig,
    MiniMaxForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen3_5 import Qwen3_5ForCausalLM, Qwen3_5TextConfig

HERE = pathlib.Path(__file__).parent
VOCABULARY = 96
GREEDY_TOKENS = 64
PROMPT_TOKENS = 8

SMALL = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
)

LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64)

HYBRID = dict(layer_types=["linear_attention", "full_attention"])
GATED_DELTA = HYBRID | dict(
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=12,
    head_dim=8,
    rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5),
)

# name: (class, config class, changes, dtype of the file)
MODELS = {
    "llama_mha": (LlamaForCausalLM, LlamaConfig, dict(hidden_size=24, intermediate_size=32, num_key_value_heads=4, rms_norm_eps=1e-5), torch.float32),
    "llama_mha_tied": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(num_key_value_heads=4, tie_word_embeddings=True),
        torch.bfloat16,
    ),
    "llama3": (LlamaForCausalLM, LlamaConfig, dict(rope_parameters=LLAMA3, eos_token_id=[2, 3]), torch.bfloat16),
    "llama_biases": (LlamaForCausalLM, LlamaConfig, dict(attention_bias=True, mlp_bias=True), torch.bfloat16),
    "llama_linear": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=10000.0)),
        torch.float16,
    ),
    "llama_yarn": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(rope_parameters=YARN | dict(beta_fast=16, beta_slow=2, truncate=False, attention_factor=1.3)),
        torch.bfloat16,
    ),
    "smollm": (
        LlamaForCausalLM,
        LlamaConfig,
        dict(hidden_size=36, num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True, rms_norm_eps=1e-5),
        torch.bfloat16,
    ),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config,
        dict(tie_word_embeddings=True, use_sliding_window=True, sliding_window=16, max_window_layers=1),
        torch.bfloat16,
    ),
    "qwen2_yarn_sharded": (
        Qwen2ForCausalLM,
        Qwen2Config,
        dict(rope_parameters=YARN | dict(rope_theta=1000000.0)),
        torch.bfloat16,
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, dict(head_dim=12, rms_norm_eps=1e-4), torch.bfloat16),
    "mistral": (MistralForCausalLM, MistralConfig, dict(sliding_window=16, head_dim=16), torch.bfloat16),
    "qwen3_5": (Qwen3_5ForCausalLM, Qwen3_5TextConfig, GATED_DELTA | dict(tie_word_embeddings=True), torch.bfloat16),
    "qwen3_next": (
        Qwen3NextForCausalLM,
        Qwen3NextConfig,
        GATED_DELTA | dict(mlp_only_layers=[0, 1], num_experts=0),
        torch.bfloat16,
    ),
    # Its decays are buffers of the file, which bf16 would change.
    "minimax": (
        MiniMaxForCausalLM,
        MiniMaxConfig,
        HYBRID
        | dict(
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            num_local_experts=1,
            num_experts_per_tok=1,
            block_size=64,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0),
        ),
        torch.float32,
    ),
    "kimi_linear": (
        KimiLinearForCausalLM,
        KimiLinearConfig,
        HYBRID
        | dict(
            num_key_value_heads=4,
            linear_num_heads=2,
            linear_head_dim=8,
            kv_lora_rank=16,
            qk_nope_head_dim=8,
            qk_rope_head_dim=4,
            v_head_dim=8,
            mlp_layer_types=["dense", "dense"],
            pad_token_id=0,
        ),
        torch.bfloat16,
    ),
}


def randomise(model, seed):
    """Weights that make attention and gates choose, norms and biases that are not their defaults."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight") or "layernorm" in name:
            less_one = model.config.model_type in ("qwen3_next", "qwen3_5_text") and "linear_attn" not in name
            value = (0.0 if less_one else 1.0) + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.2 * noise
        elif "embed_tokens" in name or "lm_head" in name:
            value = 0.3 * noise
        else:
            value = 1.5 * noise / parameter.shape[-1] ** 0.5
        parameter.data.copy_(value)


def make_model(name, seed):
    kind, config_kind, changes, dtype = MODELS[name]
    config = config_kind(**(SMALL | changes))
    config._attn_implementation = "eager"
    model = kind(config).eval()
    randomise(model, seed)
    # The weights as they are stored, computed with in fp32. (model.to() would round the rotary frequencies as well.)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).to(torch.float32)
    folder = HERE / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    stored = kind(config).eval()
    stored.load_state_dict(model.state_dict())
    stored.to(dtype).save_pretrained(folder, max_shard_size="12KB" if "sharded" in name else "5GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in folder.iterdir():
        file.chmod(0o644)

    generator = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(3, VOCABULARY, (1, 40), generator=generator)
    with torch.no_grad():
        logits = model(ids).logits[0].float()
        greedy = ids[:, :PROMPT_TOKENS]
        for _ in range(GREEDY_TOKENS):
            greedy = torch.cat([greedy, model(greedy).logits[:, -1:].argmax(-1)], dim=1)
    expected = {
        "ids": ids[0].tolist(),
        "prompt": PROMPT_TOKENS,
        "greedy": greedy[0, PROMPT_TOKENS:].tolist(),
        "logits": list(logits.shape),
        "transformers": transformers.__version__,
    }
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    values = logits.flatten().tolist()
    (folder / "expected.bin").write_bytes(struct.pack(f"<{len(values)}f", *values))
    print(name, f"largest logit {logits.abs().max():.2f}", sum(f.stat().st_size for f in folder.iterdir()), "bytes")


def make_rope():
    cases = {
        "linear": dict(rope_type="linear", factor=4.0, rope_theta=10000.0),
        "llama3": LLAMA3 | dict(original_max_position_embeddings=8192),
        "llama3_strong": LLAMA3 | dict(factor=32.0, low_freq_factor=2.0, original_max_position_embeddings=4096),
        "yarn": YARN | dict(original_max_position_embeddings=32768, rope_theta=1000000.0),
        "yarn_betas": YARN | dict(original_max_position_embeddings=4096, factor=16.0, beta_fast=24, beta_slow=2),
        "yarn_untruncated": YARN | dict(original_max_position_embeddings=4096, truncate=False),
        "yarn_attention": YARN | dict(original_max_position_embeddings=4096, attention_factor=1.125),
        "yarn_mscale": YARN | dict(original_max_position_embeddings=4096, factor=40.0, mscale=0.707, mscale_all_dim=1.0),
        "yarn_short": YARN | dict(original_max_position_embeddings=8),
    }
    entries = []
    for name, parameters in cases.items():
        config = LlamaConfig(hidden_size=512, num_attention_heads=4, head_dim=128, rope_parameters=dict(parameters))
        frequencies, magnitude = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")
        entries.append(
            {
                "name": name,
                "head_dim": 128,
                "rope_parameters": parameters,
                "frequencies": frequencies.tolist(),
                "magnitude": float(magnitude),
            }
        )
    (HERE / "rope.json").write_text(json.dumps(entries) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_rope()
    for index, model_name in enumerate(MODELS):
        make_model(model_name, 100 * index + 7)
