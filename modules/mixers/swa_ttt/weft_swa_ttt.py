"""Sliding-window attention beside a memory that is trained while it reads (AllMem, LaCT)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .weft_fast_weights import FastWeights, fast_weight_memory
from .weft_layers import Mixer, Site, heads_of, l2_norm, linear, rms_norm, rotary, wide
from .weft_softmax import KeyValues

# What options at "auto" (chunk: at 0) are.
PRESETS = {
    "allmem": {
        "chunk": 1024,
        "loss": "l2",
        "norm": "read_raw",
        "residual": "on",
        "orthogonalise": "off",
        "momentum": "on",
        "forget": "on",
        "value_norm": "on",
        "value_silu": "off",
        "gate": "channel",
    },
    "lact": {
        "chunk": 2048,
        "loss": "dot",
        "norm": "post",
        "residual": "off",
        "orthogonalise": "on",
        "momentum": "on",
        "forget": "off",
        "value_norm": "off",
        "value_silu": "on",
        "gate": "head",
    },
}


class SwaTtt(Mixer):
    """
    o   = window attention of x                          RoPE, RMS-normed queries and keys, sinks, grouped heads
    q   = L2(silu(s_q * x wq_m^T + t_q))                 for each memory
    k   = L2(silu(s_k * x wk_m^T + t_k))
    v   = x wv_m^T                                       SiLU if value_silu, then RMS norm of each head if value_norm
    eta = softplus(x w_eta^T + b_eta)                    or eta_max sigma(.), if that is set
    mu  = sigma(x w_mu^T + b_mu),  lambda = sigma(x w_lambda^T + b_lambda)
    m   = RMSNorm_head(Memory(q, k, v, eta, mu, lambda); norm_m)      see weft_fast_weights
    y   = o wo^T + alpha * (m wo_m^T)                    gate = "channel"
    y   = (o + silu(x w_s^T) * m) wo^T                   gate = "head": one gate a memory

    projections = "shared" gives the memory the attention's queries and keys (normed, not rotated) and values, a key
    head for every query head, instead of wq_m, wk_m, wv_m. State: the window's keys and values; W and Z of each memory;
    the tokens of the chunk that is not complete.
    """

    def __init__(self, options: dict, site: Site):
        super().__init__(options, site)
        preset = PRESETS[options["preset"]]
        chosen = {key: value if options[key] in ("auto", 0) else options[key] for key, value in preset.items()}
        self.H, self.H_KV, self.D = heads_of(options, site)
        d, queries, keys = site.width, self.H * self.D, self.H_KV * self.D
        shared, self.head_gate = options["projections"] == "shared", chosen["gate"] == "head"
        self.H_m = options["memory_heads"]
        self.d_m = options["memory_dim"] or (queries if shared or self.head_gate else d) // self.H_m
        d_h, M = options["memory_hidden"] or self.d_m, self.H_m * self.d_m
        self.config = FastWeights(
            chunk=chosen["chunk"],
            loss=chosen["loss"],
            norm=chosen["norm"],
            residual=chosen["residual"] == "on",
            orthogonalise=chosen["orthogonalise"] == "on",
            detach_norm=options["detach_norm"],
        )
        self.value_norm, self.value_silu = chosen["value_norm"] == "on", chosen["value_silu"] == "on"

        self.parameter("wq", queries, d)
        self.parameter("wk", keys, d)
        self.parameter("wv", keys, d)
        self.parameter("q_norm_w", self.D, present=options["qk_norm"])
        self.parameter("k_norm_w", self.D, present=options["qk_norm"])
        self.parameter("sink_logit", self.H, present=options["sink_logit"])
        self.parameter("wo", d, queries)
        for name in ("wq_m", "wk_m", "wv_m"):
            self.parameter(name, M, d, present=not shared)
        for name in ("s_q", "t_q", "s_k", "t_k"):
            self.parameter(name, M)
        self.parameter("w0", self.H_m, d_h, self.d_m)
        self.parameter("w1", self.H_m, self.d_m, d_h)
        self.parameter("w2", self.H_m, d_h, self.d_m)
        rates = {"eta": 3 * self.H_m, "mu": self.H_m, "lambda": self.H_m}
        present = {"eta": True, "mu": chosen["momentum"] == "on", "lambda": chosen["forget"] == "on"}
        for name, width in rates.items():
            self.parameter(f"w_{name}", width, d, present=present[name])
            self.parameter(f"b_{name}", width, present=present[name])
        self.parameter("norm_m", self.d_m)
        self.parameter("w_s", self.H_m, d, present=self.head_gate)
        self.parameter("alpha", d, present=not self.head_gate)
        self.parameter("wo_m", d, M, present=not self.head_gate)
        self.rope = rotary(options, self.D)
        self.cache = KeyValues(options["window"] or chosen["chunk"], options["sinks"])

    def initial_state(self) -> dict:
        return {"length": 0, "memory": {}}

    def forward(self, x: Tensor, state: dict) -> Tensor:
        T, start = x.shape[0], state["length"]
        q = linear(x, self.wq).view(T, self.H, self.D)
        k = linear(x, self.wk).view(T, self.H_KV, self.D)
        v = linear(x, self.wv).view(T, self.H_KV, self.D)
        if self.q_norm_w is not None:
            q, k = rms_norm(q, self.q_norm_w), rms_norm(k, self.k_norm_w)
        m = rms_norm(self.remembered(x, q, k, v, state["memory"]), self.norm_m)
        if self.rope is not None:
            q, k = self.rope(q, start), self.rope(k, start)
        o = self.cache.attention(q, k, v, state, start, sink_logit=self.sink_logit)
        state["length"] = start + T
        if self.head_gate:
            gate = F.silu(wide(linear(x, self.w_s)))[..., None]
            o = o.reshape(T, -1) + (wide(m) * gate).to(o.dtype).reshape(T, -1)
            return linear(o, self.wo)
        memory = wide(linear(m.flatten(1), self.wo_m)) * wide(self.alpha)
        return linear(o.reshape(T, -1), self.wo) + memory.to(o.dtype)

    def remembered(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: dict) -> Tensor:
        """What the memories answer, [T, H_m, d_m]."""
        T = x.shape[0]
        if self.wq_m is None:
            group = self.H // self.H_KV
            q, k, v = (
                rows.reshape(T, -1) for rows in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
            )
        else:
            q, k, v = linear(x, self.wq_m), linear(x, self.wk_m), linear(x, self.wv_m)
        v = F.silu(wide(v)).to(v.dtype) if self.value_silu else v
        v = v.view(T, self.H_m, self.d_m)
        v = rms_norm(v) if self.value_norm else v
        eta = wide(linear(x, self.w_eta, self.b_eta))
        eta_max = self.options["eta_max"]
        eta = eta_max * torch.sigmoid(eta) if eta_max > 0.0 else F.softplus(eta, threshold=50.0)
        mu = None if self.w_mu is None else torch.sigmoid(wide(linear(x, self.w_mu, self.b_mu)))
        decay = None if self.w_lambda is None else torch.sigmoid(wide(linear(x, self.w_lambda, self.b_lambda)))
        features = (self.feature(q, self.s_q, self.t_q), self.feature(k, self.s_k, self.t_k))
        learned = [self.w0, self.w2, self.w1]
        return fast_weight_memory(*features, v, eta.view(T, self.H_m, 3), mu, decay, learned, self.config, state)

    def feature(self, rows: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """L2(silu(s * rows + t)) as [T, H_m, d_m]."""
        return l2_norm(F.silu(wide(s) * wide(rows) + wide(t)).view(-1, self.H_m, self.d_m)).to(rows.dtype)
