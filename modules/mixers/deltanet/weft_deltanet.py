"""DeltaNet: the delta rule without decay. A state changes only where keys write.

    y    = wo ( RMSNorm_head(o; norm_w) )     times silu(x wg^T) inside with output_gate

Queries, keys, values, write strengths and the recurrence are those of the family.
"""

from torch import Tensor

from .weft_delta_rule import DeltaRuleLayer
from .weft_layers import Site, wide


class Deltanet(DeltaRuleLayer):
    def __init__(self, options: dict, site: Site):
        super().__init__(options, site, "silu" if options["output_gate"] else "none")

    def decay(self, x: Tensor) -> Tensor:
        return wide(x).new_zeros(x.shape[0], self.heads, 1)
