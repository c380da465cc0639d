"""Compares what is made of a tokenizer.model: by the package sentencepiece, by weft, and, of the tokenizer.json that an export has
beside it, by weft, by the package `tokenizers` and by AutoTokenizer of transformers.

    python bench/tokenizers/compare_sentencepiece.py build/cpu/bin FOLDER [--megabytes 5] [--only NAME...]

The first argument is the folder of encode_documents and export_tokenizer. FOLDER receives the text and the models that are trained on
it (kept and used again when they are there); any other *.model in it is compared as well. The text is of this machine (compare.py says
what) in documents of up to 20,000 characters, and lines with awkward spaces, scripts, controls, decompositions and spelled pieces.
Needs sentencepiece, tokenizers and transformers.
"""
import argparse
import array
import json
import os
import pathlib
import random
import subprocess
import sys
import unicodedata

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests/golden"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import sentencepiece  # noqa: E402
import transformers  # noqa: E402
from compare import system_documents  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tokenizer_styles import random_text  # noqa: E402

OWN = ["<tool>", "</tool>", "[INST]", "\u00b0C", "7"]
RAW = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
# As Llama's and Mistral's models are.
LLAMA = {**RAW, "byte_fallback": True, "split_digits": True, "allow_whitespace_only_pieces": True}
IDENTITY = {"normalization_rule_name": "identity"}
MODELS = {
    "llama": LLAMA,
    "llama_own": {**LLAMA, "user_defined_symbols": OWN},
    "runs": {**LLAMA, "user_defined_symbols": ["\u2581\u2581", "\u2581\u2581\u2581\u2581", "\n\n"], "add_dummy_prefix": False},
    "bare": {**RAW, "byte_fallback": True, "add_dummy_prefix": False},
    "spaces": {**IDENTITY, "control_symbols": ["<mask>", "<sep>"]},
    "spaces_own": {**IDENTITY, "byte_fallback": True, "user_defined_symbols": OWN},
    "spaces_bare": {**IDENTITY, "add_dummy_prefix": False},
    "nmt_nfkc": {},
    "nfkc_raw": {**RAW, "normalization_rule_name": "nfkc", "byte_fallback": True},
}


def awkward_lines(rng, count):
    words = ["the", "The", "of", "training", "models", "x_1", "3.14", "1999", "0", "caf\u00e9", "e\u0301t\u00e9", "\u0434\u043e\u043c", "\u6c34\u6d41",
             "\ud55c\uad6d\uc5b4", unicodedata.normalize("NFD", "\ud55c\uad6d\u1ec7"), "\u304b\u3099", "\u05e9\u05dc\u05d5\u05dd", "\u0928\u092e\u0938\u094d\u0924\u0947",
             "\U0001f600", "\U0001f468\u200d\U0001f469", "\uff21\uff22", "\ufb01ne", "\u2126", "\u2581", "\u2581\u2581x", "<0x41>", "<0x0A>", "aaaaaaa", "ababab",
             "((((((((", "==========", "\u00e9\u0301\u0302", "20\u00b0C", "\x01", "\x7f", "\u200b", "\ufeff", "\u00ad", *OWN]
    gaps = ["", "", " ", " ", " ", "  ", "     ", "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u3000", " \n ", "\u2028"]
    for _ in range(count):
        line = rng.choice(["", "", "", " ", "  ", "\n", "\u2581"])
        for _ in range(rng.randint(1, 12)):
            line += rng.choice(words) + rng.choice(gaps)
        yield line


def documents_of(folder, megabytes):
    path = folder / "documents.json"
    if not path.exists():
        rng = random.Random(11)
        documents = [d.replace("\0", "") for d in system_documents(megabytes * 1_000_000) if d]
        documents += [random_text(rng, rng.randint(1, 200)).replace("\0", "") for _ in range(500)]
        documents += list(awkward_lines(rng, 20_000))
        documents += [" ", "  ", "\u2581", "a", " a", "a ", "\u2581 ", " \u2581 a \u2581 ", "x" * 3000, " " * 3000, "ab " * 3000]
        path.write_text(json.dumps(documents))
    return json.loads(path.read_text())


def train(folder, documents):
    text = folder / "train.txt"
    if not text.exists():
        rng = random.Random(5)
        lines = [line for document in documents for line in document.split("\n") if line.strip()]
        text.write_text("\n".join(rng.sample(lines, min(len(lines), 40_000))), errors="replace")
    for algorithm in ("bpe", "unigram"):
        for name, options in MODELS.items():
            path = folder / f"{algorithm}_{name}.model"
            if not path.exists():
                sentencepiece.SentencePieceTrainer.train(
                    input=str(text), model_prefix=str(path.with_suffix("")), model_type=algorithm, vocab_size=8000, minloglevel=2,
                    num_threads=2, max_sentence_length=20_000, hard_vocab_limit=False, character_coverage=0.999, **options)


def weft_ids(program, tokenizer, folder, documents):
    (folder / "text").write_bytes(b"\0".join(d.encode() for d in documents))
    done = subprocess.run([program, tokenizer, folder / "text", folder / "ids", "1"], capture_output=True, text=True)
    if done.returncode != 0:
        return done.stderr.strip()
    ids, at, rows = array.array("i", (folder / "ids").read_bytes()), 0, []
    while at < len(ids):
        rows.append(ids[at + 1:at + 1 + ids[at]].tolist())
        at += 1 + ids[at]
    return rows


def report(name, documents, expected, found):
    """Prints how many documents differ and the first few of them; returns the number."""
    if isinstance(found, str):
        print(f"    {name}: {found}")
        return 0
    wrong = [i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b]
    print(f"    {name}: {len(wrong)} of {len(documents)} differ", flush=True)
    for i in wrong[:3]:
        a, b = expected[i], found[i]
        first = next((j for j, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        print(f"      {documents[i][:40]!r} ({len(documents[i])} characters): from token {first} {b[first:first + 6]}, not {a[first:first + 6]}")
    return len(wrong)


def compare(path, programs, folder, documents):
    out = folder / "export"
    out.mkdir(exist_ok=True)
    for old in out.iterdir():
        old.unlink()
    alone = subprocess.run([programs / "export_tokenizer", path, out], check=True, capture_output=True, text=True).stdout
    (out / "config.json").write_text('{"model_type": "llama"}')
    library = sentencepiece.SentencePieceProcessor(str(path))
    expected = weft_ids(programs / "encode_documents", path, folder, documents)
    print(f"{path.name}: {sum(map(len, expected))} ids of {sum(len(d.encode()) for d in documents) / 1e6:.1f} MB", flush=True)
    different = report("the package sentencepiece", documents, expected, library.encode(documents))
    if alone:
        print(f"    tokenizer.model alone: {alone}")
        return different
    different += report("weft, the folder", documents, expected, weft_ids(programs / "encode_documents", out, folder, documents))
    report("weft, tokenizer.json", documents, expected, weft_ids(programs / "encode_documents", out / "tokenizer.json", folder, documents))
    file = Tokenizer.from_file(str(out / "tokenizer.json"))
    file.encode_special_tokens = True
    different += report("tokenizers", documents, expected, [e.ids for e in file.encode_batch(documents, add_special_tokens=False)])
    auto = transformers.AutoTokenizer.from_pretrained(out, local_files_only=True)
    # Which finds special pieces in texts.
    kept = [i for i, document in enumerate(documents) if not any(piece in document for piece in auto.all_special_tokens)]
    documents, expected = [documents[i] for i in kept], [expected[i] for i in kept]
    different += report("AutoTokenizer", documents, expected, auto(documents, add_special_tokens=False)["input_ids"])
    begin = [library.bos_id()] if library.bos_id() >= 0 else []
    different += report("AutoTokenizer, prompts", documents, [begin + ids for ids in expected], auto(documents)["input_ids"])
    # U+2581 that is in a text itself is a space there, of which decoders drop other numbers at the beginning.
    expected = [ids for ids, document in zip(expected, documents) if "\u2581" not in document and ids[:1] != [library.unk_id()]]
    texts = library.decode(expected)
    for name, decode in (("tokenizers", file.decode_batch), ("AutoTokenizer", lambda rows: auto.batch_decode(rows, skip_special_tokens=True))):
        found = decode(expected)
        wrong = [i for i, (a, b) in enumerate(zip(texts, found)) if a != b]
        print(f"    {name}, decoded: {len(wrong)} of {len(texts)} differ", flush=True)
        for i in wrong[:3]:
            print(f"      {found[i][:60]!r}, not {texts[i][:60]!r}")
        different += len(wrong)
    return different


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("programs", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--megabytes", type=int, default=5)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    transformers.logging.set_verbosity_error()
    documents = documents_of(arguments.folder, arguments.megabytes)
    train(arguments.folder, documents)
    different = 0
    for path in sorted(arguments.folder.glob("*.model")):
        if not arguments.only or path.stem in arguments.only:
            different += compare(path, arguments.programs, arguments.folder, documents)
    print(f"{different} differences")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
