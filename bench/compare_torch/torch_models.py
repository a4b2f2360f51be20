"""BERT encoders in PyTorch: dense, and low rank as PyTorch runs it.

Both are written to be fast: one product for query, key and value, scaled_dot_product_attention,
no mask (all sequences of a case have one length), nothing copied that need not be. The low-rank
encoder reconstructs Q, K and V of full width and the feed-forward's hidden activation, as a
framework without kernels for factors has to.
"""

import torch
import torch.nn.functional as F
from torch import nn


def parameter(array):
    return nn.Parameter(torch.from_numpy(array).contiguous(), requires_grad=False)


def concatenated(arrays):
    return nn.Parameter(torch.cat([torch.from_numpy(a) for a in arrays]), requires_grad=False)


class DenseLinear(nn.Module):
    def __init__(self, model, names):
        """The modules `names` side by side, as one."""
        super().__init__()
        self.weight = concatenated([model.dense_weight(n) for n in names])
        self.bias = concatenated([model.tensor(n + ".bias") for n in names])

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class LowRankLinear(nn.Module):
    def __init__(self, model, names):
        """One module, or several that share their A."""
        super().__init__()
        factors = [model.factors(n) for n in names]
        self.a = parameter(factors[0][0])
        self.b = concatenated([b for _, b in factors])
        self.bias = concatenated([model.tensor(n + ".bias") for n in names])

    def forward(self, x):
        return F.linear(F.linear(x, self.a), self.b, self.bias)


class JoinedQkv(nn.Module):
    """Query, key and value from one linear module with 3 d outputs."""

    def __init__(self, linear, heads):
        super().__init__()
        self.linear, self.heads = linear, heads

    def forward(self, x):
        batch, length, d = x.shape
        y = self.linear(x).view(batch, length, 3, self.heads, d // self.heads)
        return y.permute(2, 0, 3, 1, 4).unbind(0)


class BatchedQkv(nn.Module):
    """Query, key and value from a pair of factors each (full) or for each head (per_head): one
    product with all A, one batched product with the B."""

    def __init__(self, model, names, heads):
        super().__init__()
        factors = [model.factors(n) for n in names]
        self.heads = heads
        self.per_head = factors[0][0].ndim == 3
        self.groups = 3 * heads if self.per_head else 3
        self.a = concatenated([a.reshape(-1, a.shape[-1]) for a, _ in factors])
        b = concatenated([b if self.per_head else b[None] for _, b in factors])
        self.b = nn.Parameter(b.transpose(1, 2).contiguous(), requires_grad=False)
        bias = concatenated([model.tensor(n + ".bias") for n in names])
        self.bias = nn.Parameter(bias.view(self.groups, 1, -1), requires_grad=False)

    def forward(self, x):
        batch, length, d = x.shape
        p = F.linear(x.reshape(batch * length, d), self.a)
        p = p.view(batch * length, self.groups, -1).transpose(0, 1)
        y = torch.baddbmm(self.bias, p, self.b)
        if self.per_head:
            return y.view(3, self.heads, batch, length, -1).transpose(1, 2).unbind(0)
        return y.view(3, batch, length, self.heads, -1).transpose(2, 3).unbind(0)


class LayerNorm(nn.Module):
    def __init__(self, model, name):
        super().__init__()
        self.weight = parameter(model.tensor(name + ".weight"))
        self.bias = parameter(model.tensor(name + ".bias"))
        self.epsilon = model.config["layer_norm_eps"]

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.epsilon)


class Layer(nn.Module):
    def __init__(self, model, index, dense):
        super().__init__()
        prefix = f"encoder.layer.{index}."
        heads = model.config["num_attention_heads"]
        qkv = [f"{prefix}attention.self.{n}" for n in ("query", "key", "value")]
        linear = DenseLinear if dense else LowRankLinear
        if dense:
            self.qkv = JoinedQkv(DenseLinear(model, qkv), heads)
        elif model.modules[qkv[0]]["layout"] == "qkv_shared":
            self.qkv = JoinedQkv(LowRankLinear(model, qkv), heads)
        else:
            self.qkv = BatchedQkv(model, qkv, heads)
        self.out = linear(model, [prefix + "attention.output.dense"])
        self.up = linear(model, [prefix + "intermediate.dense"])
        self.down = linear(model, [prefix + "output.dense"])
        self.attention_norm = LayerNorm(model, prefix + "attention.output.LayerNorm")
        self.output_norm = LayerNorm(model, prefix + "output.LayerNorm")

    def forward(self, x):
        q, k, v = self.qkv(x)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = self.attention_norm(x + self.out(attended))
        return self.output_norm(x + self.down(F.gelu(self.up(x))))


class Embeddings(nn.Module):
    def __init__(self, model):
        super().__init__()
        for table in ("word", "position", "token_type"):
            name = f"embeddings.{table}_embeddings.weight"
            setattr(self, table, parameter(model.tensor(name)))
        self.norm = LayerNorm(model, "embeddings.LayerNorm")

    def forward(self, ids):
        x = F.embedding(ids, self.word) + self.position[: ids.shape[1]] + self.token_type[0]
        return self.norm(x)


def mean_pool(x):
    return x.float().mean(1)


class Encoder(nn.Module):
    """ids [batch, length] -> mean-pooled vectors [batch, d], float32, not normalised."""

    def __init__(self, model, dense, layer_class=Layer):
        super().__init__()
        self.embeddings = Embeddings(model)
        layers = range(model.config["num_hidden_layers"])
        self.layers = nn.ModuleList(layer_class(model, i, dense) for i in layers)
        self.step, self.pool = call, mean_pool

    def compile(self, **options):
        """Compiles the steps, not the whole: what fuses lies within a step, the layers share one
        compiled function, and one graph of all layers takes minutes to compile."""
        self.step = torch.compile(call, **options)
        self.pool = torch.compile(mean_pool, **options)

    def forward(self, ids):
        x = self.step(self.embeddings, ids)
        for layer in self.layers:
            x = self.step(layer, x)
        return self.pool(x)


def call(module, x):
    return module(x)
