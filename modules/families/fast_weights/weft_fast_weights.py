"""A memory whose state is the weights of a small network, trained chunk by chunk while the sequence is read.

    a = x W0^T,  b = x W2^T,  h = silu(a) * b,  f_W(x) = rho x + h W1^T          rho = 1 with `residual`, else 0

A sequence is cut into chunks of L tokens and starts with the learned W0, W2, W1 and momentum Z = 0. For each chunk:

1. Read its tokens with the weights before it: out = f_W(q).
2. When it is complete, write. With its k, v and rates eta:

    e  = v (dot)   or   v - f(k) (l2)                 descent direction of -<f(k), v>, |f(k) - v|^2 / 2
    y  = e W1,  r = y * b * silu'(a),  p = y * silu(a)
    g0 = sum eta_0 r^T k,   g2 = sum eta_2 p^T k,   g1 = sum eta_1 e^T h
    Z <- mean(mu) Z + g      W <- (1 - mean(lambda)) base + D,      D = Z, or NS(Z) with `orthogonalise`

N(W) gives each row of W the norm n that it has in the learned weights, n w / (|w| + 1e-5):

    norm       reads   e, y, r, p at   base   afterwards
    none       W       W               W
    post       W       W               W      W <- N(W)
    pre        N(W)    N(W)            W
    read_raw   W       N(W)            N(W)

Shapes: T tokens, H memories, d_m width of keys and values, d_h hidden width; W0, W2 [H, d_h, d_m], W1 [H, d_m, d_h].
Lists of weights hold W0, W2, W1 in this order.
"""

from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from .weft_layers import wide

NEWTON_SCHULZ = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


@dataclass(frozen=True)
class FastWeights:
    chunk: int  # L
    loss: str  # "dot", "l2"
    norm: str  # "none", "post", "pre", "read_raw"
    residual: bool
    orthogonalise: bool
    detach_norm: bool  # no gradient through the norms n


def orthogonalised(Z: Tensor) -> Tensor:
    """NS(Z): Newton-Schulz steps from Z / (|Z| + 1e-7), which push singular values towards 1; in fp64."""
    X = Z.double()
    tall = X.shape[-2] > X.shape[-1]
    X = X.mT if tall else X
    X = X / (X.square().sum((-2, -1), keepdim=True).sqrt() + 1e-7)
    for alpha, beta, gamma in NEWTON_SCHULZ:
        A = X @ X.mT
        X = alpha * X + (beta * A + gamma * A @ A) @ X
    return (X.mT if tall else X).to(Z.dtype)


def restored(weights: list[Tensor], learned: list[Tensor], detach: bool) -> list[Tensor]:
    """N(W)."""

    def rows(W: Tensor, first: Tensor) -> Tensor:
        n = wide(first).norm(dim=-1, keepdim=True)
        return (n.detach() if detach else n) * W / (W.norm(dim=-1, keepdim=True) + 1e-5)

    return [rows(W, first) for W, first in zip(weights, learned)]


def network(x: Tensor, weights: list[Tensor], residual: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [H, T, d_m] -> a, b, h [H, T, d_h] and f(x) [H, T, d_m]."""
    W0, W2, W1 = weights
    a, b = x @ W0.mT, x @ W2.mT
    h = F.silu(a) * b
    out = h @ W1.mT
    return a, b, h, x + out if residual else out


def descent(k: Tensor, v: Tensor, eta: Tensor, weights: list[Tensor], config: FastWeights) -> list[Tensor]:
    """g0, g2, g1 of a chunk: k, v [H, L, d_m], eta [H, L, 3]."""
    a, b, h, out = network(k, weights, config.residual)
    e = v - out if config.loss == "l2" else v
    y = e @ weights[2]
    s = torch.sigmoid(a)
    r = y * b * (s * (1.0 + a * (1.0 - s)))
    p = y * F.silu(a)
    eta_0, eta_1, eta_2 = (eta[..., i : i + 1] for i in range(3))
    return [(eta_0 * r).mT @ k, (eta_2 * p).mT @ k, (eta_1 * e).mT @ h]


def fast_weight_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    mu: Optional[Tensor],
    decay: Optional[Tensor],
    learned: list[Tensor],
    config: FastWeights,
    state: dict[str, Any],
) -> Tensor:
    """q, k, v [T, H, d_m], eta [T, H, 3], mu and decay (lambda) [T, H] or None for 0 -> [T, H, d_m]. The state is {}
    before the first token: weights W, momentum Z and the rows of the chunk that is not complete."""
    if not state:
        state["W"] = [wide(w) for w in learned]
        state["Z"] = [torch.zeros_like(w) for w in state["W"]]
        state["rows"] = None
    zero = eta.new_zeros(eta.shape[:2])
    rates = torch.cat([eta, (zero if mu is None else mu)[..., None], (zero if decay is None else decay)[..., None]], -1)
    fresh = torch.cat([wide(k), wide(v), wide(rates)], -1).transpose(0, 1)
    x = wide(q).transpose(0, 1)
    d_m, outputs, at, T = q.shape[-1], [], 0, q.shape[0]
    while at < T:
        waiting = 0 if state["rows"] is None else state["rows"].shape[1]
        end = min(T, at + config.chunk - waiting)
        weights = state["W"]
        inner = restored(weights, learned, config.detach_norm) if config.norm in ("pre", "read_raw") else weights
        outputs.append(network(x[:, at:end], inner if config.norm == "pre" else weights, config.residual)[3])
        rows = fresh[:, at:end] if waiting == 0 else torch.cat([state["rows"], fresh[:, at:end]], 1)
        at = end
        state["rows"] = rows
        if rows.shape[1] < config.chunk:
            break
        state["rows"] = None
        g = descent(rows[..., :d_m], rows[..., d_m : 2 * d_m], rows[..., 2 * d_m : 2 * d_m + 3], inner, config)
        carried, forgotten = (rows[..., i].mean(1)[:, None, None] for i in (-2, -1))
        state["Z"] = [carried * Z + step for Z, step in zip(state["Z"], g)]
        update = [orthogonalised(Z) for Z in state["Z"]] if config.orthogonalise else state["Z"]
        base = inner if config.norm == "read_raw" else weights
        state["W"] = [(1.0 - forgotten) * W + D for W, D in zip(base, update)]
        if config.norm == "post":
            state["W"] = restored(state["W"], learned, config.detach_norm)
    return torch.cat(outputs, 1).transpose(0, 1).to(v.dtype)
