"""Makes a directory that transformers loads from a checkpoint of weft, without `weft export`: for working on the
modelling files themselves.

    python tests/remote_code/assemble.py RUN OUT [--perturb SEED] [--logits PROGRAM] [--lengths 1,2,65]

--perturb draws every parameter anew, so that none is at a first value (0, 1) which hides a term. --logits names a
program that is called as `PROGRAM CHECKPOINT IDS.txt OUT.bin f64 params PARAMS.bin` and writes weft's logits [T, V] as
float64; what it says goes to OUT/expected.safetensors for check.py. RUN is a run or one checkpoint.
"""

import argparse
import json
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import tomllib

import h5py
import torch
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]


def checkpoint_of(path: pathlib.Path) -> pathlib.Path:
    if (path / "manifest.json").exists():
        return path
    steps = sorted((path / "checkpoints").glob("step_*[0-9]"))
    if not steps:
        sys.exit(f"{path}: neither a checkpoint nor a run with checkpoints")
    return steps[-1]


def parameters_of(checkpoint: pathlib.Path, manifest: dict) -> dict[str, torch.Tensor]:
    values = {p["name"]: torch.zeros(p["shape"]).flatten() for p in manifest["parameters"]}
    for shard in checkpoint.glob("shard_*.h5"):
        with h5py.File(shard) as file:
            for name, group in file["master"].items():
                for offset, data in group.items():
                    values[name][int(offset) : int(offset) + data.size] = torch.from_numpy(data[:])
    return {p["name"]: values[p["name"]].view(p["shape"]) for p in manifest["parameters"]}


def perturbed(values: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)

    def draw(value: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(value.shape)
        return noise * value.shape[-1] ** -0.5 if value.dim() >= 2 else value + 0.1 * noise

    return {name: draw(value) for name, value in values.items()}


def config_of(recipe: dict, values: dict[str, torch.Tensor]) -> dict:
    model = recipe["model"]
    hidden = next((v.shape[0] for name, v in values.items() if name.endswith("ffn.w_gate")), 0)
    return {
        "model_type": "weft",
        "architectures": ["WeftForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_weft.WeftConfig",
            "AutoModel": "modeling_weft.WeftModel",
            "AutoModelForCausalLM": "modeling_weft.WeftForCausalLM",
        },
        "dtype": "float32",
        "vocab_size": values["embedding"].shape[0],
        "hidden_size": model["width"],
        "num_hidden_layers": model["layers"],
        "intermediate_size": hidden,
        "ffn_bias": any(name.endswith("ffn.b_up") for name in values),
        "rms_norm_eps": model["norm_eps"],
        "residual": model.get("residual", "pre_norm"),
        "tie_word_embeddings": model["tied"],
        "max_position_embeddings": recipe["data"]["sequence_length"],
        "bos_token_id": None,
        "eos_token_id": 256,
        "pad_token_id": 256,
        "pattern": model["pattern"],
        "mixers": {name: recipe["mixer"][name] for name in model["pattern"]},
    }


def write_code(out: pathlib.Path, config: dict) -> None:
    sources = {path.name: path for path in ROOT.glob("**/weft_*.py") if "build" not in path.parts}
    sources |= {path.name: path for path in (ROOT / "checkpoints/huggingface/remote_code").glob("*.py")}
    types = sorted({options["type"] for options in config["mixers"].values()})
    imports, entries = [], []
    wanted = ["configuration_weft", "modeling_weft"]
    for name in types:
        path = sources.get(f"weft_{name}.py")
        if path is None:
            sys.exit(f"no modelling file weft_{name}.py")
        class_name = name.title().replace("_", "")
        imports.append(f"from .weft_{name} import {class_name}")
        entries.append(f'    "{name}": {class_name},')
        wanted.append(f"weft_{name}")
    (out / "weft_mixers.py").write_text("\n".join([*imports, "", "MIXERS = {", *entries, "}", ""]))
    done = {"weft_mixers"}
    while wanted:
        name = wanted.pop()
        if name in done:
            continue
        done.add(name)
        shutil.copyfile(sources[f"{name}.py"], out / f"{name}.py")
        wanted += re.findall(r"^from \.(\w+) import", (out / f"{name}.py").read_text(), re.M)
    # Loaders of transformers before 5.23 copy only the files that this one names.
    with open(out / "modeling_weft.py", "a") as file:
        file.write("\n# Named here for loaders that copy only what this file imports.\n")
        named = set(re.findall(r"^from \.(\w+) import", (out / "modeling_weft.py").read_text(), re.M))
        for name in sorted(done - named - {"modeling_weft"}):
            file.write(f"from .{name} import __name__ as _  # noqa: E402, F401\n")


def write_params(path: pathlib.Path, values: dict[str, torch.Tensor]) -> None:
    with open(path, "wb") as file:
        for name, value in values.items():
            file.write(struct.pack("<I", len(name)) + name.encode() + struct.pack("<Q", value.numel()))
            file.write(value.double().numpy().tobytes())


def expected(program: str, checkpoint: pathlib.Path, values: dict, lengths: list[int]) -> dict[str, torch.Tensor]:
    vocabulary = values["embedding"].shape[0]
    generator = torch.Generator().manual_seed(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        params, ids_file, out = (str(pathlib.Path(folder) / name) for name in ("params", "ids", "out"))
        write_params(pathlib.Path(params), values)
        for i, T in enumerate(lengths):
            ids = torch.randint(0, vocabulary, (T,), generator=generator)
            pathlib.Path(ids_file).write_text(" ".join(str(int(t)) for t in ids))
            subprocess.run(
                [program, checkpoint, ids_file, out, "f64", "params", params], check=True, stdout=subprocess.DEVNULL
            )
            logits = torch.frombuffer(bytearray(pathlib.Path(out).read_bytes()), dtype=torch.float64)
            results[f"ids.{i}"] = ids
            results[f"logits.{i}"] = logits.view(T, vocabulary)
    return results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--perturb", type=int)
    parser.add_argument("--logits")
    parser.add_argument("--lengths", default="1,2,63,64,65,257")
    arguments = parser.parse_args()
    checkpoint = checkpoint_of(arguments.run)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    values = parameters_of(checkpoint, manifest)
    if arguments.perturb is not None:
        values = perturbed(values, arguments.perturb)
    arguments.out.mkdir(parents=True, exist_ok=True)
    config = config_of(tomllib.loads(manifest["provenance"]["recipe"]), values)
    (arguments.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_code(arguments.out, config)
    weights = {f"model.{name}": value.contiguous() for name, value in values.items()}
    save_file(weights, arguments.out / "model.safetensors", {"format": "pt"})
    if arguments.logits:
        lengths = [int(length) for length in arguments.lengths.split(",")]
        results = expected(arguments.logits, checkpoint, values, lengths)
        save_file(results, arguments.out / "expected.safetensors", {"dtype": "f64"})


if __name__ == "__main__":
    main()
