"""Checks the recurrences of the modelling files alone, in fp64, without weft and without transformers.

    python tests/remote_code/check_recurrences.py

The chunked forms of the gated linear recurrence and of the delta rule against their steps, values and gradients, slow
and fast gates; the dual form of TTT against weights held for every token, with inner gradients by autograd. The last
line of output is `ok` or `FAILED`; the exit code is 0 or 1.
"""

import importlib
import pathlib
import shutil
import sys
import tempfile

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = [
    "checkpoints/huggingface/remote_code/weft_layers.py",
    "modules/families/gated_linear/weft_gated_linear.py",
    "modules/families/delta_rule/weft_delta_rule.py",
    "modules/families/ttt/weft_ttt.py",
]
BOUND = 1e-10  # relative to the largest element
LENGTHS = [1, 2, 5, 63, 64, 65, 130]
H, D_K, D_V = 2, 3, 4


def relative(a: Tensor, b: Tensor) -> float:
    difference = (a - b).abs().max() / b.abs().max().clamp_min(1e-30)
    return difference.item() if bool(torch.isfinite(a).all()) else float("inf")


def values_and_gradients(f, inputs: list[Tensor]) -> list[Tensor]:
    """o and S of f(*inputs), and the gradients of a fixed random function of both."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    o, S = f(*inputs)
    torch.manual_seed(1)
    ((o * torch.randn(o.shape)).sum() + (S * torch.randn(S.shape)).sum()).backward()
    return [o.detach(), S.detach(), *(x.grad for x in inputs)]


def stepped(step):
    """The recurrence token by token: inputs [T, ...] and at last the entry state."""

    def run(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        *tokens, S = inputs
        outputs = []
        for t in range(tokens[0].shape[0]):
            o, S = step(*(x[t] for x in tokens), S)
            outputs.append(o)
        return torch.stack(outputs), S

    return run


def log_decays(kind: str, T: int) -> Tensor:
    """[T, H, D_K or 1]: none, one for a head's channels or one each; fast ones forget all at once now and then."""
    g = -torch.rand(T, H, D_K if "channel" in kind else 1)
    if "none" in kind:
        g = torch.zeros_like(g)
    if "fast" in kind:
        g = torch.where(torch.rand_like(g) < 0.2, g * 3000.0, g)
    return g


def check_chunks(package) -> dict[str, float]:
    linear, delta = (importlib.import_module(f"{package}.{name}") for name in ("weft_gated_linear", "weft_delta_rule"))
    worst: dict[str, float] = {}
    for kind in ["none", "head", "channel", "fast head", "fast channel"]:
        for T in LENGTHS:
            torch.manual_seed(T)
            q, v, S = torch.randn(T, H, D_K), torch.randn(T, H, D_V), torch.randn(H, D_K, D_V)
            k, beta = F.normalize(torch.randn(T, H, D_K), dim=-1), 2.0 * torch.rand(T, H)
            g = log_decays(kind, T)
            for name, chunks, step, inputs in [
                ("gated linear", linear.gated_linear_chunks, linear.gated_linear_step, [q, k, v, g, S]),
                ("delta rule", delta.delta_rule_chunks, delta.delta_rule_step, [q, k, v, g, beta, S]),
            ]:
                pairs = zip(values_and_gradients(chunks, inputs), values_and_gradients(stepped(step), inputs))
                key = f"{name}, decays: {kind}"
                worst[key] = max(worst.get(key, 0.0), *(relative(a, b) for a, b in pairs))
    return worst


def primal_ttt(layer, q: Tensor, k: Tensor, v: Tensor, rate: Tensor) -> Tensor:
    """W_t = W - tok_t sum_(j<=t) rate_j dloss_j/dW with explicit weights, of q, k, v [T, H, d_h], rate [T, H, 1]."""

    def apply(weights: list[Tensor], u: Tensor) -> Tensor:
        y = u
        for i in range(0, len(weights), 2):
            y = F.gelu(y, approximate="tanh") if i > 0 else y
            y = torch.einsum("hi,hio->ho", y, weights[i]) + weights[i + 1]
        y = F.layer_norm(y, y.shape[-1:], eps=1e-6)
        return u + layer.gamma * y + layer.beta

    W = [getattr(layer, name).detach() for pair in layer.memory for name in pair]
    G = [torch.zeros_like(w) for w in W]
    outputs = []
    for t in range(q.shape[0]):
        place = t % layer.batch
        at_start = [w.clone().requires_grad_() for w in W]
        loss = 0.5 * ((apply(at_start, k[t]) - v[t]).square() * rate[t]).sum()
        G = [g + d for g, d in zip(G, torch.autograd.grad(loss, at_start))]
        step = (1.0 / (place + 1) + layer.offset[place]).clamp(min=0.0)
        own = [w - step * g for w, g in zip(W, G)]
        outputs.append(apply(own, q[t]))
        if place == layer.batch - 1:
            W, G = [w.detach() for w in own], [torch.zeros_like(w) for w in W]
    return torch.stack(outputs).detach()


def check_ttt(package) -> dict[str, float]:
    ttt = importlib.import_module(f"{package}.weft_ttt")
    site = importlib.import_module(f"{package}.weft_layers").Site(8, 2, 0, 1e-6, 64)
    options = {"heads": H, "head_dim": 4, "batch": 5, "inner_learning_rate": 1.0, "conv_width": 0, "rope": False}
    worst = {}
    for hidden_factor in (0, 2):
        torch.manual_seed(0)
        layer = ttt.TttLayer(options | {"gate": "none"}, site, hidden_factor)
        for p in layer.parameters():
            torch.nn.init.normal_(p, std=0.5)
        q, k, v = (torch.randn(23, H, 4) for _ in range(3))
        rate = torch.rand(23, H, 1)
        with torch.no_grad():
            dual = layer.remembered(q, k, v, rate, layer.initial_state())
        worst[f"ttt, hidden layer of {4 * hidden_factor}"] = relative(dual, primal_ttt(layer, q, k, v, rate))
    return worst


def main() -> None:
    torch.set_default_dtype(torch.float64)
    with tempfile.TemporaryDirectory() as folder:
        package = pathlib.Path(folder) / "weft_recurrences"
        package.mkdir()
        for file in FILES:
            shutil.copy(ROOT / file, package)
        sys.path.insert(0, folder)
        figures = check_chunks(package.name) | check_ttt(package.name)
    failed = False
    for name, figure in figures.items():
        failed |= not figure <= BOUND
        print(f"{'ok' if figure <= BOUND else 'FAILED':6} {name}  {figure:.1e}")
    print("FAILED" if failed else "ok")
    sys.exit(failed)


if __name__ == "__main__":
    main()
