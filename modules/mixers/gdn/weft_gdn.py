"""Gated delta net: the delta rule with one learned decay per token and head.

    g    = -e^a_log softplus(x wa^T + dt_bias)                                     [T, H]
    y    = wo ( RMSNorm_head(o; norm_w) * silu(x wg^T) )

Queries, keys, values, write strengths and the recurrence are those of the family.
"""

from torch import Tensor
from torch.nn import functional as F

from .weft_delta_rule import DeltaRuleLayer
from .weft_layers import Site, linear, wide


class Gdn(DeltaRuleLayer):
    def __init__(self, options: dict, site: Site):
        super().__init__(options, site, "silu")
        self.parameter("wa", self.heads, site.width)
        self.parameter("a_log", self.heads)
        self.parameter("dt_bias", self.heads)

    def decay(self, x: Tensor) -> Tensor:
        z = wide(linear(x, self.wa)) + wide(self.dt_bias)
        return (-wide(self.a_log).exp() * F.softplus(z))[..., None]
