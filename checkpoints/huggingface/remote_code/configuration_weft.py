"""Configuration of a weft model: a stack of blocks whose sequence mixers follow a pattern."""

from transformers import PretrainedConfig


class WeftConfig(PretrainedConfig):
    """
    pattern            names of mixers; layer l uses pattern[l mod len(pattern)]
    mixers             name -> {"type": which mixer, and every option of it}
    intermediate_size  hidden width of the feed-forward network; 0 = blocks without one
    ffn_bias           biases of the feed-forward network
    residual           "pre_norm": x + f(norm(x)); "post_norm_input": h + f(h) of h = norm(x)

    The other fields mean what they mean everywhere in transformers.
    """

    model_type = "weft"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size=256,
        hidden_size=256,
        num_hidden_layers=2,
        intermediate_size=0,
        ffn_bias=False,
        rms_norm_eps=1e-6,
        residual="pre_norm",
        pattern=(),
        mixers=None,
        max_position_embeddings=2048,
        use_cache=True,
        tie_word_embeddings=True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = intermediate_size
        self.ffn_bias = ffn_bias
        self.rms_norm_eps = rms_norm_eps
        if residual not in ("pre_norm", "post_norm_input"):
            raise ValueError(f'residual = "{residual}"; expected "pre_norm" or "post_norm_input"')
        self.residual = residual
        self.pattern = list(pattern)
        self.mixers = dict(mixers or {})
        for name in self.pattern:
            if name not in self.mixers:
                raise ValueError(f'the pattern names a mixer "{name}" that "mixers" does not have')
        self.max_position_embeddings = max_position_embeddings
        self.use_cache = use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
