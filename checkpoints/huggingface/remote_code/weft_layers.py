"""What the layers of a weft model are made of.

Shapes: T tokens of one sequence, d model width, H heads, D width of a head, C channels, w taps.

Numbers: weights and projections have the type of the file. Norms, gates, rotary tables, softmax and states are
computed in fp32, or in fp64 where the model is fp64: `wide()`.
"""

import math
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Site:
    """Where a mixer sits in a model."""

    width: int  # d
    layers: int  # blocks in the model
    layer: int  # index of this one
    norm_eps: float  # of the norms around mixers
    max_tokens: int  # longest document the model was trained on


def wide(x: Tensor) -> Tensor:
    """x in the type that sums and states have: fp32, or fp64 for fp64."""
    return x if x.dtype == torch.float64 else x.float()


class Mixer(nn.Module):
    """Maps x [T, d], the normalised input, to [T, d]: what the residual stream takes in.

    A mixer sees one sequence without padding. `state` holds what it remembers of the tokens before x: tensors, numbers,
    and lists and dicts of them, advanced in place. How a sequence is cut into calls changes the result by rounding
    only.
    """

    def __init__(self, options: dict, site: Site):
        super().__init__()
        self.options = options
        self.site = site

    def parameter(self, name: str, *shape: int, present: bool = True) -> None:
        """Declares self.NAME, whose value comes from the file; None where the layer does not have it."""
        self.register_parameter(name, nn.Parameter(torch.empty(*shape)) if present else None)

    def initial_state(self) -> dict:
        """Before the first token. state["length"] counts the tokens so far."""
        return {"length": 0}

    def forward(self, x: Tensor, state: dict) -> Tensor:
        raise NotImplementedError


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """x [..., in] -> x weight^T + bias [..., out], in the type of the weight [out, in]."""
    return F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype))


def rms_norm(x: Tensor, weight: Optional[Tensor] = None, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in the type of x. The weight is [D], or [H, D] with
    one row for each head of x [..., H, D]."""
    y = wide(x)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * wide(weight)).to(x.dtype)


def l2_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(sum(x^2) + eps) over the last dimension, in the type of x."""
    y = wide(x)
    return (y * torch.rsqrt(y.square().sum(-1, keepdim=True) + eps)).to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return (F.silu(wide(gate)) * wide(up)).to(up.dtype)


def short_convolution(
    x: Tensor, weight: Tensor, tail: Optional[Tensor], bias: Optional[Tensor] = None, silu: bool = True
) -> tuple[Tensor, Tensor]:
    """Causal depthwise convolution over time; the last tap acts on the current token:

        y_t = act(bias + sum_j weight_j x_(t - w + 1 + j))

    x [T, C], weight [C, w], tail [w - 1, C]: the inputs before x, oldest first, or None for zeros. Returns y and the
    tail for what follows.
    """
    taps = weight.shape[1]
    if tail is None:
        tail = x.new_zeros(taps - 1, x.shape[1])
    inputs = torch.cat([tail.to(x.dtype), x])
    y = F.conv1d(wide(inputs).t().unsqueeze(0), wide(weight).unsqueeze(1), groups=weight.shape[0])[0].t()
    if bias is not None:
        y = y + wide(bias)
    y = F.silu(y) if silu else y
    return y.to(x.dtype), inputs[inputs.shape[0] - (taps - 1) :].detach()


class Rotary:
    """Rotary positions (arXiv:2104.09864) on the first `dim` channels of a head, channel i paired with i + dim / 2:

        phi = position * theta_i        theta_i = base^(-2 i / dim)
        y_i = x_i cos phi - x_(i + dim/2) sin phi        y_(i + dim/2) = x_i sin phi + x_(i + dim/2) cos phi

    `frequencies` and `magnitude` say otherwise where positions are scaled; see rotary().
    """

    def __init__(self, frequencies: list[float], magnitude: float = 1.0):
        self.frequencies = frequencies
        self.magnitude = magnitude

    def table(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [T, dim/2] in fp64, times the magnitude. Angles are formed in fp64: far positions stay exact."""
        theta = torch.tensor(self.frequencies, dtype=torch.float64, device=positions.device)
        phi = positions.double()[:, None] * theta
        return self.magnitude * phi.cos(), self.magnitude * phi.sin()

    def at(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [T, H, D] turned to positions [T]."""
        half = len(self.frequencies)
        y = wide(x)
        cos, sin = (t.to(y.dtype)[:, None, :] for t in self.table(positions))
        a, b, rest = y[..., :half], y[..., half : 2 * half], y[..., 2 * half :]
        return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1).to(x.dtype)

    def __call__(self, x: Tensor, start: int) -> Tensor:
        """x [T, H, D] of the tokens from position `start` on."""
        return self.at(x, torch.arange(start, start + x.shape[0], device=x.device))


def rotary(options: dict, dim: int) -> Optional[Rotary]:
    """The rotary positions that a mixer's options ask for on `dim` channels; None without any. What is kept of a
    frequency theta that is stretched by a factor becomes keep theta + (1 - keep) theta / factor.

    yarn_factor: YaRN (arXiv:2309.00071) keeps channels that turn at least 32 times over the original length, divides
    by the factor the frequency of those that turn at most once, blends linearly between, and multiplies cos and sin by
    0.1 ln(factor) + 1. rope_scaling: the laws of pretrained models, see kept().
    """
    if not options.get("rope", True):
        return None
    base = float(options.get("rope_base", 10000.0))
    theta = [base ** (-2.0 * i / dim) for i in range(dim // 2)]
    factor = float(options.get("yarn_factor", 1.0))
    law = options.get("rope_scaling", "none")
    magnitude = 1.0
    if factor > 1.0:
        length = float(options["yarn_original_length"])
        keep = [clamp((length * t / (2.0 * math.pi) - 1.0) / 31.0) for t in theta]
        magnitude = 0.1 * math.log(factor) + 1.0
    elif law != "none":
        factor = float(options["rope_factor"])
        keep = kept(options, law, theta, base, dim)
        if law == "yarn":
            magnitude = options["rope_attention_factor"] or (0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0)
    else:
        return Rotary(theta)
    return Rotary([k * t + (1.0 - k) * t / factor for k, t in zip(keep, theta)], magnitude)


def kept(options: dict, law: str, theta: list[float], base: float, dim: int) -> list[float]:
    """What a rope_scaling keeps of each frequency:

    linear   nothing
    llama3   rises linearly with the turns over the original length, from low_freq_factor (0) to high_freq_factor (1)
    yarn     falls linearly with the channel's index, from that which turns beta_fast times (1) to that which turns
             beta_slow times (0); `truncate` rounds both indices outwards
    """
    if law == "linear":
        return [0.0] * len(theta)
    length = float(options["rope_original_length"])
    if law == "llama3":
        low, high = options["rope_low_freq_factor"], options["rope_high_freq_factor"]
        return [clamp((length * t / (2.0 * math.pi) - low) / (high - low)) for t in theta]
    if law != "yarn":
        raise ValueError(f'rope_scaling = "{law}"; expected "none", "linear", "llama3" or "yarn"')

    def index(turns: float) -> float:
        return dim * math.log(length / (turns * 2.0 * math.pi)) / (2.0 * math.log(base))

    first, last = index(options["rope_beta_fast"]), index(options["rope_beta_slow"])
    if options["rope_truncate"]:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0.0), min(last, dim - 1.0)
    last += 0.001 if first == last else 0.0
    return [1.0 - clamp((i - first) / (last - first)) for i in range(len(theta))]


def clamp(x: float) -> float:
    return min(max(x, 0.0), 1.0)


def heads_of(options: dict, site: Site) -> tuple[int, int, int]:
    """Query heads, key/value heads and the width of a head, where 0 stands for "from the others"."""
    heads = options["heads"]
    return heads, options.get("kv_heads", 0) or heads, options.get("head_dim", 0) or site.width // heads
