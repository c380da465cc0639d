"""Scores a small multiple-choice task with lm_eval's backend for Hugging Face models and with `weft eval`.

    python tests/remote_code/lm_eval_agreement.py WEFT RUN EXPORT

WEFT is the program, RUN a run or checkpoint, EXPORT the directory that `weft export RUN --dtype fp32` wrote. lm_eval
runs the task on the directory; every request that it made goes to `weft eval RUN --requests --device cpu`. Log-likelihoods must
agree within 1e-3 and greedy flags must be equal; the last line is `ok` or `FAILED`. Needs lm_eval, offline.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

LARGEST_DIFFERENCE = 1e-3

TASK = """\
task: weft_words
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
"""

# Contexts that end in spaces, are empty or longer than a row; continuations of one byte and of several characters.
QUESTIONS = [
    ("The opposite of day is", ["night", "morning", "noon"], 0),
    ("A loom is used to ", ["weave", "bake"], 0),
    ("Wool comes from\n\n", ["sheep", "stones", "rivers", "clouds"], 0),
    ("", ["The", "Zqx"], 0),
    ("Two and two are", ["four", "five"], 0),
    ("Ein Webstuhl heißt auf Englisch", ["loom", "boot", "naïve"], 0),
    ("日本の首都は", ["東京", "大阪"], 0),
    ("word " * 400 + "end", ["x", "yz"], 1),
]


def main() -> None:
    weft, run, export = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        data = folder / "questions.jsonl"
        lines = [json.dumps({"question": q, "choices": c, "answer": a}) for q, c, a in QUESTIONS]
        data.write_text("\n".join(lines) + "\n")
        (folder / "weft_words.yaml").write_text(TASK.format(data=data))
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        model = HFLM(pretrained=export, trust_remote_code=True, device="cpu", dtype="float32", batch_size=3)
        tasks = TaskManager(include_path=name, include_defaults=False)
        result = simple_evaluate(model=model, tasks=["weft_words"], task_manager=tasks, log_samples=True, bootstrap_iters=0)
        requests, expected = [], []
        for sample in result["samples"]["weft_words"]:
            arguments = sample["arguments"]
            pairs = arguments.values() if isinstance(arguments, dict) else arguments
            for pair, (score, greedy) in zip(pairs, sample["filtered_resps"]):
                context, continuation = pair.values() if isinstance(pair, dict) else pair
                requests.append({"context": context, "continuation": continuation})
                expected.append((float(score), bool(greedy)))
        asked = folder / "requests.jsonl"
        asked.write_text("".join(json.dumps(request) + "\n" for request in requests))
        # On the CPU, since a GPU may compute in bf16.
        command = [weft, "eval", run, "--requests", asked, "--device", "cpu"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    scores = [json.loads(line) for line in output.splitlines()]
    if len(scores) != len(expected):
        sys.exit(f"{len(scores)} scores for {len(expected)} requests\nFAILED")
    largest = 0.0
    failed = False
    for request, (score, greedy), own in zip(requests, expected, scores):
        difference = abs(score - own["loglikelihood"])
        largest = max(largest, difference)
        if not difference <= LARGEST_DIFFERENCE or greedy != own["is_greedy"]:
            failed = True
            print(f"{request['context'][-40:]!r} {request['continuation']!r}: lm_eval {score} {greedy}, weft {own}")
    print(f"{len(scores)} requests, log-likelihoods within {largest:.2g}; accuracy {result['results']['weft_words']['acc,none']}")
    print("FAILED" if failed else "ok")
    sys.exit(failed)


if __name__ == "__main__":
    main()
