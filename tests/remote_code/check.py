"""Checks directories that `weft export` wrote, in transformers.

    python tests/remote_code/check.py DIRECTORY... [--expected FILE] [--report FILE] [--seconds S] [--quick]
        [--device cuda]

In each directory: the weights load with none missing, unexpected or mismatched, and tied ones tied; logits equal
weft's, which `expected.safetensors` in it (or --expected, which must be there) has as ids.N i64 [T], logits.N [T, V]
(of the tokens positions.N [n] alone where those are there), and prompt.N, greedy.N i64 for text, each for about S
seconds; ids of lines equal those of texts.json beside that file (a tokenizer.model needs sentencepiece, and protobuf
for transformers to read it); what bf16 costs weights in bf16 is measured; in fp64 a sequence gives the same in one
call, token by token, and cut at random; left-padded rows of a batch give what each gives alone; a cache follows its
sequences when beams are reordered; generate() draws the same with and without a cache. Directories of transformers' own
classes take the part that needs no weft cache. The last line of output is `ok` or `FAILED`; the exit code is 0 or 1.
--report writes the figures as JSON.
"""

import argparse
import importlib
import json
import math
import os
import pathlib
import sys
import time
import traceback

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Modules of earlier directories of the same name must not be taken for these.
os.environ.setdefault("HF_MODULES_CACHE", os.path.join(os.environ.get("TMPDIR", "/tmp"), f"weft_modules_{os.getpid()}"))

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

# How from_pretrained() is told a type.
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
DTYPE = "dtype" if VERSION >= (4, 56) else "torch_dtype"

# Largest difference of logits: against weft's in fp64 and fp32, relative to the largest logit where that is above 1;
# between two ways of computing the same in fp64.
FP64_AGAINST_WEFT = 1e-9
FP32_AGAINST_WEFT = 2e-4
# Transformers' classes round the angles of rotary positions to fp32, weft does not. At 4096 positions that alone makes
# up to 1.5e-4 of difference, and it grows with the positions: longer sequences may differ by more in proportion.
FP32_TOKENS = 1024
FP64_AMONG_SPLITS = 1e-10
# The mean of those differences, and the relative difference of perplexities.
FP32_MEAN = 1e-5
FP32_PERPLEXITY = 1e-4
# Greedy texts may part at a step where the logits of both tokens are less than this below the best one, and so may one
# text of as many at most, though always one.
EXCUSED_GAP = 1e-3
TEXTS_PER_EXCUSE = 10


class Failure(Exception):
    pass


class TimeOut:
    """Whether the next of several comparisons, of so many tokens, fits the time; the first `always` of them do."""

    def __init__(self, seconds: float | None, always: int):
        self.end = None if seconds is None else time.monotonic() + seconds
        self.always = always
        self.begin = 0.0
        self.tokens = 0  # of the comparison under way
        self.longest = 0
        self.pace = 0.0  # seconds a token, of the longest

    def allows(self, tokens: int) -> bool:
        now = time.monotonic()
        if self.tokens > 0 and self.tokens >= self.longest:
            self.longest, self.pace = self.tokens, (now - self.begin) / self.tokens
        self.always -= 1
        allowed = self.always >= 0 or self.end is None or now + 2 * self.pace * tokens <= self.end
        self.begin, self.tokens = now, tokens if allowed else 0
        return allowed


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, NaN counted as infinite."""
    if a.shape != b.shape:
        raise Failure(f"shapes {list(a.shape)} and {list(b.shape)}")
    if a.numel() == 0:
        return 0.0
    a, b = a.double().cpu(), b.double().cpu()
    if not bool(torch.isfinite(a).all()) or not bool(torch.isfinite(b).all()):
        return float("inf")
    return ((a - b).abs().max() / b.abs().max().clamp_min(1.0)).item()


def package(name: str):
    """None if there is none."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def spelled(figure: float | str) -> str:
    return figure if isinstance(figure, str) else f"{figure:.3g}"


class Subject:
    def __init__(self, directory: pathlib.Path, expected: pathlib.Path, arguments: argparse.Namespace):
        self.directory = directory
        self.device = arguments.device
        self.quick = arguments.quick
        self.seconds = arguments.seconds
        self.texts = expected.parent / "texts.json"
        self.figures: dict[str, float | str] = {}
        if arguments.expected and not expected.exists():
            raise Failure(f"there is no {expected}")
        self.expected = load_file(expected) if expected.exists() else {}
        if not self.expected:
            self.figures["logits"] = "not compared: there is nothing to expect"
        self.wide = self.load(torch.float64)
        self.is_weft = self.wide.config.model_type == "weft"
        self.vocabulary = self.wide.config.vocab_size
        torch.manual_seed(7)

    def load(self, dtype: torch.dtype):
        model, info = AutoModelForCausalLM.from_pretrained(
            self.directory, trust_remote_code=True, output_loading_info=True, local_files_only=True, **{DTYPE: dtype}
        )
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            if info.get(key):
                raise Failure(f"{key}: {sorted(map(str, info[key]))[:5]}")
        head = model.get_output_embeddings()
        is_tied = head is None or head.weight is model.get_input_embeddings().weight
        if getattr(model.config, "tie_word_embeddings", False) and not is_tied:
            raise Failure("the head is not tied to the embedding")
        # Some releases keep what must not be rounded to bf16 in fp32, here as well.
        return model.to(self.device, dtype if dtype == torch.float64 else None).eval()

    def limit(self, name: str, value: float, bound: float) -> None:
        if not math.isfinite(value):
            raise Failure(f"{name}: some numbers are not finite")
        self.figures[name] = max(value, self.figures.get(name, 0.0))
        if not value <= bound:
            raise Failure(f"{name}: {value:.3g}, more than {bound:.0e}")

    def tokens(self, *shape: int) -> torch.Tensor:
        return torch.randint(0, self.vocabulary, shape, device=self.device)

    def logits(self, model, ids: torch.Tensor, **kwargs) -> torch.Tensor:
        return model(input_ids=ids[None] if ids.dim() == 1 else ids, use_cache=False, **kwargs).logits

    def pairs(self, first: str, second: str):
        n = 0
        while f"{first}.{n}" in self.expected:
            yield self.expected[f"{first}.{n}"].to(self.device), self.expected[f"{second}.{n}"].to(self.device)
            n += 1

    # Each check returns, or raises Failure.

    def sequences(self):
        """Ids, weft's logits and where they are, in fp32 and, where there are such, fp64."""
        time_out = TimeOut(self.seconds, 6)
        for n, (ids, logits) in enumerate(self.pairs("ids", "logits")):
            positions = self.expected.get(f"positions.{n}", torch.arange(len(ids))).to(self.device)
            if not time_out.allows(len(ids)):
                continue
            yield ids, logits, positions

    def check_logits(self) -> None:
        narrow = self.load(torch.float32)
        differences, rows, losses, own_losses, targets = 0.0, 0, 0.0, 0.0, 0
        for ids, logits, positions in self.sequences():
            if logits.dtype == torch.float64:
                wide = self.logits(self.wide, ids)[0, positions]
                self.limit("logits_fp64", relative(wide, logits), FP64_AGAINST_WEFT)
            found = self.logits(narrow, ids)[0, positions]
            bound = FP32_AGAINST_WEFT * max(1.0, len(ids) / FP32_TOKENS)
            self.limit("logits_fp32", relative(found, logits), bound)
            scale = logits.abs().max().clamp_min(1.0)
            differences += len(logits) * ((found - logits).abs().mean() / scale).item()
            rows += len(logits)
            followed = positions < len(ids) - 1
            next_ids = ids[positions[followed] + 1][:, None]
            losses -= logits[followed].double().log_softmax(-1).gather(1, next_ids).sum().item()
            own_losses -= found[followed].double().log_softmax(-1).gather(1, next_ids).sum().item()
            targets += len(next_ids)
            self.figures["sequences"] = self.figures.get("sequences", 0) + 1
            self.figures["longest"] = max(len(ids), self.figures.get("longest", 0))
            self.figures["tokens"] = rows
        if rows > 0:
            self.limit("logits_fp32_mean", differences / rows, FP32_MEAN)
        if targets > 0:
            self.limit("perplexity_fp32", abs(math.expm1((own_losses - losses) / targets)), FP32_PERPLEXITY)

    def measure_bf16(self) -> None:
        try:
            self.compare_bf16()
        except Exception as error:  # memory, a kernel that lacks: the export is as good
            self.figures["bf16"] = f"not measured: {type(error).__name__}: {error}"

    def compare_bf16(self) -> None:
        """What computing in bf16 costs, recorded and not judged: it is no matter of the weights, which fp32 has shown.

        Nats a token from weft's distribution in fp32, and the share of tokens with the same most probable one, where
        the two best are further apart than bf16 tells apart.
        """
        if json.loads((self.directory / "config.json").read_text()).get("dtype") != "bfloat16":
            return
        model = self.load(torch.bfloat16)
        divergence, tokens, same, told_apart = 0.0, 0, 0, 0
        for ids, logits, positions in self.sequences():
            if len(ids) > 300:
                continue
            found = self.logits(model, ids)[0, positions].double()
            expected = logits.double()
            divergence += (expected.softmax(-1) * (expected.log_softmax(-1) - found.log_softmax(-1))).sum().item()
            tokens += len(logits)
            best = expected.topk(2).values
            apart = best[:, 0] - best[:, 1] > 2**-6 * expected.abs().amax(-1)
            same += int((found.argmax(-1) == expected.argmax(-1))[apart].sum())
            told_apart += int(apart.sum())
        if not math.isfinite(divergence):
            raise Failure("some numbers are not finite")
        if tokens > 0:
            self.figures["bf16_divergence"] = divergence / tokens
        if told_apart > 0:
            self.figures["bf16_same_best"] = same / told_apart

    def check_tokenizer(self) -> None:
        if not self.texts.exists():
            return
        expected = json.loads(self.texts.read_text())
        if (self.directory / "tokenizer.json").exists():
            tokenizer = AutoTokenizer.from_pretrained(self.directory, local_files_only=True)
            self.compare_ids(expected, "ids", lambda text: tokenizer.encode(text, add_special_tokens=False))
            self.compare_ids(expected, "prompt_ids", tokenizer.encode)
            sentencepiece = package("sentencepiece")
            # Readers of that file shall find the same tokenizer.
            if sentencepiece and (self.directory / "tokenizer.model").exists():
                model = sentencepiece.SentencePieceProcessor(str(self.directory / "tokenizer.model"))
                self.compare_ids(expected, "ids", model.encode)
            return
        sentencepiece = package("sentencepiece")
        if sentencepiece:
            model = sentencepiece.SentencePieceProcessor(str(self.directory / "tokenizer.model"))
            self.compare_ids(expected, "ids", model.encode)
        # Which converts it, not always to the same ids.
        if not sentencepiece or not package("google.protobuf"):
            self.figures["transformers_tokenizer"] = "not compared: needs sentencepiece and protobuf"
            return
        tokenizer = AutoTokenizer.from_pretrained(self.directory, local_files_only=True)
        try:
            self.compare_ids(expected, "ids", lambda text: tokenizer.encode(text, add_special_tokens=False))
            self.compare_ids(expected, "prompt_ids", tokenizer.encode)
        except Failure as failure:
            raise Failure(f"transformers' own tokenizer makes other ids of this tokenizer.model: {failure}") from None

    def compare_ids(self, expected: dict, which: str, encode) -> None:
        for text, ids in zip(expected["texts"], expected[which]):
            found = encode(text)
            if found != ids:
                raise Failure(f"{which} of {text!r}: {found[:20]}, not {ids[:20]}")
            self.figures["texts"] = self.figures.get("texts", 0) + 1

    def check_greedy(self) -> None:
        model = self.load(torch.float32)
        time_out = TimeOut(self.seconds, 3)
        texts, excused = 0, []
        for prompt, greedy in self.pairs("prompt", "greedy"):
            if not time_out.allows(len(greedy)):
                continue
            texts += 1
            self.figures["greedy_tokens"] = self.figures.get("greedy_tokens", 0) + len(greedy)
            ids = self.generate(model, prompt[None], max_new_tokens=len(greedy), eos_token_id=None)[0, len(prompt) :]
            same = ids == greedy
            if bool(same.all()):
                continue
            step = int((~same).nonzero()[0])
            logits = self.logits(self.wide, torch.cat([prompt, greedy[:step]]))[0, -1]
            # Of both tokens, since either of the two may have chosen wrongly.
            gap = (logits.max() - torch.minimum(logits[ids[step]], logits[greedy[step]])).item()
            parting = f"greedy text parts from weft's at token {step}, to a logit {gap:.3g} below the best"
            if not gap < EXCUSED_GAP:
                raise Failure(parting)
            excused.append(parting)
            self.figures["greedy_excused"] = len(excused)
        if len(excused) > max(1, texts // TEXTS_PER_EXCUSE):
            raise Failure(f"{len(excused)} greedy texts of {texts} part from weft's; the last: {excused[-1]}")

    def split_lengths(self, T: int) -> list[int]:
        lengths = []
        while T > 0:
            choice = int(torch.randint(0, 3, ()))
            n = min(T, [1, int(torch.randint(1, 8, ())), int(torch.randint(1, 100, ()))][choice])
            lengths.append(n)
            T -= n
        return lengths

    def in_calls(self, model, ids: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        cache, rows, at = None, [], 0
        for n in lengths:
            out = model(input_ids=ids[:, at : at + n], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits)
            at += n
        return torch.cat(rows, 1)

    def check_splits(self) -> None:
        for T in [70, 150] if self.quick else [3, 70, 150, 290, 1100]:
            ids = self.tokens(1, T)
            whole = self.logits(self.wide, ids)
            ways = [self.split_lengths(T) for _ in range(2 if self.quick else 4)]
            if T <= 150:
                ways.append([1] * T)
            for lengths in ways:
                self.limit("splits_fp64", relative(self.in_calls(self.wide, ids, lengths), whole), FP64_AMONG_SPLITS)

    def padded(self, rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        T = max(len(row) for row in rows)
        ids = self.tokens(len(rows), T)  # padding is any token
        mask = torch.zeros_like(ids)
        for b, row in enumerate(rows):
            ids[b, T - len(row) :] = row
            mask[b, T - len(row) :] = 1
        return ids, mask

    def check_padding(self) -> None:
        rows = [self.tokens(n) for n in (41, 1, 17, 40)]
        ids, mask = self.padded(rows)
        batch = self.logits(self.wide, ids, attention_mask=mask)
        for b, row in enumerate(rows):
            alone = self.logits(self.wide, row)[0]
            self.limit("padding_fp64", relative(batch[b, -len(row) :], alone), FP64_AMONG_SPLITS)
        text = self.generate(self.wide, ids, attention_mask=mask, max_new_tokens=8, eos_token_id=None)
        for b, row in enumerate(rows):
            alone = self.generate(self.wide, row[None], max_new_tokens=8, eos_token_id=None)
            if not torch.equal(text[b, -8:], alone[0, -8:]):
                raise Failure(f"a left-padded row of {len(row)} tokens continues otherwise than alone")

    def generate(self, model, ids: torch.Tensor, **how) -> torch.Tensor:
        how = {"do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0} | how
        return model.generate(ids, **how)

    def check_beams(self) -> None:
        ids = self.tokens(3, 37)
        out = self.wide(input_ids=ids, use_cache=True)
        order = torch.tensor([2, 0, 2], device=self.device)
        out.past_key_values.reorder_cache(order)
        after = self.tokens(3, 1)
        both = self.wide(input_ids=after, past_key_values=out.past_key_values, use_cache=True).logits
        whole = self.logits(self.wide, torch.cat([ids[order], after], 1))[:, -1:]
        self.limit("beams_fp64", relative(both, whole), FP64_AMONG_SPLITS)
        how = {"num_beams": 3, "max_new_tokens": 10, "eos_token_id": None}
        if not torch.equal(self.generate(self.wide, ids, **how), self.generate(self.wide, ids, use_cache=False, **how)):
            raise Failure("beam search draws otherwise with a cache than without")

    def check_generate(self) -> None:
        ids = self.tokens(2, 50)
        cached = self.generate(self.wide, ids, max_new_tokens=24, eos_token_id=None)
        plain = self.generate(self.wide, ids, max_new_tokens=24, eos_token_id=None, use_cache=False)
        if not torch.equal(cached, plain):
            raise Failure("generate() draws otherwise with a cache than without")

    def check_training(self) -> None:
        """The loss of labels is that of the logits, gradients reach every parameter, and kept logits are the last."""
        ids = self.tokens(2, 33)
        labels = ids.clone()
        labels[:, :5] = -100
        model = self.wide
        out = model(input_ids=ids, labels=labels, use_cache=False)
        rows = out.logits[:, 4:-1].flatten(0, 1).log_softmax(-1)
        loss = -rows.gather(1, ids[:, 5:].flatten()[:, None]).mean()
        self.limit("loss_fp64", relative(out.loss.detach(), loss.detach()), FP64_AMONG_SPLITS)
        with torch.enable_grad():
            model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        for name, p in model.named_parameters():
            if p.grad is not None and not bool(torch.isfinite(p.grad).all()):
                raise Failure(f"the gradient of {name} is not finite")
        model.zero_grad(set_to_none=True)
        kept = model(input_ids=ids, use_cache=False, logits_to_keep=2).logits
        self.limit("kept_fp64", relative(kept, out.logits[:, -2:]), FP64_AMONG_SPLITS)

    def check_bf16(self) -> None:
        logits = self.logits(self.load(torch.bfloat16), self.tokens(1, 80))
        if logits.dtype != torch.bfloat16 or not bool(torch.isfinite(logits).all()):
            raise Failure("bf16: logits are not finite numbers of that type")


def check(directory: pathlib.Path, arguments: argparse.Namespace) -> dict:
    """The figures of a directory, and under "failures" what went wrong."""
    failures: list[str] = []
    figures: dict = {}
    try:
        expected = arguments.expected or directory / "expected.safetensors"
        subject = Subject(directory, expected, arguments)
        figures = subject.figures
        checks = [subject.check_logits, subject.check_greedy, subject.check_tokenizer, subject.measure_bf16]
        # Whether a cache changes text is transformers' own affair in its classes.
        checks += [subject.check_generate] if subject.is_weft or not subject.quick else []
        if subject.is_weft:
            checks += [subject.check_splits, subject.check_padding, subject.check_beams, subject.check_training]
            checks += [] if arguments.quick else [subject.check_bf16]
        with torch.no_grad():
            for step in checks:
                try:
                    step()
                except Failure as failure:
                    failures.append(f"{step.__name__.removeprefix('check_')}: {failure}")
    except Failure as failure:
        failures.append(str(failure))
    except Exception as error:  # whatever a model or transformers raises is a finding
        failures.append(f"{type(error).__name__}: {error}")
        traceback.print_exc()
    return {**figures, "failures": failures}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directories", nargs="+", type=pathlib.Path)
    parser.add_argument("--expected", type=pathlib.Path)
    parser.add_argument("--report", type=pathlib.Path)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    report: dict = {"transformers": transformers.__version__, "torch": torch.__version__, "directories": {}}
    for directory in arguments.directories:
        result = check(directory, arguments)
        report["directories"][str(directory)] = result
        figures = "  ".join(f"{name} {spelled(value)}" for name, value in result.items() if name != "failures")
        print(f"{'FAILED' if result['failures'] else 'ok':6} {directory.name}  {figures}", flush=True)
        for failure in result["failures"]:
            print(f"       {failure}", flush=True)
    if arguments.report:
        arguments.report.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    failed = any(result["failures"] for result in report["directories"].values())
    print("FAILED" if failed else "ok")
    sys.exit(failed)


if __name__ == "__main__":
    main()
