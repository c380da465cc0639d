"""Compares weft's encoder with the Python package `tokenizers`: the same ids, and the speed of one thread of each (processor time).

    python bench/tokenizers/compare.py build/cpu/bin/encode_documents FOLDER [--megabytes 50] [--repeats 2]

FOLDER receives the text and four vocabularies trained on it (GPT-2, Llama 3, Qwen 2 and SmolLM style; kept and used again when they are
there), and any other *.json in it that is a tokenizer is compared as well. The text is of this machine: documentation, headers, Python
sources, a dictionary, and random characters of every script, half of the last from broken UTF-8 repaired by either side.
"""
import argparse
import array
import gzip
import json
import os
import pathlib
import random
import subprocess
import sys
import time

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests/golden"))
from tokenizers import Tokenizer  # noqa: E402

from tokenizer_styles import random_text, train  # noqa: E402

SIZES = {"gpt2": 50257, "llama3": 128000, "qwen2": 100000, "smollm": 49152}


def system_documents(limit):
    """Documents of at most `limit` bytes in all, in equal parts of what there is."""
    def files(root, suffixes):
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                if name.endswith(suffixes):
                    yield pathlib.Path(folder) / name

    def read(path):
        try:
            data = gzip.open(path).read() if path.suffix in (".gz", ".dz") else path.read_bytes()
        except (OSError, EOFError):
            return ""
        return data.decode("utf-8", "replace").replace("\0", "")

    sources = [files("/usr/share/doc", ("copyright", ".gz", ".txt", ".md", ".html")), files("/usr/include", (".h", ".hpp")),
               files(sys.prefix, (".py",)), files("/usr/share/dictd", (".dz",)), files("/usr/share/perl", (".pod", ".pm", ".pl")),
               files("/usr/share/locale", (".mo",)), files("/usr/share/i18n", (".gz", "")),]
    for source in sources:
        left = limit // len(sources)
        for path in source:
            text = read(path)[:2_000_000]
            # Large files become several documents, so that their sizes are those of web pages.
            for start in range(0, len(text), 20_000):
                document = text[start:start + 20_000]
                left -= len(document.encode())
                yield document
            if left <= 0:
                break


def make_text(path, size):
    rng = random.Random(7)
    documents = list(system_documents(size * 4 // 5))
    have = sum(len(document.encode()) for document in documents)
    while have < size:
        document = random_text(rng, rng.randrange(1, 4000))
        if rng.random() < 0.5:
            broken = bytearray(document.encode())
            for _ in range(1 + len(broken) // 100):
                broken[rng.randrange(len(broken))] = rng.randrange(1, 256)
            document = bytes(broken)
        else:
            document = document.replace("\0", "").encode()
        documents.append(document)
        have += len(document)
    rng.shuffle(documents)
    path.write_bytes(b"\0".join(d if isinstance(d, bytes) else d.encode() for d in documents))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--styles", nargs="*", default=list(SIZES), help="that are trained if they are not there")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    text_path = arguments.folder / "text"
    if not text_path.exists():
        make_text(text_path, arguments.megabytes * 1_000_000)
    documents = [document.decode("utf-8", "replace") for document in text_path.read_bytes().split(b"\0")]
    for style in arguments.styles:
        path = arguments.folder / f"{style}.json"
        if not path.exists():
            train(style, documents[::4], SIZES[style]).save(str(path))
    different = 0
    for path in sorted(arguments.folder.glob("*.json")):
        ids_path = arguments.folder / "ids"
        ours = json.loads(subprocess.run([arguments.program, path, text_path, ids_path, str(arguments.repeats)], check=True,
                                         capture_output=True).stdout)
        ids = array.array("i", ids_path.read_bytes())
        theirs = Tokenizer.from_file(str(path))
        theirs.encode_special_tokens = True
        seconds = []
        for _ in range(arguments.repeats):
            start = time.process_time()
            encodings = theirs.encode_batch_fast(documents, add_special_tokens=False)
            seconds.append(time.process_time() - start)
        at, wrong = 0, 0
        for document, encoding in zip(documents, encodings):
            count = ids[at]
            mine, expected = ids[at + 1:at + 1 + count].tolist(), encoding.ids
            at += 1 + count
            if mine != expected:
                wrong += 1
                if wrong <= 3:
                    first = next((i for i, (a, b) in enumerate(zip(mine, expected)) if a != b), min(len(mine), len(expected)))
                    before = theirs.decode(expected[max(0, first - 3):first])
                    print(f"  differs at token {first} of a document, after {before!r}: "
                          f"{[theirs.id_to_token(i) for i in mine[first:first + 4]]}, "
                          f"expected {[theirs.id_to_token(i) for i in expected[first:first + 4]]}")
        different += wrong
        megabytes = ours["bytes"] / 1e6
        print(f"{path.name:14} {megabytes:.0f} MB, {sum(len(e.ids) for e in encodings)} tokens, {wrong} of {len(documents)} documents differ; "
              f"MB/s: weft {megabytes / ours['fastest']:.1f} (first pass {megabytes / ours['first']:.1f}), "
              f"tokenizers {megabytes / min(seconds):.1f}; weft loads in {ours['load']:.2f} s", flush=True)
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
