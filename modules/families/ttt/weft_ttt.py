"""Memories trained while they read: the state of a head is the weights of a small network f.

Every token takes a step of gradient descent on |f(k) - v|^2 / 2:

    f(u) = u + LN(u W + b)                       LN: per head, weight gamma and bias beta, epsilon 1e-6
    f(u) = u + LN(gelu(u W1 + b1) W2 + b2)       gelu in its tanh form

A sequence is cut into inner batches of `batch` tokens. With g_j the gradient of token j at the weights W with which its
batch starts, token t of the batch (from 0) reads with weights of its own,

    W_t = W - tok_t sum_(j<=t) rate_j g_j        tok_t = max(1/(t+1) + offset_t, 0)
    o_t = f(q_t; W_t)                            the last token's weights start the next batch

n tokens of a batch, H heads, d_h head width. A bias is the last row of its matrix: [W; b] [H, in + 1, out], and inputs
get a last entry 1.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .weft_layers import Mixer, Site, heads_of, linear, rms_norm, rotary, short_convolution, wide

NORM_EPS = 1e-6


def with_one(x: Tensor) -> Tensor:
    return F.pad(x, (0, 1), value=1.0)


def gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def gelu_slope(x: Tensor) -> Tensor:
    c, a = (2.0 / torch.pi) ** 0.5, 0.044715
    t = torch.tanh(c * (x + a * x**3))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * a * x * x)


def normalised(z: Tensor) -> tuple[Tensor, Tensor]:
    """(z - mean(z)) r and r = (variance + eps)^(-1/2) over the last dimension."""
    z = z - z.mean(-1, keepdim=True)
    r = torch.rsqrt(z.square().mean(-1, keepdim=True) + NORM_EPS)
    return z * r, r


class TttLayer(Mixer):
    """
        q, k = rope(conv(x wq^T)), rope(conv(x wk^T)),  v = x wv^T      positions count inside the batch
        rate = eta sigma(x wr^T + br) / d_h                             eta = inner_learning_rate
        o    = memory(q, k, v; rate)
        y    = wo ( gelu(x wg^T) * RMSNorm(o; norm_w) )                 norm over all H d_h channels

    The convolutions (conv_width taps; 0 = none) have no activation; gate = "none" leaves the gate out.
    """

    def __init__(self, options: dict, site: Site, hidden_factor: int):
        super().__init__(options, site)
        self.heads, _, width = heads_of(options, site)
        self.head_dim, self.batch, taps = width, options["batch"], options["conv_width"]
        self.rotary = rotary(options, width)
        inner, hidden = self.heads * width, hidden_factor * width
        for name in ("wq", "wk", "wv"):
            self.parameter(name, inner, site.width)
        for name in ("conv_q", "conv_k"):
            self.parameter(name, inner, taps, present=taps > 0)
        self.parameter("wr", self.heads, site.width)
        self.parameter("br", self.heads)
        self.parameter("offset", self.batch)
        self.parameter("gamma", self.heads, width)
        self.parameter("beta", self.heads, width)
        # The memory at the start of a sequence: names of the matrices and biases of its layers.
        self.memory = [("memory_w1", "memory_b1"), ("memory_w2", "memory_b2")] if hidden else [("memory_w", "memory_b")]
        widths = [width, hidden, width] if hidden else [width, width]
        for (weight, bias), fan_in, fan_out in zip(self.memory, widths, widths[1:]):
            self.parameter(weight, self.heads, fan_in, fan_out)
            self.parameter(bias, self.heads, fan_out)
        self.parameter("norm_w", inner)
        self.parameter("wg", inner, site.width, present=options["gate"] != "none")
        self.parameter("wo", site.width, inner)

    def initial_state(self) -> dict:
        """W: the weights [H, in + 1, out] of each layer at the start of the batch that is not full; G: the sum of
        rate_j g_j over its tokens so far. Its place in the batch follows from the length."""
        return {"length": 0, "W": None, "G": None, "tail_q": None, "tail_k": None}

    def forward(self, x: Tensor, state: dict) -> Tensor:
        places = (state["length"] + torch.arange(x.shape[0], device=x.device)) % self.batch
        q = self.features(x, "q", places, state)
        k = self.features(x, "k", places, state)
        v = wide(linear(x, self.wv)).unflatten(-1, (self.heads, -1))
        eta = self.options["inner_learning_rate"] / self.head_dim
        rate = eta * torch.sigmoid(wide(linear(x, self.wr, self.br)))
        o = self.remembered(q, k, v, rate[..., None], state).flatten(1)
        y = rms_norm(o, self.norm_w)
        if self.wg is not None:
            y = y * gelu(wide(linear(x, self.wg)))
        return linear(y, self.wo)

    def features(self, x: Tensor, name: str, places: Tensor, state: dict) -> Tensor:
        """q or k [T, H, d_h]."""
        y, taps = wide(linear(x, getattr(self, f"w{name}"))), getattr(self, f"conv_{name}")
        if taps is not None:
            y, state[f"tail_{name}"] = short_convolution(y, taps, state[f"tail_{name}"], silu=False)
        y = y.unflatten(-1, (self.heads, -1))
        return y if self.rotary is None else self.rotary.at(y, places)

    def remembered(self, q: Tensor, k: Tensor, v: Tensor, rate: Tensor, state: dict) -> Tensor:
        """q, k, v [T, H, d_h], rate [T, H, 1] -> o [T, H, d_h], batch after batch."""
        W, G, place = state["W"], state["G"], state["length"] % self.batch
        if W is None:
            W = [torch.cat([wide(getattr(self, w)), wide(getattr(self, b))[:, None]], 1) for w, b in self.memory]
            G = [torch.zeros_like(w) for w in W]
        counts = torch.arange(1, self.batch + 1, dtype=q.dtype, device=q.device)
        step = (1.0 / counts + wide(self.offset)).clamp(min=0.0)[:, None]
        outputs, t, T = [], 0, q.shape[0]
        while t < T:
            n = min(self.batch - place, T - t)
            tokens = [z[t : t + n].transpose(0, 1) for z in (q, k, v, rate)]  # [H, n, d_h or 1]
            o, G = self.read_and_learn(*tokens, W, G, step[place : place + n])
            outputs.append(o)
            t, place = t + n, (place + n) % self.batch
            if place == 0:
                W = [w - step[-1] * g for w, g in zip(W, G)]
                G = [torch.zeros_like(w) for w in W]
        state["W"], state["G"] = [w.detach() for w in W], [g.detach() for g in G]
        state["length"] += T
        return torch.cat(outputs, 1).transpose(0, 1)

    def read_and_learn(
        self, q: Tensor, k: Tensor, v: Tensor, rate: Tensor, W: list[Tensor], G: list[Tensor], step: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Consecutive tokens of one batch, q, k, v [H, n, d_h], rate [H, n, 1], step [n, 1] -> o [H, n, d_h] and G with
        their gradients. The dual form: no token's weights are formed. With inputs X and gradients E at the outputs of a
        layer, its gradient is the sum of X_j^T E_j over tokens, and a read with the weights of each token's place is

            Y = X_q W - tok * (tril(X_q X_k^T) (rate * E) + X_q G)
        """
        inputs, gradients = self.gradients(k, v, W)
        learned = [rate * e for e in gradients]
        y = q
        for layer, (x_k, e) in enumerate(zip(inputs, learned)):
            x_q = with_one(gelu(y) if layer > 0 else y)
            y = x_q @ W[layer] - step * ((x_q @ x_k.mT).tril() @ e + x_q @ G[layer])
        gamma, beta = wide(self.gamma)[:, None], wide(self.beta)[:, None]
        return q + gamma * normalised(y)[0] + beta, [g + x_k.mT @ e for g, x_k, e in zip(G, inputs, learned)]

    def gradients(self, k: Tensor, v: Tensor, W: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """For each layer of the memory its inputs X [H, n, in + 1] and the gradients E [H, n, out] of |f(k) - v|^2 / 2
        at its outputs."""
        inputs, outputs = [with_one(k)], [with_one(k) @ W[0]]
        if len(W) == 2:
            inputs.append(with_one(gelu(outputs[0])))
            outputs.append(inputs[1] @ W[1])
        z, r = normalised(outputs[-1])
        gamma, beta = wide(self.gamma)[:, None], wide(self.beta)[:, None]
        e = gamma * (k + gamma * z + beta - v)
        e = r * (e - e.mean(-1, keepdim=True) - z * (e * z).mean(-1, keepdim=True))
        if len(W) == 1:
            return inputs, [e]
        return inputs, [(e @ W[1][:, :-1].mT) * gelu_slope(outputs[0]), e]
