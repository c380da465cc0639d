"""A weft model in plain PyTorch: readable first, and the same function as weft's own kernels to rounding.

Parameters have weft's names behind "model.": model.embedding [V, d], model.layers.3.mixer.wq, ..., model.final_norm_w,
and model.head [V, d] unless the embedding is also the head (tie_word_embeddings). They are shared by use, not by
transformers' tying, so a tied file holds the table once.

Every sequence of a batch goes through the model by itself, without its padding: tokens whose attention mask is 0 do not
exist. They take part in no state, convolution, block or update, and positions do not count them. Nothing else depends
on the mask, so any pattern of zeros is served.

Shapes: B sequences, T columns of input_ids (padding included), L tokens of one sequence, d width, V vocabulary.
"""

from typing import Any, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_weft import WeftConfig
from .weft_layers import Mixer, Site, linear, rms_norm, swiglu, wide
from .weft_mixers import MIXERS


def copied(state: Any) -> Any:
    """A deep copy of a state."""
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(copied(value) for value in state)
    return state.clone() if isinstance(state, Tensor) else state


class WeftCache:
    """What a model remembers of B sequences: for each, the states of its layers (see each mixer's initial_state).

    Attention keeps keys and values, windows the last W - 1 of them; recurrences a matrix and the tails of convolutions;
    memories their fast weights and the chunk that is not full. Most of it cannot be taken back, so crop() raises.
    """

    is_compileable = False
    is_sliding: list = []

    def __init__(self):
        self.sequences: list[list[dict]] = []
        self.columns = 0  # of input_ids so far, padding included

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.columns

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return -1

    def __len__(self) -> int:
        return len(self.sequences[0]) if self.sequences else 0

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the sequences that `indices` names, each as often as it is named."""
        order = [int(i) for i in indices]
        taken: set[int] = set()
        sequences = []
        for i in order:
            sequences.append(copied(self.sequences[i]) if i in taken else self.sequences[i])
            taken.add(i)
        self.sequences = sequences

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.sequences)).repeat_interleave(repeats))

    def crop(self, max_length: int) -> None:
        keep = max_length if max_length >= 0 else self.columns + max_length
        if keep < self.columns:
            raise NotImplementedError(
                f"a weft cache cannot forget its last {self.columns - keep} tokens: states of recurrent layers and "
                "windows keep no history; generate without assistance, or start from an empty cache"
            )

    def reset(self) -> None:
        self.sequences = []
        self.columns = 0


class FeedForward(nn.Module):
    """SwiGLU: (silu(x w_gate^T) * x w_up^T) w_down^T, with biases where the configuration has them."""

    def __init__(self, width: int, hidden: int, bias: bool):
        super().__init__()
        self.w_gate = nn.Parameter(torch.empty(hidden, width))
        self.w_up = nn.Parameter(torch.empty(hidden, width))
        self.w_down = nn.Parameter(torch.empty(width, hidden))
        self.b_gate = nn.Parameter(torch.empty(hidden)) if bias else None
        self.b_up = nn.Parameter(torch.empty(hidden)) if bias else None
        self.b_down = nn.Parameter(torch.empty(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = swiglu(linear(x, self.w_gate, self.b_gate), linear(x, self.w_up, self.b_up))
        return linear(hidden, self.w_down, self.b_down)


class Block(nn.Module):
    """A mixer and a feed-forward network, each added to the residual stream."""

    def __init__(self, config: WeftConfig, layer: int):
        super().__init__()
        options = config.mixers[config.pattern[layer % len(config.pattern)]]
        site = Site(
            config.hidden_size, config.num_hidden_layers, layer, config.rms_norm_eps, config.max_position_embeddings
        )
        self.eps = config.rms_norm_eps
        self.post_norm_input = config.residual == "post_norm_input"
        self.mixer_norm_w = nn.Parameter(torch.empty(config.hidden_size))
        self.mixer: Mixer = MIXERS[options["type"]](options, site)
        self.ffn = None
        if config.intermediate_size > 0:
            self.ffn_norm_w = nn.Parameter(torch.empty(config.hidden_size))
            self.ffn = FeedForward(config.hidden_size, config.intermediate_size, config.ffn_bias)

    def forward(self, x: Tensor, state: dict) -> Tensor:
        """x [L, d] -> [L, d]."""
        h = rms_norm(x, self.mixer_norm_w, self.eps)
        x = (h if self.post_norm_input else x) + self.mixer(h, state)
        if self.ffn is None:
            return x
        h = rms_norm(x, self.ffn_norm_w, self.eps)
        return (h if self.post_norm_input else x) + self.ffn(h)


class WeftPreTrainedModel(PreTrainedModel):
    config_class = WeftConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]
    supports_gradient_checkpointing = False
    # Files keep them in fp32 whatever the type of the rest: decays come from exponentials of these.
    _keep_in_fp32_modules_strict = ["a_log", "dt_bias"]

    def _init_weights(self, module: nn.Module) -> None:
        """First values for tests of shapes; weft draws its own when it trains."""
        for name, p in module.named_parameters(recurse=False):
            if p.dim() >= 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("norm_w"):
                nn.init.ones_(p)
            else:
                nn.init.zeros_(p)


class WeftModel(WeftPreTrainedModel):
    """Embedding, blocks, final norm."""

    def __init__(self, config: WeftConfig):
        super().__init__(config)
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.final_norm_w = nn.Parameter(torch.empty(config.hidden_size))
        self.head = None
        if not config.tie_word_embeddings:
            self.head = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.post_init()

    def get_input_embeddings(self):
        return None  # a parameter, not a module: it cannot be swapped or resized

    def sequence(self, x: Tensor, states: list[dict]) -> Tensor:
        """Embeddings x [L, d] of one sequence -> final hidden states [L, d]; advances the states of its layers."""
        for block, state in zip(self.layers, states):
            x = block(x, state)
        return rms_norm(x, self.final_norm_w, self.config.rms_norm_eps)

    def forward(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        past_key_values: Optional[WeftCache] = None,
        inputs_embeds: Optional[Tensor] = None,
        use_cache: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        **kwargs: Any,
    ) -> Union[tuple, BaseModelOutputWithPast]:
        """input_ids [B, T] (or inputs_embeds [B, T, d]), attention_mask [B, T or earlier columns + T] of 0 and 1 ->
        final hidden states [B, T, d], 0 where the mask is 0. `position_ids` among the kwargs are ignored: positions
        follow from the mask and the cache."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("a weft model takes either input_ids or inputs_embeds")
        x = F.embedding(input_ids, self.embedding) if inputs_embeds is None else inputs_embeds
        B, T = x.shape[:2]
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError("a weft model takes an attention_mask [B, columns] of 0 and 1")
        cache = past_key_values if past_key_values is not None else WeftCache()
        if not isinstance(cache, WeftCache):
            raise ValueError(f"a weft model's past_key_values is a WeftCache, not a {type(cache).__name__}")
        if not cache.sequences:
            cache.sequences = [[block.mixer.initial_state() for block in self.layers] for _ in range(B)]
        if len(cache.sequences) != B:
            raise ValueError(f"a cache of {len(cache.sequences)} sequences for a batch of {B}")
        rows = []
        for b in range(B):
            mask = None if attention_mask is None else attention_mask[b, -T:].bool()
            if mask is None or bool(mask.all()):
                rows.append(self.sequence(x[b], cache.sequences[b]))
                continue
            row = torch.zeros_like(x[b])
            if bool(mask.any()):
                row[mask] = self.sequence(x[b][mask], cache.sequences[b])
            rows.append(row)
        cache.columns += T
        hidden = torch.stack(rows)
        use_cache = self.config.use_cache and not self.training if use_cache is None else use_cache
        output = BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache if use_cache else None)
        return output if return_dict is None or return_dict else output.to_tuple()


class WeftForCausalLM(WeftPreTrainedModel, GenerationMixin):
    """WeftModel and its head. Tested with transformers 4.46, 4.57, 5.0 and 5.23."""

    _tied_weights_keys: Any = None

    def __init__(self, config: WeftConfig):
        super().__init__(config)
        self.model = WeftModel(config)
        self.post_init()

    def get_input_embeddings(self):
        return None

    def get_output_embeddings(self):
        return None

    def resize_token_embeddings(self, *args, **kwargs):
        raise NotImplementedError("the vocabulary of a weft model is fixed when it is trained")

    def forward(
        self,
        input_ids: Optional[Tensor] = None,
        attention_mask: Optional[Tensor] = None,
        past_key_values: Optional[WeftCache] = None,
        inputs_embeds: Optional[Tensor] = None,
        labels: Optional[Tensor] = None,
        use_cache: Optional[bool] = None,
        logits_to_keep: Union[int, Tensor] = 0,
        return_dict: Optional[bool] = None,
        **kwargs: Any,
    ) -> Union[tuple, CausalLMOutputWithPast]:
        """As WeftModel, and logits [B, T or kept, V]. `logits_to_keep`: so many last columns, or which ones; 0 = all.
        `labels` [B, T]: token t is predicted from those before it; -100 counts for nothing. The loss is the mean over
        labels, or their sum over `num_items_in_batch`, which trainers pass when they accumulate gradients."""
        output = self.model(input_ids, attention_mask, past_key_values, inputs_embeds, use_cache, return_dict=True)
        hidden = output.last_hidden_state
        if isinstance(logits_to_keep, Tensor):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep > 0:
            hidden = hidden[:, -logits_to_keep:]
        logits = linear(hidden, self.model.embedding if self.model.head is None else self.model.head)
        loss = None
        if labels is not None:
            if logits.shape[1] != labels.shape[1]:
                raise ValueError("labels need the logits of every column: leave logits_to_keep at 0")
            items = kwargs.get("num_items_in_batch")
            loss = F.cross_entropy(
                wide(logits[:, :-1]).flatten(0, 1),
                labels[:, 1:].flatten().to(logits.device),
                ignore_index=-100,
                reduction="mean" if items is None else "sum",
            )
            loss = loss if items is None else loss / items
        result = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=output.past_key_values)
        return result if return_dict is None or return_dict else result.to_tuple()

    # Generation. generate() must not make a cache of its own kind: the first forward pass makes a WeftCache.

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Optional[WeftCache] = None,
        attention_mask: Optional[Tensor] = None,
        inputs_embeds: Optional[Tensor] = None,
        use_cache: Optional[bool] = True,
        **kwargs: Any,
    ) -> dict:
        """The columns that the cache has not seen. `input_ids` are all of them, or, where the mask is longer, the new
        ones alone."""
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        inputs: dict[str, Any] = {
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
            "logits_to_keep": kwargs.get("logits_to_keep") or 1,
        }
        if inputs_embeds is not None and seen == 0:
            # The prompt as embeddings; input_ids holds what was drawn since then.
            drawn = F.embedding(input_ids, self.model.embedding)
            inputs["inputs_embeds"] = torch.cat([inputs_embeds, drawn], 1) if input_ids.shape[1] else inputs_embeds
            return inputs
        new = input_ids.shape[1]
        if seen:
            columns = attention_mask.shape[1] if attention_mask is not None else new
            new = columns - seen if columns > seen else new
        inputs["input_ids"] = input_ids[:, input_ids.shape[1] - new :]
        return inputs

    def _reorder_cache(self, past_key_values: WeftCache, beam_idx: Tensor) -> WeftCache:
        past_key_values.reorder_cache(beam_idx)
        return past_key_values
