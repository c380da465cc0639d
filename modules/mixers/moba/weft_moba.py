"""Mixture of block attention: every query head attends to the blocks whose mean key it likes best."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .weft_block_sparse import BlockSparseAttention, Rule, Span
from .weft_layers import Site, wide


class Moba(BlockSparseAttention):
    """
    m_j  = mean of k over block j                                                tokens [j B, (j + 1) B)
    J_t  = { t / B } and the n - 1 blocks j < t / B with the largest <q_t,h, m_j>    for each query head h,
           ties to smaller j
    o_t  = attention of q_t to the tokens u <= t of the blocks in J_t            one softmax

    B is `block`, n is `selected`. `full` attends to everything. The rest is BlockSparseAttention.
    """

    def __init__(self, options: dict, site: Site):
        block = options["block"]
        rule = Rule(block, options["selected"], first=0, local=1)
        full = options["full"]
        super().__init__(options, site, None if full else rule, None if full else Span(block, block))

    def scores(self, q: Tensor, means: Tensor, positions: Tensor, J: int) -> Tensor:
        T = q.shape[0]
        grouped = wide(q).view(T, self.H_KV, -1, self.D)
        logits = torch.einsum("thgd,nhd->hgtn", grouped, wide(means[:J]))
        return F.pad(logits, (0, J - logits.shape[-1]))
