"""The delta rule, and what the mixers on it share.

A matrix state that is corrected rather than added to. For one head with queries and keys [T, d_k], values [T, d_v], a
log decay g <= 0 and a write strength beta:

    S~_t = diag(e^g_t) S_(t-1)                 decay
    u_t  = beta_t (v_t - k_t S~_t)             what the state predicts wrongly
    S_t  = S~_t + k_t^T u_t                    write
    o_t  = q_t S_t                             read

T tokens, C tokens of a chunk, d model width, H value heads, H_K key heads, d_k and d_v head widths.
"""

from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from .weft_gated_linear import chunk_length, chunked, decayed_products, decays_to_end
from .weft_layers import Mixer, Site, l2_norm, linear, rms_norm, short_convolution, wide

# --- the recurrence ---------------------------------------------------------------------------------------------------


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Optional[Tensor]) -> tuple[Tensor, Tensor]:
    """q, k [T, H, d_k], v [T, H, d_v], g [T, H, d_k or 1], beta [T, H], entry state S [H, d_k, d_v], None for
    zeros -> o [T, H, d_v] and, without its history for autograd, the state after the last token."""
    S = k.new_zeros(*k.shape[1:], v.shape[-1]) if S is None else S
    if q.shape[0] == 1:
        o, S = delta_rule_step(q[0], k[0], v[0], g[0], beta[0], S)
        return o[None], S.detach()
    o, S = delta_rule_chunks(q, k, v, g, beta, S)
    return o, S.detach()


def delta_rule_step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """One token: q, k [H, d_k], v [H, d_v], g [H, d_k or 1], beta [H], S [H, d_k, d_v]."""
    S = g.exp()[..., None] * S
    u = beta[:, None] * (v - (k[..., None, :] @ S).squeeze(-2))
    S = S + k[..., None] * u[..., None, :]
    return (q[..., None, :] @ S).squeeze(-2), S


def delta_rule_chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Many tokens. With G_i the sum of g up to and including token i of a chunk of n tokens, K_in = K e^G,
    Q_in = Q e^G, K_out = K e^(G_n - G):

    A_ij = sum_x K_ix K_jx e^(G_ix - G_jx) for j < i, else 0
    P_ij = sum_x Q_ix K_jx e^(G_ix - G_jx) for j <= i, else 0
    (I + diag(beta) A) U = beta (V - K_in S)          unit lower triangular
    O  = Q_in S + P U
    S' = diag(e^G_n) S + K_out^T U

    The system is solved for all chunks at once before S is known, U = U_V - U_K S (the WY form).
    """
    T, d_v = v.shape[0], v.shape[-1]
    q, k, v, g, beta = (chunked(x, chunk_length(T)) for x in (q, k, v, g, beta[..., None]))
    since_entry = g.cumsum(-2).exp()
    system = beta * decayed_products(k, k, g)  # below its unit diagonal
    targets = beta * torch.cat([v, k * since_entry], -1)
    solution = torch.linalg.solve_triangular(system, targets, upper=False, unitriangular=True)
    U_V, U_K = solution[..., :d_v], solution[..., d_v:]
    decay, K_out = g.sum(-2).exp()[..., None], k * decays_to_end(g).exp()
    entry, updates = [], []  # of each chunk: the state it begins with, and U
    for n in range(q.shape[1]):
        entry.append(S)
        updates.append(U_V[:, n] - U_K[:, n] @ S)
        S = decay[:, n] * S + K_out[:, n].mT @ updates[-1]
    P = decayed_products(q, k, g) + torch.diag_embed((q * k).sum(-1))
    o = (q * since_entry) @ torch.stack(entry, 1) + P @ torch.stack(updates, 1)
    return o.flatten(1, 2)[:, :T].transpose(0, 1), S


# --- mixers -----------------------------------------------------------------------------------------------------------


class DeltaRuleLayer(Mixer):
    """A mixer gives decay() and says which output gate it has.

        q, k = L2(silu(conv(x wq^T))), L2(silu(conv(x wk^T)))                          [T, H_K, d_k], unit norms
        v    = silu(conv(x wv^T))                                                      [T, H, d_v]
        beta = sigma(x wb^T)                      times 2 with negative_eigenvalues    [T, H]
        o    = delta_rule(d_k^(-1/2) q, k, v, decay(x), beta)        value head h uses key head h H_K / H
        y    = wo ( RMSNorm_head(o; norm_w) * a(gate) ),   gate = x wg^T, or (x wg_a^T) wg_b^T (+ bg) at low rank

    The convolutions are causal and depthwise, without bias; conv_width = 0 leaves only silu. The epsilon of L2 is 1e-6,
    of the RMS norm norm_eps (1e-5). gate: the activation a, "sigmoid", "silu" or "none".
    """

    GATES = {"sigmoid": torch.sigmoid, "silu": F.silu}

    def __init__(self, options: dict, site: Site, gate: str, gate_rank: int = 0, gate_bias: bool = False):
        super().__init__(options, site)
        self.key_heads, taps = options["heads"], options["conv_width"]
        self.heads = options["value_heads"] or self.key_heads
        self.d_k = options["head_dim"]
        self.d_v = options["value_dim"] or self.d_k
        self.gate = gate
        self.norm_eps = options.get("norm_eps", 1e-5)
        values = self.heads * self.d_v
        for name, width in (("q", self.key_heads * self.d_k), ("k", self.key_heads * self.d_k), ("v", values)):
            self.parameter(f"w{name}", width, site.width)
            self.parameter(f"conv_{name}", width, taps, present=taps > 0)
        self.parameter("wb", self.heads, site.width)
        self.parameter("wg", values, site.width, present=gate != "none" and gate_rank == 0)
        self.parameter("wg_a", gate_rank, site.width, present=gate_rank > 0)
        self.parameter("wg_b", values, gate_rank, present=gate_rank > 0)
        self.parameter("bg", values, present=gate_bias)
        self.parameter("norm_w", self.d_v)
        self.parameter("wo", site.width, values)

    def initial_state(self) -> dict:
        return {"length": 0, "S": None, "tail_q": None, "tail_k": None, "tail_v": None}

    def decay(self, x: Tensor) -> Tensor:
        """The log decay of tokens x [T, d]: [T, H, d_k], or [T, H, 1] for all channels of a head."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: dict) -> Tensor:
        q, k = (l2_norm(self.convolved(x, name, state).unflatten(-1, (self.key_heads, -1))) for name in ("q", "k"))
        q, k = (z.repeat_interleave(self.heads // self.key_heads, 1) for z in (q, k))
        v = self.convolved(x, "v", state).unflatten(-1, (self.heads, -1))
        beta = torch.sigmoid(wide(linear(x, self.wb))) * (2.0 if self.options["negative_eigenvalues"] else 1.0)
        o, state["S"] = delta_rule(q * self.d_k**-0.5, k, v, self.decay(x), beta, state["S"])
        state["length"] += x.shape[0]
        return linear(self.gated(x, rms_norm(o, self.norm_w, self.norm_eps).flatten(1)), self.wo)

    def convolved(self, x: Tensor, name: str, state: dict) -> Tensor:
        """silu(conv(x w^T)) [T, channels]; its last inputs stay in the state."""
        z, taps = wide(linear(x, getattr(self, f"w{name}"))), getattr(self, f"conv_{name}")
        if taps is None:
            return F.silu(z)
        z, state[f"tail_{name}"] = short_convolution(z, taps, state[f"tail_{name}"])
        return z

    def gated(self, x: Tensor, o: Tensor) -> Tensor:
        """o [T, H d_v], normalised."""
        if self.gate == "none":
            return o
        low_rank = self.wg is None
        gate = linear(linear(x, self.wg_a), self.wg_b, self.bg) if low_rank else linear(x, self.wg)
        return o * self.GATES[self.gate](wide(gate))
