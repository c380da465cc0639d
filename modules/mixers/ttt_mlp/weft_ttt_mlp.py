"""Test-time training with a memory of two layers, f(u) = u + LN(gelu(u W1 + b1) W2 + b2); the layer is the family's."""

from .weft_layers import Site
from .weft_ttt import TttLayer


class TttMlp(TttLayer):
    def __init__(self, options: dict, site: Site):
        super().__init__(options, site, hidden_factor=options["hidden_factor"])
