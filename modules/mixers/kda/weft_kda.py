"""Kimi Delta Attention: the delta rule with a learned decay per token and key channel.

    f    = (x wf_a^T) wf_b^T                                                       [T, H, d_k]
    g    = lower_bound sigma(e^a_log (f + dt_bias))      gate = "bounded"
    g    = -e^a_log softplus(f + dt_bias)                gate = "softplus"
    y    = wo ( RMSNorm_head(o; norm_w) * sigma((x wg_a^T) wg_b^T + bg) )          output_gate = "full": sigma(x wg^T)

gate_bias = false leaves bg out.

Queries, keys, values, write strengths and the recurrence are those of the family.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .weft_delta_rule import DeltaRuleLayer
from .weft_layers import Site, linear, wide


class Kda(DeltaRuleLayer):
    def __init__(self, options: dict, site: Site):
        rank = options["rank"] or options["value_dim"] or options["head_dim"]
        full = options["output_gate"] == "full"
        bias = not full and options.get("gate_bias", True)
        super().__init__(options, site, "sigmoid", gate_rank=0 if full else rank, gate_bias=bias)
        self.parameter("wf_a", rank, site.width)
        self.parameter("wf_b", self.heads * self.d_k, rank)
        self.parameter("a_log", self.heads)
        self.parameter("dt_bias", self.heads * self.d_k)

    def decay(self, x: Tensor) -> Tensor:
        z = wide(linear(linear(x, self.wf_a), self.wf_b)) + wide(self.dt_bias)
        z, rate = z.unflatten(-1, (self.heads, -1)), wide(self.a_log).exp()[:, None]
        if self.options["gate"] == "bounded":
            return self.options["lower_bound"] * torch.sigmoid(rate * z)
        return -rate * F.softplus(z)
