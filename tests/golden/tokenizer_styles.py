"""Tokenizers in the styles of well-known families, trained on given text with the package `tokenizers`."""
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# No family of these four: runs letters with marks through a regular expression that has no scanner.
MARKS = (r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}{1,2}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_level(**options):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **options)


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level(use_regex=False)])


def trainer(size, special=()):
    return trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), show_progress=False,
                               initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def gpt2():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer, ["<|endoftext|>"]


def llama3():
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = split(LLAMA3)
    return tokenizer, []


def qwen2():
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split(QWEN2)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer, []


def smollm():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()])
    return tokenizer, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def marks():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = split(MARKS)
    return tokenizer, []


def llama2():
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    return tokenizer, ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]


def metaspace():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return tokenizer, ["<unk>"]


STYLES = {"gpt2": gpt2, "llama3": llama3, "qwen2": qwen2, "smollm": smollm, "marks": marks, "llama2": llama2, "metaspace": metaspace}


def train(style, documents, size):
    tokenizer, special = STYLES[style]()
    if tokenizer.decoder is None:
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(documents, trainer(size, special))
    else:
        # Spaces part the words for training: without that, tokens of several words would be the only ones.
        rule = tokenizer.pre_tokenizer
        tokenizer.pre_tokenizer = rule or pre_tokenizers.Split("\u2581", "merged_with_next")
        tokenizer.train_from_iterator(documents, trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False,
                                                                     limit_alphabet=300))
        if rule is None:
            tokenizer = without_pre_tokenizer(tokenizer)
    if style == "llama3":
        tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
        begin = tokenizer.token_to_id("<|begin_of_text|>")
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)])])
    if style == "qwen2":
        tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    if style == "marks":
        tokenizer.add_tokens([AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True, normalized=False),
                              AddedToken("word", single_word=True), AddedToken("<\ufb01>", normalized=True), AddedToken("<\u00e9>")])
        tokenizer.add_special_tokens([AddedToken("<both>", lstrip=True, rstrip=True), "<|end|>", "<|end|>>"])
    return tokenizer


def without_pre_tokenizer(tokenizer):
    import json
    parts = json.loads(tokenizer.to_str())
    parts["pre_tokenizer"] = None
    # The tokens of bytes are ordinary ones.
    parts["added_tokens"] = [token for token in parts["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(parts))


# First and last code points of scripts, so that random text has words of each.
SCRIPTS = [(0x20, 0x7E), (0x61, 0x7A), (0x30, 0x39), (0xA1, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF),
           (0x531, 0x587), (0x5D0, 0x5EA), (0x620, 0x6D3), (0x660, 0x669), (0x904, 0x94D), (0x966, 0x96F), (0x985, 0x9CD), (0xA05, 0xA4D),
           (0xB85, 0xBCD), (0xC05, 0xC4D), (0xE01, 0xE4E), (0xE81, 0xECD), (0xF40, 0xF84), (0x1000, 0x1039), (0x10D0, 0x10FA),
           (0x1100, 0x11FF), (0x1200, 0x1357), (0x13A0, 0x13F4), (0x1780, 0x17D3), (0x1820, 0x1877), (0x180B, 0x180E), (0x2000, 0x206F),
           (0x2150, 0x218F), (0x2460, 0x24FF), (0x2190, 0x27BF), (0x3041, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF),
           (0xFB00, 0xFB06), (0xFE00, 0xFE0F), (0xFF01, 0xFF5E), (0x10330, 0x1034A), (0x1D400, 0x1D7FF), (0x1F100, 0x1F1FF),
           (0x1F300, 0x1F64F), (0x20000, 0x2A6DF), (0xE0100, 0xE01EF)]
GLUE = [" ", " ", " ", "  ", "\n", "\r\n", "\t", "\n\n", " \n ", "\u00a0", "\u3000", "\u200d", "'s", "'ll", "'S", "'\u017f", "'", "123456",
        "...", "!\n", "\u180e", "\u0085", "\u2028", "\x1c", "<|endoftext|>", "<|im_end|>", "<tool_call>", ""]


def random_text(rng, words):
    parts = []
    for _ in range(words):
        first, last = rng.choice(SCRIPTS)
        # Unassigned code points are of no script; two of three words have none by being of few characters of a script.
        parts.append("".join(chr(rng.randint(first, last)) for _ in range(rng.choice((1, 1, 2, 3, 5, 9)))))
        parts.append(rng.choice(GLUE))
    return "".join(parts)
