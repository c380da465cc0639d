"""Test-time training with a linear memory, f(u) = u + LN(u W + b); the layer is the family's."""

from .weft_layers import Site
from .weft_ttt import TttLayer


class TttLinear(TttLayer):
    def __init__(self, options: dict, site: Site):
        super().__init__(options, site, hidden_factor=0)
