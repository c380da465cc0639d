"""Trains tiny sentencepiece models on made-up text and records what the sentencepiece package makes of some lines.

    python tests/golden/sentencepiece_models.py        # rewrites tests/golden/sentencepiece/

Needs the Python package sentencepiece (0.2). The models and cases.json are committed; tests need no Python.
"""

import io
import json
import pathlib
import random

import sentencepiece as spm

FOLDER = pathlib.Path(__file__).parent / "sentencepiece"

# Rules of normalisation: full-width letters, a ligature, a composition, an ideographic space.
RULES = {
    "\uff21": "A", "\uff22": "B", "\ufb01": "fi", "e\u0301": "\u00e9", "\u3000": " ", "\u2126": "\u03a9",
}


def words(seed, count):
    """Words of made-up syllables; frequent ones return."""
    rng = random.Random(seed)
    syllables = [c + v + e for c in "bdklmnprstv" for v in "aeiou" for e in ("", "n", "r", "s")]
    stock = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(400)]
    stock += ["\u00e9t\u00e9", "\u0434\u043e\u043c", "\u0431\u0435\u0440\u0435\u0433", "\u6c34\u6d41", "caf\u00e9", "2026", "3.14", "x_1", "(a+b)"]
    return [stock[min(int(rng.paretovariate(0.8)), len(stock)) - 1] for _ in range(count)]


def corpus():
    rng = random.Random(7)
    for seed in range(300):
        line = words(seed, rng.randint(5, 25))
        yield " ".join(line) + rng.choice([".", "!", "", " ..."])


LINES = [
    "", " ", "  ", "bana", " bana", "bana ", "  two   spaces  ", "tab\tand\nbreak", "\u00e9t\u00e9 caf\u00e9 \u0434\u043e\u043c",
    "e\u0301te\u0301 \uff21\uff22 \ufb01n \u3000 \u2126", "\u6c34\u6d41\u6c34\u6d41", "\U0001f600 \U0001f468\u200d\U0001f469", "<s> plain </s> <unk>",
    "<tool>bana</tool>", "<0x41>", "\u2581bana\u2581", "a\u0000b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "Kanbasdor 2026 3.14 (a+b) x_1",
    "\u043d\u0435\u0438\u0437\u0432\u0435\u0441\u0442\u043d\u043e\u0435 \u05e9\u05dc\u05d5\u05dd \u4e16\u754c",
]
LINES += [" ".join(words(1000 + i, 30)) for i in range(8)]


def train(name, **options):
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, minloglevel=2, num_threads=1, **options)
    (FOLDER / f"{name}.model").write_bytes(model.getvalue())
    processor = spm.SentencePieceProcessor(model_proto=model.getvalue())
    cases = []
    for line in LINES:
        ids = processor.encode(line)
        cases.append({"text": line, "ids": ids, "decoded": processor.decode(ids)})
    return {
        "vocab_size": processor.get_piece_size(), "bos_id": processor.bos_id(), "eos_id": processor.eos_id(),
        "unk_id": processor.unk_id(), "cases": cases,
    }


def main():
    FOLDER.mkdir(exist_ok=True)
    rules = FOLDER / "rules.tsv"
    rules.write_text("".join(
        " ".join(f"{ord(c):x}" for c in key) + "\t" + " ".join(f"{ord(c):x}" for c in value) + "\n"
        for key, value in sorted(RULES.items())))
    models = {
        # As Llama's and Mistral's are made.
        "bpe_bytes": train("bpe_bytes", model_type="bpe", vocab_size=560, byte_fallback=True, split_digits=True,
                           normalization_rule_name="identity", remove_extra_whitespaces=False,
                           allow_whitespace_only_pieces=True, user_defined_symbols=["<tool>", "</tool>"]),
        # As T5's and ALBERT's.
        "unigram": train("unigram", model_type="unigram", vocab_size=320, normalization_rule_tsv=str(rules),
                         bos_id=-1, eos_id=1, unk_id=2, pad_id=0, control_symbols=["<mask>"]),
        # No dummy prefix, BOS and EOS elsewhere, unknown characters merged.
        "bpe_plain": train("bpe_plain", model_type="bpe", vocab_size=300, add_dummy_prefix=False, unk_id=0, bos_id=5,
                           eos_id=7, normalization_rule_name="identity", control_symbols=["<a>", "<b>", "<c>"]),
    }
    rules.unlink()
    text = json.dumps(models, ensure_ascii=True, indent=0, separators=(",", ":"))
    (FOLDER / "cases.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
