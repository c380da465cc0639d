"""Lightning attention: linear attention with a constant decay per head (MiniMax-01, TransNormerLLM).

    q, k, v = silu(x wq^T), silu(x wk^T), silu(x wv^T)         value_activation = "none": v = x wv^T
    S_t = e^g_h S_(t-1) + k_t^T v_t,   o_t = q_t S_t           per head; no scale, no denominator
    y   = wo ( norm(o) * a(gate) )
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .weft_gated_linear import GatedLinearLayer
from .weft_layers import Site, wide


def geometric_slopes(heads: int) -> list[float]:
    return [2.0 ** (-8.0 * (h + 1) / heads) for h in range(heads)]


def alibi_slopes(heads: int) -> list[float]:
    """Those of the power of two below, then every other one of the power above."""
    power = 1 << (heads.bit_length() - 1)
    return geometric_slopes(power) + geometric_slopes(2 * power)[::2][: heads - power]


def log_decays(convention: str, heads: int, layer: int, layers: int) -> list[float]:
    if convention == "linear":  # head 0 does not decay
        return [-8.0 * h / heads * (1.0 - layer / layers) for h in range(heads)]
    factor = 1.0 - layer / (layers - 1.0 + 1e-5) + 1e-5
    return [-slope * factor for slope in (alibi_slopes if convention == "alibi" else geometric_slopes)(heads)]


class Lightning(GatedLinearLayer):
    def __init__(self, options: dict, site: Site):
        super().__init__(options, site, options["norm"], options["gate"], options["gate_rank"])
        # LRPE: queries and keys turned by trained frequencies.
        self.turning = options["lrpe"] == "all" or (options["lrpe"] == "first_layer" and site.layer == 0)
        self.log_decays = log_decays(options["slopes"], self.heads, site.layer, site.layers)
        self.parameter("theta", self.heads * self.key_width, present=self.turning)

    def inputs(self, x: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        q, k, v = self.projected(x)
        q, k = F.silu(q), F.silu(k)
        if self.turning:
            q, k = self.turned(q, k, position)
        v = F.silu(v) if self.options["value_activation"] == "silu" else v
        return q, k, v, v.new_tensor(self.log_decays), 1.0

    def turned(self, q: Tensor, k: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Channel c of head h at position p becomes [x cos(p theta_hc), x sin(p theta_hc)], all cosines of a head
        before its sines: q_t . k_s = sum_c q_tc k_sc cos((t - s) theta_hc). `theta` is added to initial frequencies
        10000^(-2i/n), channel i of the n of all heads. Angles are formed in fp64."""
        n = self.theta.numel()
        initial = q.new_tensor([10000.0 ** (-2.0 * i / n) for i in range(n)])
        theta = (initial + wide(self.theta)).double().unflatten(0, (self.heads, -1))
        p = torch.arange(position, position + q.shape[0], dtype=torch.float64, device=q.device)
        angle = p[:, None, None] * theta
        cos, sin = angle.cos().to(q.dtype), angle.sin().to(q.dtype)
        return torch.cat([q * cos, q * sin], -1), torch.cat([k * cos, k * sin], -1)
