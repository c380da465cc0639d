"""The gated linear recurrence, and what the mixers on it share.

Linear attention with decay. For one head with queries and keys [T, d_k], values [T, d_v], a log decay g <= 0 and a
scale s:

    S_t = diag(e^g_t) S_(t-1) + k_t^T v_t          o_t = s q_t S_t

T tokens, C tokens of a chunk, d model width, H heads, d_k and d_v head widths of the recurrence.
"""

from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from .weft_layers import Mixer, Site, linear, rms_norm, wide

CHUNK = 64
LEAST_DENOMINATOR = 1e-6


# --- the recurrence ---------------------------------------------------------------------------------------------------


def gated_linear(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, S: Optional[Tensor], scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """q, k [T, H, d_k], v [T, H, d_v], log decay g [H], [T, H] or [T, H, d_k], entry state S [H, d_k, d_v], None for
    zeros -> o [T, H, d_v] and, without its history for autograd, the state after the last token."""
    T, H, d_v = v.shape
    S = k.new_zeros(H, k.shape[-1], d_v) if S is None else S
    g = (g.expand(T, H) if g.dim() == 1 else g).reshape(T, H, -1)
    if T == 1:
        o, S = gated_linear_step(scale * q[0], k[0], v[0], g[0], S)
        return o[None], S.detach()
    o, S = gated_linear_chunks(scale * q, k, v, g, S)
    return o, S.detach()


def gated_linear_step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """One token: q, k [H, d_k], v [H, d_v], g [H, d_k or 1], S [H, d_k, d_v]."""
    S = g.exp()[..., None] * S + k[..., None] * v[..., None, :]
    return (q[..., None, :] @ S).squeeze(-2), S


def gated_linear_chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Many tokens, g [T, H, d_k or 1]. With G_i the sum of g up to and including token i of a chunk of n tokens:

    O  = (Q e^G) S + P V                P_ij = sum_x Q_ix K_jx e^(G_ix - G_jx) for j <= i, else 0
    S' = diag(e^G_n) S + (K e^(G_n - G))^T V
    """
    T = q.shape[0]
    q, k, v, g = (chunked(x, chunk_length(T)) for x in (q, k, v, g))
    decay = g.sum(-2).exp()[..., None]
    written = (k * decays_to_end(g).exp()).mT @ v
    entry = []  # the states with which chunks begin
    for n in range(q.shape[1]):
        entry.append(S)
        S = decay[:, n] * S + written[:, n]
    P = decayed_products(q, k, g) + torch.diag_embed((q * k).sum(-1))
    o = (q * g.cumsum(-2).exp()) @ torch.stack(entry, 1) + P @ v
    return o.flatten(1, 2)[:, :T].transpose(0, 1), S


# --- chunks, shared with the delta rule -------------------------------------------------------------------------------


def chunk_length(T: int) -> int:
    """A power of two, at most CHUNK."""
    return min(CHUNK, 1 << (T - 1).bit_length())


def chunked(x: Tensor, C: int) -> Tensor:
    """x [T, H, ...] -> [H, chunks, C, ...]. What the last chunk lacks is filled with 0: tokens that write and decay
    nothing."""
    T = x.shape[0]
    x = F.pad(x, [0, 0] * (x.dim() - 1) + [0, -T % C])
    return x.unflatten(0, (-1, C)).movedim(2, 0)


def decays_to_end(g: Tensor) -> Tensor:
    """g [..., C, d] -> for each row the sum of all later rows: G_n - G, but nothing large is subtracted."""
    return F.pad(g[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)


def decayed_products(a: Tensor, b: Tensor, g: Tensor) -> Tensor:
    """a, b [..., C, d], g [..., C, d or 1] -> sum_x a_ix b_jx e^(G_ix - G_jx) for j < i, else 0: [..., C, C].

    Rows of a block's second half and columns of its first half meet at the middle; halves are halved again until single
    rows are left, so that each pair meets once. What a row or column decays by is summed from the middle: no exponent
    is positive, no large sums are subtracted, however fast a gate.
    """
    C = a.shape[-2]
    if C == 1:
        return a.new_zeros(*a.shape[:-1], 1)
    halves = [x.unflatten(-2, (2, C // 2)).movedim(-3, 0) for x in (a, b, g)]
    (_, a_second), (b_first, _), (g_first, g_second) = halves
    across = (a_second * g_second.cumsum(-2).exp()) @ (b_first * decays_to_end(g_first).exp()).mT
    first, second = decayed_products(*halves)
    return torch.cat([F.pad(first, (0, C // 2)), torch.cat([across, second], -1)], -2)


# --- mixers -----------------------------------------------------------------------------------------------------------


class GatedLinearMixer(Mixer):
    """Projections wq, wk [H d_x, d], wv [H d_v, d], wo [d, H d_v] around the recurrence."""

    def __init__(self, options: dict, site: Site, key_width: int, value_width: int):
        super().__init__(options, site)
        self.heads, self.key_width, self.value_width = options["heads"], key_width, value_width
        self.parameter("wq", self.heads * key_width, site.width)
        self.parameter("wk", self.heads * key_width, site.width)
        self.parameter("wv", self.heads * value_width, site.width)
        self.parameter("wo", site.width, self.heads * value_width)

    def initial_state(self) -> dict:
        return {"length": 0, "S": None}

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, d] -> q, k [T, H, d_x], v [T, H, d_v]."""
        return tuple(wide(linear(x, w)).unflatten(-1, (self.heads, -1)) for w in (self.wq, self.wk, self.wv))


class GatedLinearLayer(GatedLinearMixer):
    """Mixers with a normalised, gated output; a mixer gives inputs() and says which norm and gate it has.

        q, k, v, g, s = inputs(x),   o = recurrence(q, k, v; g, s)
        y = wo (norm(o) * a(gate)),     gate = x wg^T, or (x wg_a^T) wg_b^T at low rank

    norm: "joint" over H d_v channels, "per_head" over d_v, "simple" over H d_v without a weight; the epsilon is 1e-6.
    gate: the activation a: "sigmoid", "silu", "linear" or "none".
    """

    GATES = {"sigmoid": torch.sigmoid, "silu": F.silu, "linear": lambda gate: gate}

    def __init__(self, options: dict, site: Site, norm: str, gate: str, gate_rank: int = 0):
        d_x = options["head_dim"]
        d_v = options["value_dim"] or d_x
        super().__init__(options, site, d_x, d_v)
        self.norm, self.gate = norm, gate
        values = self.heads * d_v
        self.parameter("norm_w", d_v if norm == "per_head" else values, present=norm != "simple")
        self.parameter("wg", values, site.width, present=gate != "none" and gate_rank == 0)
        self.parameter("wg_a", gate_rank, site.width, present=gate_rank > 0)
        self.parameter("wg_b", values, gate_rank, present=gate_rank > 0)

    def inputs(self, x: Tensor, position: int) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        """q, k, v, g, s for tokens x [T, d], the first of them at `position`."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: dict) -> Tensor:
        q, k, v, g, scale = self.inputs(x, state["length"])
        o, state["S"] = gated_linear(q, k, v, g, state["S"], scale)
        state["length"] += x.shape[0]
        return linear(self.gated(x, self.normed(o)), self.wo)

    def normed(self, o: Tensor) -> Tensor:
        """o [T, H, d_v] -> [T, H d_v]."""
        if self.norm == "per_head":
            return rms_norm(o, self.norm_w).flatten(1)
        return rms_norm(o.flatten(1), self.norm_w)

    def gated(self, x: Tensor, o: Tensor) -> Tensor:
        if self.gate == "none":
            return o
        low_rank = self.wg is None
        gate = linear(linear(x, self.wg_a), self.wg_b) if low_rank else linear(x, self.wg)
        return o * self.GATES[self.gate](wide(gate))


class LinearAttentionLayer(GatedLinearMixer):
    """Normalised linear attention, a softmax whose exponential is a product of features; nothing decays.

        q, k, v = x wq^T, x wk^T, x wv^T,   s_tj = phi_q(q_t) . phi_k(k_j)
        y = wo ( sum_(j<=t) s_tj v_j / sum_(j<=t) s_tj )                        per head

    A column of ones beside the values makes the recurrence return numerators and denominators together. A denominator
    counts as at least 1e-6.
    """

    def mapped(self, q: Tensor, k: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """phi_q(q), phi_k(k) [T, H, features]; the first token is at `position`."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: dict) -> Tensor:
        q, k, v = self.projected(x)
        q, k = self.mapped(q, k, state["length"])
        v = F.pad(v, (0, 1), value=1.0)
        sums, state["S"] = gated_linear(q, k, v, v.new_zeros(self.heads), state["S"])
        o = self.normalised(sums, v, state)
        state["length"] += x.shape[0]
        return linear(o.flatten(1), self.wo)

    def normalised(self, sums: Tensor, v: Tensor, state: dict) -> Tensor:
        """sums [T, H, d_v + 1], numerators and a denominator, and the values with their ones -> o [T, H, d_v]."""
        return sums[..., :-1] / sums[..., -1:].clamp(min=LEAST_DENOMINATOR)
