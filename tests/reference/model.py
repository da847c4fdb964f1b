"""The transformer around attention: embedding, norms, projections, rope, MLP, head.

Rows are independent here: every function takes (n, ...) rows with their own positions.  Matrices are
stored as Hugging Face stores them, (out, in), and applied as x @ W.T.
"""

import numpy as np

from . import config as configs
from . import weights


class Layer:
    """The tensors of one layer; a bias that the family does not have is None."""


class Model:
    def __init__(self, config, tensors, dtype=np.float32):
        self.config, self.dtype = config, dtype
        c = config

        def take(name, *shape):
            if name not in tensors:
                raise ValueError(f"tensor {name} is missing")
            if tensors[name].shape != shape:
                raise ValueError(f"tensor {name} is {tensors[name].shape}, config.json says {shape}")
            return tensors[name].astype(dtype, copy=False)

        self.embedding = take("model.embed_tokens.weight", c.vocab, c.dim)
        self.final_norm = take("model.norm.weight", c.dim)
        self.head = self.embedding if c.tied else take("lm_head.weight", c.vocab, c.dim)
        n_q, n_kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        self.layers = []
        for i in range(c.n_layers):
            layer, at = Layer(), f"model.layers.{i}."
            layer.norm_attn = take(at + "input_layernorm.weight", c.dim)
            layer.norm_mlp = take(at + "post_attention_layernorm.weight", c.dim)
            for name, n_out, n_in in (
                ("q", n_q, c.dim),
                ("k", n_kv, c.dim),
                ("v", n_kv, c.dim),
                ("o", c.dim, n_q),
            ):
                setattr(layer, name, take(f"{at}self_attn.{name}_proj.weight", n_out, n_in))
                bias = take(f"{at}self_attn.{name}_proj.bias", n_out) if name in c.biases else None
                setattr(layer, name + "_bias", bias)
            for name, n_out, n_in in (
                ("gate", c.ffn_dim, c.dim),
                ("up", c.ffn_dim, c.dim),
                ("down", c.dim, c.ffn_dim),
            ):
                setattr(layer, name, take(f"{at}mlp.{name}_proj.weight", n_out, n_in))
                setattr(
                    layer, name + "_bias", take(f"{at}mlp.{name}_proj.bias", n_out) if c.mlp_bias else None
                )
            layer.q_norm = take(at + "self_attn.q_norm.weight", c.head_dim) if c.qk_norm else None
            layer.k_norm = take(at + "self_attn.k_norm.weight", c.head_dim) if c.qk_norm else None
            self.layers.append(layer)

    @classmethod
    def load(cls, folder, dtype=np.float32):
        return cls(configs.read(folder), weights.read_folder(folder), dtype)

    def embed(self, tokens):
        """(n,) ids -> (n, D)."""
        return self.embedding[np.asarray(tokens)]

    def norm(self, x, weight):
        """RMSNorm over the last axis (arXiv 1910.07467)."""
        mean_square = (x * x).mean(axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + x.dtype.type(self.config.eps)) * weight

    def rope(self, x, positions):
        """x (n, heads, E): dimension i turns with i + E/2 (Hugging Face's split) by position * inv_freq[i].

        The angle is taken in float64, so a late position loses nothing.
        """
        angle = np.asarray(positions, np.float64)[:, None] * self.config.inv_freq
        cos = (np.cos(angle) * self.config.rope_gain).astype(self.dtype)[:, None]
        sin = (np.sin(angle) * self.config.rope_gain).astype(self.dtype)[:, None]
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def qkv(self, i, x, positions):
        """Hidden states x (n, D) entering layer i -> q (n, H, E), k (n, K, E) with rope, v (n, K, E)."""
        layer, c = self.layers[i], self.config
        normed = self.norm(x, layer.norm_attn)
        q = linear(normed, layer.q, layer.q_bias).reshape(len(x), c.n_heads, c.head_dim)
        k = linear(normed, layer.k, layer.k_bias).reshape(len(x), c.n_kv_heads, c.head_dim)
        v = linear(normed, layer.v, layer.v_bias).reshape(len(x), c.n_kv_heads, c.head_dim)
        if c.qk_norm:
            q, k = self.norm(q, layer.q_norm), self.norm(k, layer.k_norm)
        return self.rope(q, positions), self.rope(k, positions), v

    def after_attention(self, i, x, o):
        """o_proj of the attention outputs o (n, H, E), residual, norm, gated MLP, residual -> (n, D)."""
        layer = self.layers[i]
        x = x + linear(o.reshape(len(x), -1), layer.o, layer.o_bias)
        normed = self.norm(x, layer.norm_mlp)
        gate = linear(normed, layer.gate, layer.gate_bias)
        gated = gate / (1 + np.exp(-gate)) * linear(normed, layer.up, layer.up_bias)
        return x + linear(gated, layer.down, layer.down_bias)

    def logits(self, x):
        """(D,) -> (vocabulary,)."""
        return self.head @ self.norm(x, self.final_norm)


def linear(x, weight, bias):
    y = (weight @ x.T).T  # in this order BLAS takes half the time for few rows
    return y if bias is None else y + bias
