"""Softmax attention over the keys that each query sees, and the keys and values kept between calls.

Shapes: T queries, S keys, H_Q query heads, H_KV key/value heads, G = H_Q / H_KV, widths D and D_V.
"""

import math
from typing import Optional

import torch
from torch import Tensor

from .weft_layers import wide

# Queries whose scores are in memory together.
QUERY_ROWS = 512


def softmax_over_seen(scores: Tensor, sink_logit: Optional[Tensor] = None) -> Tensor:
    """p = e^(a - lse), lse = log(sum e^a + e^sink), over the last dimension; scores are -inf where a key is not seen.
    A query that sees nothing has p = 0. sink_logit broadcasts against scores without their last dimension."""
    if scores.shape[-1] == 0:
        return scores
    top = scores.amax(-1, keepdim=True)
    if sink_logit is not None:
        top = torch.maximum(top, sink_logit[..., None])
    top = top.detach().clamp_min(torch.finfo(scores.dtype).min)
    weights = (scores - top).exp()
    mass = weights.sum(-1, keepdim=True)
    if sink_logit is not None:
        mass = mass + (sink_logit[..., None] - top).exp()
    return weights / mass.where(mass > 0, 1.0)


def attention_weights(
    q: Tensor,
    k: Tensor,
    seen: Tensor,
    scale: float,
    soft_cap: float = 0.0,
    sink_logit: Optional[Tensor] = None,
) -> Tensor:
    """p_ij of the keys j that query i sees:

        z_ij = scale <q_i, k_j>     a_ij = c tanh(z_ij / c), or z_ij without soft_cap c     p = softmax_over_seen(a)

    q [T, H_Q, D], k [S, H_KV, D], sink_logit [H_Q]; seen, bool, broadcasts against the result [H_KV, G, T, S].
    """
    T, H_Q, D = q.shape
    H_KV = k.shape[1]
    grouped = wide(q).view(T, H_KV, H_Q // H_KV, D)
    a = torch.einsum("thgd,shd->hgts", grouped, wide(k)) * scale
    if soft_cap > 0.0:
        a = soft_cap * torch.tanh(a / soft_cap)
    a = a.masked_fill(~seen, -math.inf)
    sink = None if sink_logit is None else wide(sink_logit).view(H_KV, H_Q // H_KV, 1)
    return softmax_over_seen(a, sink)


def weighted_values(p: Tensor, v: Tensor) -> Tensor:
    """o_i = sum_j p_ij v_j: p [H_KV, G, T, S], v [S, H_KV, D_V] -> [T, H_Q, D_V]."""
    return torch.einsum("hgts,shd->thgd", p, wide(v)).reshape(p.shape[2], -1, v.shape[-1]).to(v.dtype)


def query_tiles(start: int, T: int) -> list[tuple[int, int]]:
    """Positions [begin, end) of the queries whose weights are in memory together."""
    return [(begin, min(begin + QUERY_ROWS, start + T)) for begin in range(start, start + T, QUERY_ROWS)]


class KeyValues:
    """Keys and values of one sequence in a mixer's state, under two names of it: all of them, or those that a window of
    `window` tokens and the first `sinks` tokens still show to tokens to come (the last window - 1, and the sinks).

    Rows hold the positions 0 ... pinned - 1 and then base, base + 1, ...
    """

    def __init__(self, window: int = 0, sinks: int = 0, name: str = ""):
        self.window = window
        self.sinks = sinks
        self.names = (f"k{name}", f"v{name}")

    def extend(self, state: dict, k: Tensor, v: Tensor, start: int) -> tuple[Tensor, Tensor, int, int]:
        """Takes k [T, H_KV, D], v [T, H_KV, D_V] of the tokens from position `start` on; returns all rows that they may
        see, with `pinned` and `base`."""
        k_name, v_name = self.names
        pinned, base = self.span(start)
        if start > 0:
            k, v = torch.cat([state[k_name], k]), torch.cat([state[v_name], v])
        end = start + k.shape[0] - (state[k_name].shape[0] if start > 0 else 0)
        kept_pinned, kept_base = self.span(end)
        first = kept_base - base + pinned
        for name, rows in ((k_name, k), (v_name, v)):
            state[name] = torch.cat([rows[:kept_pinned], rows[first:]]) if first > 0 else rows
        return k, v, pinned, base

    def span(self, length: int) -> tuple[int, int]:
        """`pinned` and `base` of what is kept of `length` tokens."""
        base = length - (self.window - 1)
        return (0, 0) if self.window == 0 or base <= self.sinks else (self.sinks, base)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, state: dict, start: int, **how) -> Tensor:
        """Attention of the tokens from position `start` on to all before them that window and sinks show, themselves
        included; takes their keys and values into the state. For `how` see attention_weights()."""
        T = q.shape[0]
        k, v, pinned, base = self.extend(state, k, v, start)
        how.setdefault("scale", q.shape[-1] ** -0.5)
        pieces = []
        for begin, end in query_tiles(start, T):
            low = max(base, begin - self.window + 1) if self.window > 0 else base
            sinks = min(self.sinks, pinned if pinned > 0 else low)
            first, last = low - base + pinned, end - base + pinned
            keys, values = k[first:last], v[first:last]
            at = torch.arange(low, end, device=q.device)
            if sinks > 0:
                keys, values = torch.cat([k[:sinks], keys]), torch.cat([v[:sinks], values])
                at = torch.cat([torch.arange(sinks, device=q.device), at])
            distance = torch.arange(begin, end, device=q.device)[:, None] - at
            seen = distance >= 0
            if self.window > 0:
                seen = seen & ((distance < self.window) | (at < self.sinks))
            p = attention_weights(q[begin - start : end - start], keys, seen, **how)
            pieces.append(weighted_values(p, values))
        return torch.cat(pieces)
