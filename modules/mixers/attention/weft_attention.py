"""Softmax attention: full or sliding window, grouped heads, sinks, soft-cap, norms, gates."""

import torch
from torch import Tensor

from .weft_layers import Mixer, Site, heads_of, linear, rms_norm, rotary, wide
from .weft_softmax import KeyValues


class Attention(Mixer):
    """
    q, k, v = x wq^T (+ bq), x wk^T (+ bk), x wv^T (+ bv)         split into heads
    q, k    = RMSNorm(q; q_norm_w), RMSNorm(k; k_norm_w)          for each head; qk_norm
    q, k    = RoPE(q), RoPE(k)                                    first rope_fraction of the channels; rope
    o       = attention(q, k, v), see weft_softmax
    o       = o * sigmoid(x wg^T)                                 one gate a channel or a head; gate
    y       = o wo^T (+ bo)

    Query i sees j <= i with i - j < window (0: all) and the first `sinks` tokens. Parameters: wq [H_Q D, d],
    wk, wv [H_KV D, d], wo [d, H_Q D], bq, bk, bv, bo [d], q_norm_w, k_norm_w [D], sink_logit [H_Q],
    wg [H_Q D or H_Q, d].
    State: keys as rotated, and values.
    """

    def __init__(self, options: dict, site: Site):
        super().__init__(options, site)
        self.H, self.H_KV, self.D = heads_of(options, site)
        queries, keys = self.H * self.D, self.H_KV * self.D
        self.parameter("wq", queries, site.width)
        self.parameter("wk", keys, site.width)
        self.parameter("wv", keys, site.width)
        self.parameter("wo", site.width, queries)
        self.parameter("bq", queries, present=options["bias"])
        self.parameter("bk", keys, present=options["bias"])
        self.parameter("bv", keys, present=options["bias"])
        self.parameter("bo", site.width, present=options.get("out_bias", False))
        self.parameter("q_norm_w", self.D, present=options["qk_norm"])
        self.parameter("k_norm_w", self.D, present=options["qk_norm"])
        self.parameter("sink_logit", self.H, present=options["sink_logit"])
        gates = {"none": 0, "headwise": self.H, "elementwise": queries}[options["gate"]]
        self.parameter("wg", gates, site.width, present=gates > 0)
        self.rope = rotary(options, 2 * int(self.D * options["rope_fraction"] / 2.0))
        self.cache = KeyValues(options["window"], options["sinks"])

    def forward(self, x: Tensor, state: dict) -> Tensor:
        T, start = x.shape[0], state["length"]
        q = linear(x, self.wq, self.bq).view(T, self.H, self.D)
        k = linear(x, self.wk, self.bk).view(T, self.H_KV, self.D)
        v = linear(x, self.wv, self.bv).view(T, self.H_KV, self.D)
        if self.q_norm_w is not None:
            eps = self.site.norm_eps
            q, k = rms_norm(q, self.q_norm_w, eps), rms_norm(k, self.k_norm_w, eps)
        if self.rope is not None:
            q, k = self.rope(q, start), self.rope(k, start)
        how = {"soft_cap": self.options["soft_cap"], "sink_logit": self.sink_logit}
        o = self.cache.attention(q, k, v, state, start, **how)
        if self.wg is not None:
            gate = torch.sigmoid(wide(linear(x, self.wg)))
            o = (wide(o) * gate.view(T, self.H, -1)).to(o.dtype)
        state["length"] = start + T
        return linear(o.reshape(T, -1), self.wo, self.bo)
