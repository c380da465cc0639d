"""The memory of Titans (arXiv:2501.00663): weights of a small network f, trained while the sequence is read.

For each head

    f(x) = x W      or, with a hidden layer,      f(x) = gelu(x W1) W2          gelu in its tanh form
    Z_t = mu_t Z_(t-1) - theta_t g_t              g_t: gradient of |f(k_t) - v_t|^2 / 2 at Wc
    W_t = keep_t W_(t-1) + Z_t                    Wc: W at the start of the token's chunk of C tokens
    o_t = f(q_t; W_t)

Shapes: T tokens, n of them in one chunk, H heads, D width of a head.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .weft_layers import wide


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def gelu_slope(x: Tensor) -> Tensor:
    c, a = 0.7978845608028654, 0.044715
    t = torch.tanh(c * (x + a * x**3))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * a * x * x)


def coefficients(keep: Tensor, momentum: Tensor) -> tuple[Tensor, ...]:
    """What is left at token t of the step that token j <= t took, and of the chunk's first W and Z; all [H, n, ...]:

    M_tj = prod_(j < s <= t) mu_s       in Z_t          c_tj = keep_t c_(t-1)j + M_tj       in W_t
    B_t = mu_t B_(t-1)                  Z in Z_t        A_t = keep_t A_(t-1)                W in W_t
                                                        f_t = keep_t f_(t-1) + B_t          Z in W_t

    keep, momentum [n, H]. Returns M, c [H, n, n] and A, B, f [H, n].
    """
    n, H = keep.shape
    m = c = keep.new_zeros(H, n)
    a = b = keep.new_ones(H)
    f = keep.new_zeros(H)
    rows: list[tuple[Tensor, ...]] = []
    for t in range(n):
        own = F.one_hot(torch.tensor(t, device=keep.device), n).to(keep.dtype)
        m = momentum[t, :, None] * m + own
        c = keep[t, :, None] * c + m
        a, b = keep[t] * a, momentum[t] * b
        f = keep[t] * f + b
        rows.append((m, c, a, b, f))
    return tuple(torch.stack(column, 1) for column in zip(*rows))


def read(q: Tensor, weights: list[Tensor]) -> Tensor:
    """f(q) of q [T, H, D] by weights [H, in, out] -> [T, H, D], without writing."""
    x = wide(q).transpose(0, 1)
    for i, W in enumerate(weights):
        x = (gelu(x) if i > 0 else x) @ wide(W)
    return x.transpose(0, 1).to(q.dtype)


def memory_state(first: list[Tensor]) -> dict:
    """Before the first token: W is learned, Z = 0, no token of a chunk seen."""
    W = [wide(w) for w in first]
    return {"W": W, "Z": [torch.zeros_like(w) for w in W], "Wc": W, "phase": 0}


def titans_memory(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, momentum: Tensor, rate: Tensor, chunk: int, state: dict[str, Any]
) -> Tensor:
    """q, k, v [T, H, D]; keep, momentum, rate [T, H] in wide() types -> o [T, H, D]; advances a memory_state()."""
    outputs, at = [], 0
    while at < q.shape[0]:
        if state["phase"] == 0:
            state["Wc"] = state["W"]
        end = min(q.shape[0], at + chunk - state["phase"])
        part = slice(at, end)
        rows = [wide(x[part]).transpose(0, 1) for x in (q, k, v)]
        outputs.append(titans_chunk(*rows, keep[part], momentum[part], rate[part], state))
        state["phase"] = (state["phase"] + end - at) % chunk
        at = end
    return torch.cat(outputs, 1).transpose(0, 1).to(v.dtype)


def titans_chunk(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, momentum: Tensor, rate: Tensor, state: dict) -> Tensor:
    """Tokens of one chunk, q, k, v [H, n, D] -> o [H, n, D]. Gradients are x^T e with x what enters a layer and e the
    gradient at its output, both at Wc, and all else is linear in them: for each layer

        y  = A (x_q W) + f (x_q Z) - (tril(x_q x_k^T) * c diag(theta)) e
        W' = A_n W + f_n Z - x_k^T (theta c_n * e)            Z' = B_n Z - x_k^T (theta M_n * e)
    """
    M, c, A, B, f = coefficients(keep, momentum)
    theta = rate.t()
    inputs, errors = gradients(k, v, state["Wc"])
    x, W_next, Z_next = q, [], []
    for i, (W, Z, x_k, e) in enumerate(zip(state["W"], state["Z"], inputs, errors)):
        x = gelu(x) if i > 0 else x
        scores = (x @ x_k.mT).tril() * c * theta[:, None, :]
        W_next.append(
            A[:, -1, None, None] * W + f[:, -1, None, None] * Z - x_k.mT @ ((theta * c[:, -1])[..., None] * e)
        )
        Z_next.append(B[:, -1, None, None] * Z - x_k.mT @ ((theta * M[:, -1])[..., None] * e))
        x = A[..., None] * (x @ W) + f[..., None] * (x @ Z) - scores @ e
    state["W"], state["Z"] = W_next, Z_next
    return x


def gradients(k: Tensor, v: Tensor, Wc: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """For each layer of f at Wc: what enters it for the keys, and the gradient of the loss at its output."""
    if len(Wc) == 1:
        return [k], [k @ Wc[0] - v]
    a = k @ Wc[0]
    e = gelu(a) @ Wc[1] - v
    return [k, gelu(a)], [(e @ Wc[1].mT) * gelu_slope(a), e]
