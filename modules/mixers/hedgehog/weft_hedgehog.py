"""Hedgehog: linear attention whose features are learned for each head, two softmaxes over channels.

    q, k = RoPE(x wq^T), RoPE(x wk^T)  [T, H, d_k],   v = x wv^T  [T, H, d_v]
    phi_q(x) = [softmax(u), softmax(-u)],   u = x (1 + map_q)^T,   at least 1e-12;   phi_k likewise with map_k
    y   = wo ( sum_(j<=t) (phi_q(q_t) . phi_k(k_j)) v_j  /  sum_(j<=t) phi_q(q_t) . phi_k(k_j) )    per head
"""

import torch
from torch import Tensor

from .weft_gated_linear import LinearAttentionLayer
from .weft_layers import Site, rotary, wide


def softmax_pair(x: Tensor, distance: Tensor) -> Tensor:
    """x [T, H, d_k], the map's distance from the identity [H, d_k, d_k] -> [T, H, 2 d_k]."""
    u = x + torch.einsum("thj,hij->thi", x, wide(distance))
    return torch.cat([u.softmax(-1), (-u).softmax(-1)], -1).clamp(min=1e-12)


class Hedgehog(LinearAttentionLayer):
    def __init__(self, options: dict, site: Site):
        width = options["head_dim"]
        super().__init__(options, site, width, options["value_dim"] or width)
        self.parameter("map_q", self.heads, width, width)
        self.parameter("map_k", self.heads, width, width)
        self.rotary = rotary(options, width)

    def mapped(self, q: Tensor, k: Tensor, position: int) -> tuple[Tensor, Tensor]:
        if self.rotary is not None:
            q, k = self.rotary(q, position), self.rotary(k, position)
        return softmax_pair(q, self.map_q), softmax_pair(k, self.map_k)
