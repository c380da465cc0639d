"""What check.py makes of models that differ from what is expected.

python tests/remote_code/check_test.py
"""

import argparse
import json
import pathlib
import sys
import tempfile
import types
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import check  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402


class Directory(unittest.TestCase):
    """A model of transformers' own, and what it computes."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        torch.manual_seed(1)
        sizes = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1, dtype="bfloat16"))
        model.float().save_pretrained(self.folder / "model")
        config = self.folder / "model/config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "bfloat16"}))
        ids = torch.arange(1, 8)
        with torch.no_grad():
            self.expected = {"ids.0": ids, "logits.0": model(ids[None]).logits[0].clone()}

    def figures(self) -> dict:
        save_file(self.expected, self.folder / "expected.safetensors")
        return self.figures_with(self.folder / "expected.safetensors")

    def figures_with(self, expected: pathlib.Path) -> dict:
        arguments = argparse.Namespace(expected=expected, device="cpu", quick=True, seconds=None)
        return check.check(self.folder / "model", arguments)

    def test_equal_logits_pass(self):
        figures = self.figures()
        self.assertEqual(figures["failures"], [])
        self.assertEqual(figures["sequences"], 1)
        self.assertIn("bf16_divergence", figures)

    def test_an_expectation_must_be_there(self):
        failures = self.figures_with(self.folder / "nowhere.safetensors")["failures"]
        self.assertEqual(failures, [f"there is no {self.folder / 'nowhere.safetensors'}"])

    def test_not_a_number_is_a_failure_that_json_can_hold(self):
        self.expected["logits.0"][3, 2] = float("nan")
        figures = self.figures()
        self.assertEqual(figures["failures"], ["logits: logits_fp32: some numbers are not finite"])
        json.dumps(figures, allow_nan=False)

    def test_bf16_is_not_judged(self):
        compare = check.Subject.compare_bf16
        self.addCleanup(setattr, check.Subject, "compare_bf16", compare)

        def fail(subject):
            raise MemoryError("no memory")

        check.Subject.compare_bf16 = fail
        figures = self.figures()
        self.assertEqual(figures["failures"], [])
        self.assertEqual(figures["bf16"], "not measured: MemoryError: no memory")


class Greedy(unittest.TestCase):
    """Texts of one token: weft's is always 0, `chosen` are those of transformers, which sees these logits."""

    def judge(self, chosen: list[int], logits: list[float]) -> dict:
        subject = check.Subject.__new__(check.Subject)
        subject.seconds, subject.figures, subject.wide = None, {}, None
        subject.pairs = lambda *names: [(torch.tensor([5]), torch.tensor([0])) for _ in chosen]
        subject.load = lambda dtype: None
        texts = iter(chosen)
        subject.generate = lambda model, ids, **how: torch.tensor([[5, next(texts)]])
        subject.logits = lambda model, ids: torch.tensor([[logits]])
        subject.check_greedy()
        return subject.figures

    def test_near_ties_are_excused(self):
        self.assertEqual(self.judge([0, 1, 0], [1.0, 1.0005, 0.0])["greedy_excused"], 1)
        self.assertEqual(self.judge([1, 1] + [0] * 18, [1.0, 1.0005, 0.0])["greedy_excused"], 2)

    def test_a_near_tie_excuses_no_other_token(self):
        with self.assertRaisesRegex(check.Failure, "at token 0, to a logit 1 below the best"):
            self.judge([2], [1.0, 1.0005, 0.0])
        with self.assertRaises(check.Failure):
            self.judge([1], [0.0, 1.0, 1.0005])
        with self.assertRaises(check.Failure):
            self.judge([1], [float("nan"), 1.0, 1.0])

    def test_few_texts_are_excused(self):
        with self.assertRaisesRegex(check.Failure, "2 greedy texts of 19 part from weft's"):
            self.judge([1, 1] + [0] * 17, [1.0, 1.0005, 0.0])


class SentencePiece(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.subject = check.Subject.__new__(check.Subject)
        self.subject.figures, self.subject.directory = {}, pathlib.Path(folder.name)
        self.subject.texts = self.subject.directory / "texts.json"
        self.subject.texts.write_text(json.dumps({"texts": ["a"], "ids": [[1]], "prompt_ids": [[1]]}))
        for name in ("package", "AutoTokenizer"):
            self.addCleanup(setattr, check, name, getattr(check, name))
        library = types.SimpleNamespace(
            SentencePieceProcessor=lambda path: types.SimpleNamespace(encode=lambda text: [1])
        )
        self.packages = {"sentencepiece": library, "google.protobuf": True}
        check.package = self.packages.get

    def transformers_makes(self, ids: list[int]) -> None:
        tokenizer = types.SimpleNamespace(encode=lambda text, add_special_tokens=True: ids)
        check.AutoTokenizer = types.SimpleNamespace(from_pretrained=lambda *path, **how: tokenizer)

    def test_both_readers_are_asked(self):
        self.transformers_makes([1])
        self.subject.check_tokenizer()
        self.assertEqual(self.subject.figures, {"texts": 3})
        self.transformers_makes([2])
        message = "transformers' own tokenizer makes other ids of this tokenizer.model: ids of 'a'"
        with self.assertRaisesRegex(check.Failure, message):
            self.subject.check_tokenizer()

    def test_a_package_that_lacks_is_named(self):
        del self.packages["google.protobuf"]
        self.subject.check_tokenizer()
        note = "not compared: needs sentencepiece and protobuf"
        self.assertEqual(self.subject.figures, {"texts": 1, "transformers_tokenizer": note})


if __name__ == "__main__":
    unittest.main()
