"""HGRN2: what a channel forgets makes room for what it writes; the key is one minus the forget gate.

    q   = silu(x wq^T),   z = x wk^T,   v = x wv^T
    f   = gamma + (1 - gamma) sigmoid(z),   k = 1 - f,   g = ln f                  [T, H, d_k]
    S_t = diag(f_t) S_(t-1) + k_t^T v_t,   o_t = q_t S_t                           per head; no scale
    y   = wo RMSNorm(o; norm_w)                                                    over all heads together

gamma = layer / layers where the option lower_bound is -1.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .weft_gated_linear import GatedLinearLayer
from .weft_layers import Site


class Hgrn2(GatedLinearLayer):
    def __init__(self, options: dict, site: Site):
        super().__init__(options, site, norm="joint", gate="none")
        bound = options["lower_bound"]
        self.lower_bound = site.layer / site.layers if bound < 0 else bound

    def inputs(self, x: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        q, z, v = self.projected(x)
        gamma = self.lower_bound
        k = (1.0 - gamma) * torch.sigmoid(-z)  # k and g come from z, not from f: precise at both ends
        if gamma == 0:
            g = F.logsigmoid(z)
        else:
            g = torch.where(k < 0.5, torch.log1p(-k), torch.log(gamma + (1.0 - gamma) * torch.sigmoid(z)))
        return F.silu(q), k, v, g, 1.0
