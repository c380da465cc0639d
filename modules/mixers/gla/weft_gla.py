"""Gated linear attention: every key channel of every token has a learned decay.

    q, k, v = x wq^T, x wk^T, x wv^T
    g   = log sigmoid( (x wf_a^T) wf_b^T + bf ) / tau                              [T, H, d_k]
    S_t = diag(e^g_t) S_(t-1) + k_t^T v_t,   o_t = d_k^(-1/2) q_t S_t              per head
    y   = wo ( silu(x wg^T) * RMSNorm_head(o; norm_w) )
"""

from torch import Tensor
from torch.nn import functional as F

from .weft_gated_linear import GatedLinearLayer
from .weft_layers import Site, linear, wide


class Gla(GatedLinearLayer):
    def __init__(self, options: dict, site: Site):
        super().__init__(options, site, norm="per_head", gate="silu")
        self.parameter("wf_a", options["decay_rank"], site.width)
        self.parameter("wf_b", self.heads * self.key_width, options["decay_rank"])
        self.parameter("bf", self.heads * self.key_width)

    def inputs(self, x: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        q, k, v = self.projected(x)
        logits = wide(linear(linear(x, self.wf_a), self.wf_b, self.bf))
        g = F.logsigmoid(logits).view_as(k) / self.options["decay_temperature"]
        return q, k, v, g, self.key_width**-0.5
