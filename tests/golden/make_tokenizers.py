"""Makes tests/golden/tokenizers/: small vocabularies of every style and what the Python package `tokenizers` does with them.

    python tests/golden/make_tokenizers.py          (tokenizers 0.23)

lines.json has the texts; STYLE.json is a tokenizer.json, STYLE.expected.json its ids of every line: "text" (special tokens are ordinary
text), "markup" (they are recognised), "prompt" (with the template), and "decoded" (of the ids of "markup", without special tokens).
All text is made up here. The script also checks the classes of weft's Unicode table against the package's regular expressions.
"""
import json
import pathlib
import random
import re

from tokenizers import Regex, pre_tokenizers

from tokenizer_styles import SCRIPTS, STYLES, random_text, train

FOLDER = pathlib.Path(__file__).parent / "tokenizers"
WORDS = ("the of and to in a is that it was for on with as be at by this had not are but from or have an they which one were all "
         "we can there been if more when will would who so no out up into than them only other time some could these two may then "
         "first any my now such like our over man me even most made after also did many before must through years where much way "
         "well down should because each just those people mister how too little state good very make world still own see men work "
         "long get here between both life being under never day same another know while last might us great old year off come since "
         "against go came right used take three").split()
TAILS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "", "", "", ""]


def corpus(rng):
    documents = []
    for _ in range(400):
        words = []
        for _ in range(rng.randrange(5, 60)):
            word = rng.choice(WORDS)
            word = rng.choice((word, word, word, word.title(), word.upper())) + rng.choice(TAILS)
            words.append(word if rng.random() < 0.9 else str(rng.randrange(10 ** rng.randrange(1, 7))))
        documents.append(" ".join(words) + rng.choice((".", "!", "?\n", "...\r\n", ":\n\n  ", "();\n\t")))
    return documents + [random_text(rng, 40) for _ in range(40)]


def lines(rng):
    fixed = [
        "", " ", "  ", "\n", "\r\n", "\t", "a", " a", "a ", "Hello, world!", "the  world   of    men", " leading", "trailing ", "trailing \n",
        "one\ntwo\r\nthree\rfour\n\n\nfive", "tab\tand\vvertical\fform", "\n\n  \n\n a", "  \n  x", "a\n ", "x  \r\n\r\n  y", "\u00a0a\u00a0 b\u3000\u3000c",
        "line\u2028separator\u2029paragraph\u0085next", "zero\u200bwidth\u200djoiner\ufeffmark", "mongolian\u180eseparator \u180e x",
        "I'm you're he's it'd we'll they've don't", "I'M YOU'RE HE'S IT'D WE'LL THEY'VE DON'T", "'s 's's ''s '' 'sam 'reed 'Llama 'x",
        "long'\u017f and 'LL'\u017fx \u017f's", "don\u2019t curly\u2019s", "'re're 'R 'v 'l 'lL '", "7 42 123 1234 12345 123456 1234567",
        "3.14159 1,000,000 2^10 0x1F600 1e-9", "\u0661\u0662\u0663\u0664 \u0967\u0968 \u216b \u00bd\u00be \u2460\u2461 \U0001d7d8", "x1y22z333",
        "int main(void) { return a[i++] != '\\0' ? 1 : -1; }\n", "https://example.org/a?b=c&d=%20#e", "....!!!???///---===***", "a/b\\c_d-e",
        "e\u0301 \u00e9 A\u030a \u00c5 \u212b o\u0302\u0323 \u1ed9", "a\u0327\u0301\u0327 \u0301 \u0344 \u0958 \u1112\u1161\u11ab \ud55c \uac00\u11a8",
        "\ufb01 \u2126 \u00b2 \u3392 \uff21\uff22\uff11 \u1e9b\u0323 \u0132", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea \u2764\ufe0f",
        "na\u00efve caf\u00e9 \u0391\u03b8\u03ae\u03bd\u03b1 \u041c\u043e\u0441\u043a\u0432\u0430 \u05d0\u05d1 \u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
        "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f \uc548\ub155\ud558\uc138\uc694", "\x00\x01\x02\x1b[0m\x1c\x1d\x1e\x1f\x7f\x80\x9f", "\ufffd \uffff \ufffe \U0010ffff \ue000",
        "<|endoftext|>", "a<|endoftext|>b <|im_start|>user\nhi<|im_end|>\n", "<|begin_of_text|>x<|end_of_text|><|eot_id|>", "<tool_call>{}</tool_call>",
        "<|endoftext|", "<|<|endoftext|>|>", "<s>x</s> <unk>", "<0x41><0xE2>", "a  <left>  b <right>  c  <both>  d <left><right> <both>",
        "word words sword word-word word_ \u00e9word word\u0301", "<|end|>> <|end|> <|end|", "<\ufb01> <fi> <e\u0301> <\u00e9>", "<right> \n <left>\u00a0<both>",
        "\u2581 \u2581\u2581a \u2581b", " \u2581", "a\u2581b c", "\U0001d4b3\U00020000\U0002a6df \U0001f130\u24d0",
        "a" * 200, " " * 100, "\n" * 70, "!" * 90, " \n" * 40, "ab" * 100 + " " + "the" * 60, "".join(rng.choice("etaoinshr") for _ in range(1500)),
    ]
    scripts = []
    for first, last in SCRIPTS:
        scripts.append(" ".join("".join(chr(rng.randint(first, last)) for _ in range(4)) for _ in range(3)))
    return fixed + scripts + [random_text(rng, rng.randrange(1, 25)) for _ in range(40)]


def write(name, value):
    (FOLDER / name).write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")


def check_classes():
    """The four classes of the table, as runs, against what the package's regular expressions match."""
    table = (pathlib.Path(__file__).parents[2] / "data/tokenizers/unicode_class_runs.cpp").read_text()
    runs = [int(run, 16) for run in re.findall(r"0x[0-9a-f]+(?=,)", table)]
    mine = {}
    for run, after in zip(runs, runs[1:] + [0x110000 << 8]):
        for code_point in range(run >> 8, after >> 8):
            mine[code_point] = run & 7
    code_points = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    joiners = {0x200C, 0x200D}  # word characters of added tokens (the Rust library), not of Oniguruma
    for name, pattern, inside in (("letters", r"\p{L}", lambda v, c: v & 3 == 1), ("numbers", r"\p{N}", lambda v, c: v & 3 == 2),
                                  ("spaces", r"\s", lambda v, c: v & 3 == 3), ("words", r"\w", lambda v, c: v & 4 and c not in joiners)):
        theirs = set()
        matches = pre_tokenizers.Split(Regex(f"[^{pattern}]+"), "removed")
        for start in range(0, len(code_points), 4096):
            text = "".join(map(chr, code_points[start:start + 4096]))
            for piece, _ in matches.pre_tokenize_str(text):
                theirs.update(map(ord, piece))
        ours = {c for c in code_points if inside(mine[c], c)}
        assert ours == theirs, (name, [hex(c) for c in sorted(ours ^ theirs)][:20])


def decoded(tokenizer, ids):
    """The text of the ids. The package takes the characters of added tokens for spelled bytes, too (<\u00e9> comes out as <\ufffd>); weft gives
    their content, and so does this."""
    contents = {token["id"]: token["content"] for token in json.loads(tokenizer.to_str())["added_tokens"] if not token["special"]}
    text, run = "", []
    for token in ids:
        if token in contents:
            text += tokenizer.decode(run) + contents[token]
            run = []
        else:
            run.append(token)
    return text + tokenizer.decode(run)


def main():
    check_classes()
    rng = random.Random(1)
    FOLDER.mkdir(exist_ok=True)
    documents, texts = corpus(rng), lines(rng)
    write("lines.json", texts)
    for style in STYLES:
        tokenizer = train(style, documents, 1200)
        tokenizer.save(str(FOLDER / f"{style}.json"), pretty=False)
        tokenizer.encode_special_tokens = True
        plain = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        tokenizer.encode_special_tokens = False
        markup = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        write(f"{style}.expected.json", {
            "text": plain,
            # Only where it differs.
            "markup": {i: ids for i, ids in enumerate(markup) if ids != plain[i]},
            "prompt": {i: ids for i, text in enumerate(texts) if (ids := tokenizer.encode(text).ids) != markup[i]},
            "decoded": [decoded(tokenizer, ids) for ids in markup],
        })


main()
