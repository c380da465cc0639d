"""Multi-head latent attention: keys and values of all heads come from one small latent vector for each token."""

import torch
from torch import Tensor

from .weft_layers import Mixer, Site, linear, rms_norm, rotary, wide
from .weft_softmax import KeyValues, attention_weights, query_tiles, weighted_values


class Mla(Mixer):
    """
    c_raw, k_r = split(x wkv_a^T)            c = RMSNorm(c_raw; kv_a_norm_w)         [T, d_c], [T, D_r]
    k_n, v     = split(c wkv_b^T)            for each head                           [T, H, D_n], [T, H, D_V]
    q_n, q_r   = split(x wq^T)               for each head                           [T, H, D_n], [T, H, D_r]
    q_r, k_r   = RoPE(q_r), RoPE(k_r)        rope
    z_ij       = (<q_n,i, k_n,j> + <q_r,i, k_r,j>) / sqrt(D_n + D_r),   j <= i
    o_i        = sum_j softmax_j(z_ij) v_j,             y = o wo^T

    With a query latent, q = RMSNorm(x wq_a^T; q_a_norm_w) wq_b^T. Parameters: wq [H (D_n + D_r), d], or wq_a [d_q, d]
    and wq_b [H (D_n + D_r), d_q]; wkv_a [d_c + D_r, d], wkv_b [H (D_n + D_V), d_c], wo [d, H D_V], kv_a_norm_w [d_c],
    q_a_norm_w [d_q].

    The first tokens of a sequence attend in this form. All that follow use <q_n, U c> = <q_n U, c> and
    sum_j p_j V c_j = V sum_j p_j c_j, with U, V the rows of a head in wkv_b: queries [q_n U, q_r] attend to the latents
    themselves, the key [c, k_r] and value c of one head. State: [c, k_r] of every token.
    """

    def __init__(self, options: dict, site: Site):
        super().__init__(options, site)
        d = site.width
        self.H, self.d_c, self.d_q = options["heads"], options["latent_dim"], options["query_latent_dim"]
        self.D_n, self.D_r = options["content_dim"], options["shared_dim"]
        self.D_V = options["value_dim"] or self.D_n
        queries = self.H * (self.D_n + self.D_r)
        self.parameter("wq", queries, d, present=self.d_q == 0)
        self.parameter("wq_a", self.d_q, d, present=self.d_q > 0)
        self.parameter("q_a_norm_w", self.d_q, present=self.d_q > 0)
        self.parameter("wq_b", queries, self.d_q, present=self.d_q > 0)
        self.parameter("wkv_a", self.d_c + self.D_r, d)
        self.parameter("kv_a_norm_w", self.d_c)
        self.parameter("wkv_b", self.H * (self.D_n + self.D_V), self.d_c)
        self.parameter("wo", d, self.H * self.D_V)
        self.rope = rotary(options, self.D_r)
        self.expanded = KeyValues()

    def forward(self, x: Tensor, state: dict) -> Tensor:
        T, start = x.shape[0], state["length"]
        if self.wq is None:
            q = linear(rms_norm(linear(x, self.wq_a), self.q_a_norm_w), self.wq_b)
        else:
            q = linear(x, self.wq)
        q_n, q_r = q.view(T, self.H, -1).split([self.D_n, self.D_r], -1)
        c, k_r = linear(x, self.wkv_a).split([self.d_c, self.D_r], -1)
        c, k_r = rms_norm(c, self.kv_a_norm_w), k_r[:, None]
        if self.rope is not None:
            q_r, k_r = self.rope(q_r, start), self.rope(k_r, start)
        key = torch.cat([c[:, None], k_r], -1)  # [T, 1, d_c + D_r]
        scale = (self.D_n + self.D_r) ** -0.5
        if start == 0:
            k_n, v = linear(c, self.wkv_b).view(T, self.H, -1).split([self.D_n, self.D_V], -1)
            k = torch.cat([k_n, k_r.expand(-1, self.H, -1)], -1)
            o = self.expanded.attention(torch.cat([q_n, q_r], -1), k, v, {}, 0, scale=scale)
            state["latents"] = key
        else:
            U, V = wide(self.wkv_b).view(self.H, -1, self.d_c).split([self.D_n, self.D_V], 1)
            q_c = torch.einsum("thn,hnc->thc", wide(q_n), U).to(q_r.dtype)
            state["latents"] = torch.cat([state["latents"], key])
            context = self.absorbed(torch.cat([q_c, q_r], -1), state["latents"], start, scale)
            o = torch.einsum("thc,hvc->thv", wide(context), V).to(q_r.dtype)
        state["length"] = start + T
        return linear(o.reshape(T, -1), self.wo)

    def absorbed(self, q: Tensor, latents: Tensor, start: int, scale: float) -> Tensor:
        """q [T, H, d_c + D_r] of the tokens from position `start` on, latents [S, 1, d_c + D_r] -> [T, H, d_c]."""
        pieces = []
        for begin, end in query_tiles(start, q.shape[0]):
            at = torch.arange(end, device=q.device)
            p = attention_weights(q[begin - start : end - start], latents[:end], at <= at[begin:, None], scale)
            pieces.append(weighted_values(p, latents[:end, :, : self.d_c]))
        return torch.cat(pieces)
