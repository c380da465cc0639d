"""Native Sparse Attention: compressed blocks of the past, a few selected blocks in full, and a window, gated."""

import torch
from torch import Tensor

from .weft_block_sparse import Compression, Rule, Span, chosen_attention, extend_summaries, overlap_scores
from .weft_layers import Mixer, Site, heads_of, linear, rotary, wide
from .weft_softmax import KeyValues, attention_weights, query_tiles, weighted_values


class Nsa(Mixer):
    """
    q = RoPE(x wq^T)      k_b, v_b = x wk_b^T, x wv_b^T   for b = c, s, w      k_s, k_w = RoPE(k_s), RoPE(k_w)

    compressed   k~_i = RoPE_(i delta)(phi_k(k_c[i delta, i delta + l)))      v~_i = phi_v(v_c[i delta, i delta + l))
                 p_t,i = softmax over i with i delta + l - 1 <= t of <q_t, k~_i> / sqrt(D)      o^c_t = sum_i p_t,i v~_i
    selected     s_t[j] = sum_(h in group) sum_(m < l'/delta) sum_(r < l/delta) p_t,(j l'/delta + m - r)
                 J_t = the n best of the blocks j <= t / l', forced ones first, ties to the smaller j
                 o^s_t = attention of q_t to k_s, v_s at the tokens u <= t of the blocks in J_t
    window       o^w_t = attention of q_t to k_w, v_w at t - w < u <= t

    y = ( sum_b sigma(x w_gate^T + b_gate)_b o^b ) wo^T                       one gate for each head and branch

    l, delta = compress_length, compress_stride; l' = block; n = selected; w = window; forced are the first
    `first_blocks` and the last `local_blocks`. phi is Compression. Parameters: wq [H_Q D, d], wk_c, wk_s, wk_w
    [H_KV D, d], wv_c, wv_s, wv_w [H_KV D_V, d], phi_k, phi_v, w_gate [3 H_Q, d] with rows 3 h + b, b_gate,
    wo [d, H_Q D_V]. State: keys and values of the selected branch and of the window, compressed rows, and the tokens
    of spans that are not whole.
    """

    def __init__(self, options: dict, site: Site):
        super().__init__(options, site)
        self.H, self.H_KV, self.D = heads_of(options, site)
        self.D_V = options["value_dim"] or self.D
        self.span = Span(options["compress_length"], options["compress_stride"])
        self.rule = Rule(options["block"], options["selected"], options["first_blocks"], options["local_blocks"])
        self.parameter("wq", self.H * self.D, site.width)
        for branch in "csw":
            self.parameter(f"wk_{branch}", self.H_KV * self.D, site.width)
            self.parameter(f"wv_{branch}", self.H_KV * self.D_V, site.width)
        self.parameter("w_gate", 3 * self.H, site.width)
        self.parameter("b_gate", 3 * self.H)
        self.parameter("wo", site.width, self.H * self.D_V)
        phi, hidden = options["phi"], options["phi_width"]
        self.phi_k = Compression(phi, self.span, self.H_KV, self.D, hidden or 2 * self.D)
        self.phi_v = Compression(phi, self.span, self.H_KV, self.D_V, hidden or 2 * self.D_V)
        self.rope = rotary(options, self.D)
        self.selected = KeyValues(name="_selected")
        self.window = KeyValues(options["window"], name="_window")

    def forward(self, x: Tensor, state: dict) -> Tensor:
        T, start = x.shape[0], state["length"]
        q = self.turned(linear(x, self.wq).view(T, self.H, self.D), start)
        k_c, k_s, k_w = (linear(x, w).view(T, self.H_KV, self.D) for w in (self.wk_c, self.wk_s, self.wk_w))
        v_c, v_s, v_w = (linear(x, w).view(T, self.H_KV, self.D_V) for w in (self.wv_c, self.wv_s, self.wv_w))
        place = None if self.rope is None else self.rope.at
        k_c = extend_summaries(state, "k_compressed", k_c, start, self.phi_k, place)
        v_c = extend_summaries(state, "v_compressed", v_c, start, self.phi_v)
        k_s, v_s, _, _ = self.selected.extend(state, self.turned(k_s, start), v_s, start)
        o_w = self.window.attention(q, self.turned(k_w, start), v_w, state, start)
        o_c, o_s = [], []
        for begin, end in query_tiles(start, T):
            rows, positions = q[begin - start : end - start], torch.arange(begin, end, device=x.device)
            p = attention_weights(rows, k_c, self.span.seen(positions, k_c.shape[0]), self.D**-0.5)
            o_c.append(weighted_values(p, v_c))
            blocks = (end - 1) // self.rule.block + 1
            scores = overlap_scores(p.detach(), self.span, self.rule, blocks, largest=False)
            taken = self.rule.choose(scores, positions)[:, None]
            o_s.append(chosen_attention(rows, k_s[:end], v_s[:end], taken, positions, self.rule.block))
        gates = torch.sigmoid(wide(linear(x, self.w_gate, self.b_gate))).view(T, self.H, 3)
        branches = torch.stack([torch.cat(o_c), torch.cat(o_s), o_w], -1)  # [T, H_Q, D_V, 3]
        y = (wide(branches) * gates[:, :, None]).sum(-1).to(o_w.dtype)
        state["length"] = start + T
        return linear(y.reshape(T, -1), self.wo)

    def turned(self, x: Tensor, start: int) -> Tensor:
        return x if self.rope is None else self.rope(x, start)
