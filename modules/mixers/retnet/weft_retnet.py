"""Retention: rotated queries and keys, and a constant decay per head that is the same in all layers.

    q, k = RoPE(x wq^T), RoPE(x wk^T),   v = x wv^T
    S_t = gamma_h S_(t-1) + k_t^T v_t,   o_t = d_k^(-1/2) q_t S_t,   gamma_h = 1 - 2^(-5-h)
    y   = wo ( silu(x wg^T) * RMSNorm_head(o; norm_w) )
"""

import math

from torch import Tensor

from .weft_gated_linear import GatedLinearLayer
from .weft_layers import Site, rotary


class Retnet(GatedLinearLayer):
    def __init__(self, options: dict, site: Site):
        super().__init__(options, site, norm="per_head", gate="silu")
        self.rotary = rotary(options, self.key_width)
        self.log_decays = [math.log1p(-(2.0 ** (-5.0 - h))) for h in range(self.heads)]

    def inputs(self, x: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        q, k, v = self.projected(x)
        q, k = self.rotary(q, position), self.rotary(k, position)
        return q, k, v, v.new_tensor(self.log_decays), self.key_width**-0.5
