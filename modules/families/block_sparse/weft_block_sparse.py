"""Choosing blocks of tokens by scores against summaries of them, and attention to the chosen blocks.

A summary stands for a span of `length` tokens, one every `stride` tokens, and is seen once its last token has passed.
Block j is the tokens [j block, (j + 1) block).

Shapes: T queries, S keys, n summaries, J blocks, H_Q query heads, H_KV key/value heads, G = H_Q / H_KV, D width; H_sel
is H_KV where the heads of a group choose together, else H_Q as [H_KV, G].
"""

import math
from dataclasses import dataclass
from typing import Callable, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .weft_layers import Mixer, Site, heads_of, linear, rms_norm, rotary, wide
from .weft_softmax import KeyValues, attention_weights, query_tiles, weighted_values


@dataclass(frozen=True)
class Span:
    length: int
    stride: int

    def count(self, tokens: int) -> int:
        """Summaries of the first `tokens` tokens."""
        return 0 if tokens < self.length else (tokens - self.length) // self.stride + 1

    def seen(self, positions: Tensor, n: int) -> Tensor:
        """Which of n summaries the tokens at `positions` see, [T, n]."""
        last = torch.arange(n, device=positions.device) * self.stride + self.length - 1
        return last <= positions[:, None]


@dataclass(frozen=True)
class Rule:
    """Which blocks up to its own a query takes: `selected` of them, first those that are forced (the `first` blocks of
    the sequence, the last `local` up to its own), then larger scores, ties to the smaller index. Queries at positions
    below `dense` take all."""

    block: int
    selected: int
    first: int
    local: int
    dense: int = 0

    def choose(self, scores: Tensor, positions: Tensor) -> Tensor:
        """Scores [..., T, J] of queries at positions [T] -> what they take, bool [..., T, J]."""
        J = scores.shape[-1]
        j = torch.arange(J, device=scores.device)
        own = (positions // self.block)[:, None]
        past = j <= own
        forced = past & ((j < self.first) | (j > own - self.local))
        scores = scores.masked_fill(forced, math.inf).masked_fill(~past, -math.inf)
        best = scores.sort(dim=-1, descending=True, stable=True).indices[..., : self.selected]
        taken = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
        return (taken | (positions < self.dense)[:, None]) & past


def overlap_scores(p: Tensor, span: Span, rule: Rule, J: int, largest: bool) -> Tensor:
    """Scores of blocks from the probabilities p [H_KV, G, T, n] of summaries, summed over the heads of a group: for
    each block their sum over the strides that it shares with each summary, or the largest -> [H_KV, T, J]."""
    p = p.sum(1)
    strides = rule.block // span.stride
    shared = span.length // span.stride
    scores = p.new_zeros(*p.shape[:2], J * strides)
    for r in range(shared):
        end = min(p.shape[-1] + r, scores.shape[-1])
        place = scores[..., r:end]
        here = p[..., : end - r]
        scores[..., r:end] = torch.maximum(place, here) if largest else place + here
    scores = scores.view(*p.shape[:2], J, strides)
    return scores.amax(-1) if largest else scores.sum(-1)


def chosen_attention(q: Tensor, k: Tensor, v: Tensor, taken: Tensor, positions: Tensor, block: int) -> Tensor:
    """One softmax over the tokens up to each query of the blocks that it takes: q [T, H_Q, D] at positions [T], k and v
    [S, H_KV, .] from position 0, taken [H_KV, G or 1, T, J] -> [T, H_Q, D_V]."""
    at = torch.arange(k.shape[0], device=k.device)
    seen = taken[..., at // block] & (at <= positions[:, None])
    return weighted_values(attention_weights(q, k, seen, q.shape[-1] ** -0.5), v)


class Compression(nn.Module):
    """Summaries of spans of tokens: for the rows X [l, D] of a span and head

        mean     mean(X)
        linear   mean(X) + w1^T vec(X)
        mlp      mean(X) + w2^T silu(w1^T vec(X + pe) + b1)

    Parameters: w1 [H, l D, r], pe [H, l, D], b1 [H, r], w2 [H, r, D].
    """

    def __init__(self, kind: str, span: Span, heads: int, width: int, hidden: int):
        super().__init__()
        self.span = span
        r = {"mean": 0, "linear": width, "mlp": hidden}[kind]
        self.w1 = nn.Parameter(torch.empty(heads, span.length * width, r)) if kind != "mean" else None
        self.pe = nn.Parameter(torch.empty(heads, span.length, width)) if kind == "mlp" else None
        self.b1 = nn.Parameter(torch.empty(heads, r)) if kind == "mlp" else None
        self.w2 = nn.Parameter(torch.empty(heads, r, width)) if kind == "mlp" else None

    def forward(self, x: Tensor) -> Tensor:
        """x [R, H, D] from the first token of a span on -> one row for each whole span, [n, H, D]."""
        n = self.span.count(x.shape[0])
        if n == 0:
            return x[:0]
        X = wide(x).unfold(0, self.span.length, self.span.stride).permute(0, 1, 3, 2)  # [n, H, l, D]
        y = X.mean(2)
        if self.w1 is None:
            return y.to(x.dtype)
        a = torch.einsum("nhk,hkr->nhr", (X if self.pe is None else X + wide(self.pe)).flatten(2), wide(self.w1))
        if self.w2 is None:
            return (y + a).to(x.dtype)
        return (y + torch.einsum("nhr,hrd->nhd", F.silu(a + wide(self.b1)), wide(self.w2))).to(x.dtype)


def extend_summaries(
    state: dict, name: str, x: Tensor, start: int, compress: Compression, place: Optional[Callable] = None
) -> Tensor:
    """Takes the rows x [T, H, D] of tokens from position `start` on; returns all summaries so far. The state keeps them
    under `name`, and the fewer than `length` tokens that the next ones are made of. `place`(summaries, positions of
    their first tokens) turns new ones to where they stand."""
    if start > 0:
        x = torch.cat([state[f"{name}_tail"], x])
    done = compress.span.count(start)
    new = compress(x)
    n = new.shape[0]
    if place is not None and n > 0:
        new = place(new, (done + torch.arange(n, device=x.device)) * compress.span.stride)
    state[f"{name}_tail"] = x[n * compress.span.stride :]
    state[name] = torch.cat([state[name], new]) if start > 0 else new
    return state[name]


class BlockSparseAttention(Mixer):
    """What moba and infllm2 share: one set of keys and values for choosing and attending.

        q, k, v = x wq^T, x wk^T, x wv^T;   q, k = RMSNorm, RoPE;   y = chosen_attention(q, k, v, choice) wo^T

    Parameters: wq [H_Q D, d], wk, wv [H_KV D, d], wo [d, H_Q D], q_norm_w, k_norm_w [D]. State: keys as rotated and
    values, the means, the keys of spans that are not whole. A subclass sets `rule` (None: full attention) and `span`,
    and has scores().
    """

    def __init__(self, options: dict, site: Site, rule: Optional[Rule], span: Optional[Span]):
        super().__init__(options, site)
        self.rule, self.span = rule, span
        self.H, self.H_KV, self.D = heads_of(options, site)
        self.parameter("wq", self.H * self.D, site.width)
        self.parameter("wk", self.H_KV * self.D, site.width)
        self.parameter("wv", self.H_KV * self.D, site.width)
        self.parameter("wo", site.width, self.H * self.D)
        self.parameter("q_norm_w", self.D, present=options["qk_norm"])
        self.parameter("k_norm_w", self.D, present=options["qk_norm"])
        self.rope = rotary(options, self.D)
        self.cache = KeyValues()
        self.mean = None if span is None else Compression("mean", span, self.H_KV, self.D, 0)

    def scores(self, q: Tensor, means: Tensor, positions: Tensor, J: int) -> Tensor:
        """q [T, H_Q, D], means [n, H_KV, D] -> scores of J blocks, [H_KV, G or 1, T, J]."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: dict) -> Tensor:
        T, start = x.shape[0], state["length"]
        q = linear(x, self.wq).view(T, self.H, self.D)
        k = linear(x, self.wk).view(T, self.H_KV, self.D)
        v = linear(x, self.wv).view(T, self.H_KV, self.D)
        if self.q_norm_w is not None:
            q, k = rms_norm(q, self.q_norm_w), rms_norm(k, self.k_norm_w)
        if self.rope is not None:
            q, k = self.rope(q, start), self.rope(k, start)
        o = self.cache.attention(q, k, v, state, start) if self.rule is None else self.sparse(q, k, v, state, start)
        state["length"] = start + T
        return linear(o.reshape(T, -1), self.wo)

    def sparse(self, q: Tensor, k: Tensor, v: Tensor, state: dict, start: int) -> Tensor:
        with torch.no_grad():
            means = extend_summaries(state, "means", k, start, self.mean)
        k, v, _, _ = self.cache.extend(state, k, v, start)
        pieces = []
        for begin, end in query_tiles(start, q.shape[0]):
            rows, positions = q[begin - start : end - start], torch.arange(begin, end, device=q.device)
            with torch.no_grad():
                scores = self.scores(rows, means, positions, (end - 1) // self.rule.block + 1)
                taken = self.rule.choose(scores, positions)
            pieces.append(chosen_attention(rows, k[:end], v[:end], taken, positions, self.rule.block))
        return torch.cat(pieces)
