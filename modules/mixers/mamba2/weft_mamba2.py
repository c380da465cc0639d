"""The state space dual layer of Mamba-2: step size, decay and write strength are read off each token.

    C, B = silu(conv(x wq^T)), silu(conv(x wk^T))   [T, G, d_k]        u = silu(conv(x wv^T))   [T, H, d_v]
    Delta = softplus(x w_dt^T + dt_bias),   g = -e^a_log Delta         [T, H]
    S_t = e^g_t S_(t-1) + B_t^T (Delta_t u_t),   o_t = C_t S_t         per head; heads of a group share C and B
    y   = wo RMSNorm_group( (o + skip_h u) * silu(x wg^T); norm_w )    epsilon 1e-6

G groups of adjacent heads. The convolutions are causal and depthwise, with bias, conv_width taps long.
"""

from torch import Tensor
from torch.nn import functional as F

from .weft_gated_linear import gated_linear
from .weft_layers import Mixer, Site, linear, rms_norm, short_convolution, wide


class Mamba2(Mixer):
    def __init__(self, options: dict, site: Site):
        super().__init__(options, site)
        self.heads, self.groups, taps = options["heads"], options["groups"], options["conv_width"]
        keys, values = self.groups * options["state_dim"], self.heads * options["head_dim"]
        for name, width in (("q", keys), ("k", keys), ("v", values)):
            self.parameter(f"w{name}", width, site.width)
            self.parameter(f"conv_{name}", width, taps)
            self.parameter(f"conv_{name}_bias", width)
        self.parameter("wg", values, site.width)
        self.parameter("w_dt", self.heads, site.width)
        self.parameter("dt_bias", self.heads)
        self.parameter("a_log", self.heads)
        self.parameter("skip", self.heads)
        self.parameter("norm_w", values)
        self.parameter("wo", site.width, values)

    def initial_state(self) -> dict:
        return {"length": 0, "S": None, "tail_q": None, "tail_k": None, "tail_v": None}

    def convolved(self, x: Tensor, name: str, state: dict) -> Tensor:
        """silu(conv(x w^T)) [T, channels]; its last inputs stay in the state."""
        weight, taps, bias = (getattr(self, key) for key in (f"w{name}", f"conv_{name}", f"conv_{name}_bias"))
        u, state[f"tail_{name}"] = short_convolution(wide(linear(x, weight)), taps, state[f"tail_{name}"], bias)
        return u

    def forward(self, x: Tensor, state: dict) -> Tensor:
        per_group = self.heads // self.groups
        C = self.convolved(x, "q", state).unflatten(-1, (self.groups, -1)).repeat_interleave(per_group, 1)
        B = self.convolved(x, "k", state).unflatten(-1, (self.groups, -1)).repeat_interleave(per_group, 1)
        u = self.convolved(x, "v", state).unflatten(-1, (self.heads, -1))
        step = F.softplus(wide(linear(x, self.w_dt)) + wide(self.dt_bias))
        g = -wide(self.a_log).exp() * step
        o, state["S"] = gated_linear(C, B, step[..., None] * u, g, state["S"])
        state["length"] += x.shape[0]
        y = (o + wide(self.skip)[:, None] * u).flatten(1) * F.silu(wide(linear(x, self.wg)))
        y = rms_norm(y.unflatten(-1, (self.groups, -1)), self.norm_w.view(self.groups, -1))
        return linear(y.flatten(1), self.wo)
