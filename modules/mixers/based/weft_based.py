"""BASED: linear attention whose scores are the second-order Taylor expansion of a softmax's exponential.

    q, k = x wq^T, x wk^T  [T, H, d'],   v = x wv^T  [T, H, d_v]
    phi(x) = [1, x / d'^(1/4), (x_i^2 / sqrt(2 d'))_i, (x_i x_j / sqrt(d'))_(i<j)]
    phi(q) . phi(k) = 1 + u + u^2/2,   u = q . k / sqrt(d')
    y   = wo ( sum_(j<=t) (phi(q_t) . phi(k_j)) v_j  /  sum_(j<=t) phi(q_t) . phi(k_j) )          per head
"""

import torch
from torch import Tensor

from .weft_gated_linear import LinearAttentionLayer
from .weft_layers import Site


def taylor_features(x: Tensor) -> Tensor:
    """[..., d'] -> [..., 1 + d' + d' (d' + 1) / 2]."""
    width = x.shape[-1]
    i, j = torch.triu_indices(width, width, offset=1, device=x.device)
    one = torch.ones_like(x[..., :1])
    return torch.cat([one, x * width**-0.25, x * x * (2 * width) ** -0.5, x[..., i] * x[..., j] * width**-0.5], -1)


class Based(LinearAttentionLayer):
    def __init__(self, options: dict, site: Site):
        width = options["feature_dim"]
        super().__init__(options, site, width, options["value_dim"])

    def mapped(self, q: Tensor, k: Tensor, position: int) -> tuple[Tensor, Tensor]:
        return taylor_features(q), taylor_features(k)
