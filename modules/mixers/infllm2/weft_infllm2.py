"""InfLLM-V2: dense attention that turns block-sparse where a sequence gets long, on the same keys and values."""

from torch import Tensor

from .weft_block_sparse import BlockSparseAttention, Rule, Span, overlap_scores
from .weft_layers import Site
from .weft_softmax import attention_weights


class Infllm2(BlockSparseAttention):
    """
    c_i    = mean of k over [i delta, i delta + l)                               seen from token i delta + l - 1 on
    p_t,i  = sum over the group's heads of softmax_i( <q_t,h, c_i> / sqrt(D) )
    s_t[j] = max of p_t,i over the i that overlap block j
    J_t    = n blocks up to t / l': the first `first_blocks`, the last w / l', then the largest s_t,
             ties to the smaller j; all of them for t < dense_length
    o_t    = attention of q_t to the tokens u <= t of the blocks in J_t          one softmax

    l, delta = compress_length, compress_stride; l' = block; n = selected; w = window. The rest is BlockSparseAttention.
    """

    def __init__(self, options: dict, site: Site):
        block = options["block"]
        local = options["window"] // block
        rule = Rule(block, options["selected"], options["first_blocks"], local, options["dense_length"])
        super().__init__(options, site, rule, Span(options["compress_length"], options["compress_stride"]))

    def scores(self, q: Tensor, means: Tensor, positions: Tensor, J: int) -> Tensor:
        seen = self.span.seen(positions, means.shape[0])
        p = attention_weights(q, means, seen, self.D**-0.5)
        return overlap_scores(p, self.span, self.rule, J, largest=True)[:, None]
