"""Writes the GGUF fixtures: a tiny random model with every element type that weft reads, and what it must become.

    python tests/golden/make_gguf.py   (needs numpy, gguf, safetensors, sentencepiece; the files are committed)

tests/golden/gguf/tiny.gguf           as llama.cpp's converter lays a Llama out
tests/golden/gguf/tiny.safetensors    the dequantised tensors, under Hugging Face names and in its layout
tests/golden/gguf/bpe_*.gguf          the vocabularies of tests/golden/sentencepiece, without tensors
"""

import pathlib
import shutil
import tempfile

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

WIDTH, HEADS, KV_HEADS, HIDDEN = 32, 2, 1, 64
HEAD_DIM = WIDTH // HEADS
TOKENS = ["<|end|>", "a", "b", "c", "ab", "abc", "Ġ", "Ġa"]
TOKEN_TYPES = [3, 1, 1, 1, 1, 1, 1, 1]
MERGES = ["a b", "ab c", "Ġ a"]

# Hugging Face name, GGUF name, shape, element type
TENSORS = [
    ("model.embed_tokens.weight", "token_embd.weight", (len(TOKENS), WIDTH), Type.Q8_0),
    ("model.norm.weight", "output_norm.weight", (WIDTH,), Type.F32),
    ("lm_head.weight", "output.weight", (len(TOKENS), WIDTH), Type.F16),
    ("model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight", (WIDTH,), Type.F32),
    ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight", (WIDTH,), Type.F32),
    ("model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight", (WIDTH, WIDTH), Type.Q4_0),
    ("model.layers.0.self_attn.k_proj.weight", "blk.0.attn_k.weight", (KV_HEADS * HEAD_DIM, WIDTH), Type.Q4_1),
    ("model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight", (KV_HEADS * HEAD_DIM, WIDTH), Type.BF16),
    ("model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output.weight", (WIDTH, WIDTH), Type.Q4_1),
    ("model.layers.0.mlp.gate_proj.weight", "blk.0.ffn_gate.weight", (HIDDEN, WIDTH), Type.Q4_0),
    ("model.layers.0.mlp.up_proj.weight", "blk.0.ffn_up.weight", (HIDDEN, WIDTH), Type.Q4_1),
    ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight", (WIDTH, HIDDEN), Type.Q8_0),
]


def heads_of(name):
    return {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])


def interleave(rows, heads):
    """From the order of the half-split rotation to that of neighbouring pairs."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def split_halves(rows, heads):
    """The reverse."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def write_vocabulary(name, folder, user_defined, **flags):
    """The metadata that a converter makes of a tokenizer.model; added tokens are those of the model's folder."""
    with tempfile.TemporaryDirectory() as base:
        shutil.copy(folder.parent / "sentencepiece" / f"{name}.model", pathlib.Path(base) / "tokenizer.model")
        vocabulary = gguf.vocab.SentencePieceVocab(pathlib.Path(base))
    texts, scores, types = map(list, zip(*vocabulary.all_tokens()))
    for token in user_defined:
        types[texts.index(token.encode())] = gguf.TokenType.USER_DEFINED
    writer = gguf.GGUFWriter(folder / f"{name}.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    processor = vocabulary.sentencepiece_tokenizer
    writer.add_bos_token_id(processor.bos_id())
    writer.add_eos_token_id(processor.eos_id())
    writer.add_unk_token_id(processor.unk_id())
    for flag, value in flags.items():
        getattr(writer, flag)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    folder = pathlib.Path(__file__).parent / "gguf"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types(TOKEN_TYPES)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)

    expected = {}
    for name, gguf_name, shape, dtype in TENSORS:
        values = rng.standard_normal(shape).astype(np.float32)
        heads = heads_of(name)
        stored = gguf.quantize(interleave(values, heads) if heads else values, dtype)
        writer.add_tensor(gguf_name, stored, raw_dtype=dtype)
        restored = gguf.dequantize(stored, dtype).astype(np.float32).reshape(shape)
        expected[name] = np.ascontiguousarray(split_halves(restored, heads) if heads else restored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, folder / "tiny.safetensors")
    write_vocabulary("bpe_bytes", folder, ["<tool>", "</tool>"])
    write_vocabulary(
        "bpe_plain", folder, [], add_add_bos_token=False, add_add_space_prefix=False, add_remove_extra_whitespaces=True
    )


if __name__ == "__main__":
    main()
