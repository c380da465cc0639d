"""Titans: exact attention over a short range beside a long-term memory that learns while it reads."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .weft_layers import Mixer, Site, heads_of, l2_norm, linear, rms_norm, rotary, wide
from .weft_softmax import KeyValues
from .weft_titans_memory import memory_state, read, titans_memory


class Titans(Mixer):
    """
    Memory(u):    q, k = L2(silu(u wq_m^T)), L2(silu(u wk_m^T)),  v = u wv_m^T
                  keep = sigma(u w_keep^T + b_keep),  mu = sigma(u w_mu^T + b_mu)
                  theta = eta sigma(u w_rate^T + b_rate)                         see weft_titans_memory
    Attention(u): q, k = rope(RMSNorm_head(u wq^T)), rope(RMSNorm_head(u wk^T)),  v = u wv^T,  softmax, causal

    p are learned tokens that stand before the sequence, at positions 0 .. n_p - 1, and are always seen.

    mag   y = wo ( RMSNorm(Attention([p; x]); norm_o) * sigma(RMSNorm(Memory(x); norm_m)) )
    mal   y = wo Attention([p; m]),   m = RMSNorm(Memory(x); norm_m)
    mac   for each segment of `window` tokens, with W the memory before it:
          h = wh RMSNorm(f(L2(silu(x wq_h^T)); W); norm_h)
          u = RMSNorm(Attention(p, h_0, x_0, h_1, x_1, ...); norm_o) at the rows of x
          y = wo ( u * sigma(RMSNorm(Memory(u); norm_m)) )                         Memory goes on over segments

    In mag and mal the attention sees the last `window` tokens and p. Parameters, with inner = H D: wq_m, wk_m, wv_m
    [inner, .], w_keep, w_mu, w_rate [H, .], b_keep, b_mu, b_rate [H], memory_w [H, D, D] or memory_w1 [H, D, m] and
    memory_w2 [H, m, D], wq, wk, wv [inner, .], q_norm_w, k_norm_w [D], persistent [n_p, .], norm_o, norm_m, norm_h
    [inner], wq_h [inner, d], wh, wo [d, inner]. State: the memory (W, Z, the W of its chunk's start, the place in the
    chunk) and the keys and values of the window or segment; mac: the W before the segment.
    """

    def __init__(self, options: dict, site: Site):
        super().__init__(options, site)
        self.H, _, self.D = heads_of(options, site)
        d, inner, hidden = site.width, self.H * self.D, options["hidden_factor"] * self.D
        self.variant, self.window, self.n_p = options["variant"], options["window"], options["persistent"]
        self.chunk = options["chunk"]
        self.eta = options["inner_learning_rate"] or (0.16 if hidden > 0 else 1.6) / self.chunk
        mac = self.variant == "mac"
        memory_width, attention_width = inner if mac else d, inner if self.variant == "mal" else d
        for name in ("wq_m", "wk_m", "wv_m"):
            self.parameter(name, inner, memory_width)
        for name in ("keep", "mu", "rate"):
            self.parameter(f"w_{name}", self.H, memory_width)
            self.parameter(f"b_{name}", self.H)
        if hidden > 0:
            self.parameter("memory_w1", self.H, self.D, hidden)
            self.parameter("memory_w2", self.H, hidden, self.D)
        else:
            self.parameter("memory_w", self.H, self.D, self.D)
        for name in ("wq", "wk", "wv"):
            self.parameter(name, inner, attention_width)
        self.parameter("q_norm_w", self.D)
        self.parameter("k_norm_w", self.D)
        self.parameter("persistent", self.n_p, attention_width, present=self.n_p > 0)
        self.parameter("norm_o", inner, present=self.variant != "mal")
        self.parameter("norm_m", inner)
        self.parameter("norm_h", inner, present=mac)
        self.parameter("wq_h", inner, d, present=mac)
        self.parameter("wh", d, inner, present=mac)
        self.parameter("wo", d, inner)
        self.learned = ["memory_w1", "memory_w2"] if hidden > 0 else ["memory_w"]
        self.rope = rotary(options, self.D)
        self.cache = KeyValues() if mac else KeyValues(self.window, self.n_p)

    def forward(self, x: Tensor, state: dict) -> Tensor:
        T, start = x.shape[0], state["length"]
        if start == 0:
            state["memory"] = memory_state([getattr(self, name) for name in self.learned])
        y = self.segmented(x, state, start) if self.variant == "mac" else self.windowed(x, state, start)
        state["length"] = start + T
        return linear(y, self.wo)

    def windowed(self, x: Tensor, state: dict, start: int) -> Tensor:
        """mag and mal: x [T, d] -> [T, inner]."""
        m = rms_norm(self.memory(x, state), self.norm_m)
        rows = x if self.variant == "mag" else m
        if start == 0 and self.n_p > 0:
            rows = torch.cat([self.persistent.to(rows.dtype), rows])
        o = self.attention(rows, state, self.n_p + start if start > 0 else 0)[-x.shape[0] :]
        return self.gated(rms_norm(o, self.norm_o), m) if self.variant == "mag" else o

    def segmented(self, x: Tensor, state: dict, start: int) -> Tensor:
        """mac: x [T, d] -> [T, inner]."""
        pieces, end = [], start + x.shape[0]
        while start < end:
            place = start % self.window
            n = min(self.window - place, end - start)
            piece = x[:n]
            if place == 0:
                state["segment"] = state["memory"]["W"]
            h = read(self.keys(piece, self.wq_h), state["segment"]).reshape(n, -1)
            h = linear(rms_norm(h, self.norm_h), self.wh)
            rows = torch.stack([h, piece.to(h.dtype)], 1).flatten(0, 1)
            if place == 0 and self.n_p > 0:
                rows = torch.cat([self.persistent.to(rows.dtype), rows])
            u = self.attention(rows, state, self.n_p + 2 * place if place > 0 else 0)[-2 * n :][1::2]
            u = rms_norm(u, self.norm_o)
            pieces.append(self.gated(u, rms_norm(self.memory(u, state), self.norm_m)))
            x, start = x[n:], start + n
        return torch.cat(pieces)

    def gated(self, y: Tensor, gate: Tensor) -> Tensor:
        return (wide(y) * torch.sigmoid(wide(gate))).to(y.dtype)

    def keys(self, x: Tensor, w: Tensor) -> Tensor:
        """L2(silu(x w^T)) as [T, H, D]."""
        return l2_norm(F.silu(wide(linear(x, w))).view(-1, self.H, self.D)).to(w.dtype)

    def memory(self, x: Tensor, state: dict) -> Tensor:
        """Memory(x) [T, inner] of rows x [T, .]."""
        q, k = self.keys(x, self.wq_m), self.keys(x, self.wk_m)
        v = linear(x, self.wv_m).view(-1, self.H, self.D)
        keep = torch.sigmoid(wide(linear(x, self.w_keep, self.b_keep)))
        momentum = torch.sigmoid(wide(linear(x, self.w_mu, self.b_mu)))
        rate = self.eta * torch.sigmoid(wide(linear(x, self.w_rate, self.b_rate)))
        return titans_memory(q, k, v, keep, momentum, rate, self.chunk, state["memory"]).flatten(1)

    def attention(self, rows: Tensor, state: dict, start: int) -> Tensor:
        """Attention of rows [R, .] at positions from `start` on, to those in the state and themselves -> [R, inner]."""
        q, k, v = (linear(rows, w).view(-1, self.H, self.D) for w in (self.wq, self.wk, self.wv))
        q, k = self.rope(rms_norm(q, self.q_norm_w), start), self.rope(rms_norm(k, self.k_norm_w), start)
        return self.cache.attention(q, k, v, state, start).flatten(1)
