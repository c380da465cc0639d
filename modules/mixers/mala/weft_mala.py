"""Magnitude-aware linear attention: weights are a product minus a mean, so a larger query makes them sharper.

    q, k, v = x wq^T, x wk^T, x wv^T,   phi(x) = elu(x) + 1
    s_tj = phi(q_t) . phi(k_j), or divided by sqrt(d_k) n_t,   z_t = sum_(j<=t) s_tj,   n_t = tokens up to t
    w_tj = (1 + 1/z_t) s_tj - z_t / n_t                              sum_(j<=t) w_tj = 1; some are negative
    y    = wo ( sum_(j<=t) w_tj v_j )                                per head

With a_t = sum_j s_tj v_j and the sum c_t of all values, o_t = a_t / z_t + (a_t - (z_t / n_t) c_t). The first part is
the same for both kinds of scores.
"""

from torch import Tensor
from torch.nn import functional as F

from .weft_gated_linear import LEAST_DENOMINATOR, LinearAttentionLayer
from .weft_layers import Site


class Mala(LinearAttentionLayer):
    def __init__(self, options: dict, site: Site):
        width = options["head_dim"]
        super().__init__(options, site, width, options["value_dim"] or width)

    def initial_state(self) -> dict:
        return {**super().initial_state(), "totals": 0.0}  # c and n, [H, d_v + 1]

    def mapped(self, q: Tensor, k: Tensor, position: int) -> tuple[Tensor, Tensor]:
        return F.elu(q) + 1.0, F.elu(k) + 1.0

    def normalised(self, sums: Tensor, v: Tensor, state: dict) -> Tensor:
        totals = state["totals"] + v.cumsum(0)
        state["totals"] = totals[-1]
        c, n = totals[..., :-1], totals[..., -1:]
        a, z = sums[..., :-1], sums[..., -1:].clamp(min=LEAST_DENOMINATOR)
        share = 1.0 if self.options["scores"] == "sum" else self.key_width**-0.5 / n
        return a / z + share * (a - z / n * c)
