"""A BERT encoder in numpy, written from the architecture's definition and independent of the C++.

forward(directory, sequences) reads a model directory (dense or low-rank, docs/checkpoint_format.md)
and returns the pooled vector of every sequence, in float64, one operation at a time: no folding, no
fusion, no batching. With rounding=bfloat16 every weight and every value that an unfused library
would write to memory is rounded to bfloat16: the error of a plain low-precision chain.

As a program: numpy_encoder.py MODEL_DIR IDS.json  (a list of lists of token ids) prints the vectors,
normalised where the model says so, as JSON.
"""

import json
import math
import os
import struct
import sys

import numpy as np

erf = np.vectorize(math.erf, otypes=[np.float64])


def exact(x):
    return x


def bfloat16(x):
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


class Weights:
    def __init__(self, directory, rounding):
        path = os.path.join(directory, "model.safetensors")
        with open(path, "rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            self.header = json.loads(f.read(length))
        self.data = np.memmap(path, np.uint8, "r", 8 + length)
        self.metadata = self.header.pop("__metadata__", {})
        self.modules = json.loads(self.metadata.get("lowrank.modules", "{}"))
        self.rounding = rounding
        names = [n for n in self.header if n.endswith("embeddings.word_embeddings.weight")]
        self.prefix = names[0][: -len("embeddings.word_embeddings.weight")]

    def __call__(self, name):
        """In float64, unrounded: vectors (bias, LayerNorm) stay in float32 in every chain."""
        entry = self.header[self.prefix + name]
        begin, end = entry["data_offsets"]
        raw = np.array(self.data[begin:end])
        if entry["dtype"] == "BF16":
            values = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = raw.view({"F32": np.float32, "F16": np.float16}[entry["dtype"]])
        return values.reshape(entry["shape"]).astype(np.float64)

    def linear(self, name, x):
        """y = W x + b over the rows of x, in the module's own layout."""
        r = self.rounding
        bias = self(name + ".bias")
        module = self.modules.get(self.prefix + name, self.modules.get(name))
        if module is None:
            return r(x @ r(self(name + ".weight")).T + bias)
        b = r(self(name + ".lowrank.B"))
        if module["layout"] == "qkv_shared":
            a = r(self(name.rsplit(".", 1)[0] + ".shared.A"))
        else:
            a = r(self(name + ".lowrank.A"))
        if module["layout"] == "per_head":
            heads = [r(x @ a[i].T) @ b[i].T for i in range(len(a))]
            return r(np.concatenate(heads, axis=1) + bias)
        return r(r(x @ a.T) @ b.T + bias)


def layer_norm(w, name, x, epsilon):
    mean = x.mean(1, keepdims=True)
    variance = ((x - mean) ** 2).mean(1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * w(name + ".weight") + w(name + ".bias")


ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


def attention(q, k, v, heads, r):
    tokens, width = q.shape
    h = width // heads
    out = np.empty_like(q)
    for i in range(heads):
        part = slice(i * h, (i + 1) * h)
        scores = r(q[:, part] @ k[:, part].T / math.sqrt(h))
        p = np.exp(scores - scores.max(1, keepdims=True))
        out[:, part] = r(r(p / p.sum(1, keepdims=True)) @ v[:, part])
    return out


def pooling_mode(directory):
    path = os.path.join(directory, "1_Pooling", "config.json")
    if not os.path.exists(path):
        return "mean"
    flags = json.load(open(path))
    if flags.get("pooling_mode_cls_token"):
        return "cls"
    return "last" if flags.get("pooling_mode_lasttoken") else "mean"


def normalizes(directory):
    path = os.path.join(directory, "modules.json")
    return os.path.exists(path) and any(
        m["type"].endswith(".Normalize") for m in json.load(open(path))
    )


def forward(directory, sequences, rounding=exact):
    r = rounding
    config = json.load(open(os.path.join(directory, "config.json")))
    w = Weights(directory, rounding)
    eps, heads = config["layer_norm_eps"], config["num_attention_heads"]
    activation = ACTIVATIONS[config.get("hidden_act", "gelu")]
    pooled = []
    for ids in sequences:
        ids = np.asarray(ids)
        x = (
            r(w("embeddings.word_embeddings.weight")[ids])
            + r(w("embeddings.position_embeddings.weight")[: len(ids)])
            + r(w("embeddings.token_type_embeddings.weight")[0])
        )
        x = r(layer_norm(w, "embeddings.LayerNorm", r(x), eps))
        for i in range(config["num_hidden_layers"]):
            p = f"encoder.layer.{i}."
            q, k, v = (w.linear(f"{p}attention.self.{n}", x) for n in ("query", "key", "value"))
            y = w.linear(p + "attention.output.dense", attention(q, k, v, heads, r))
            x = r(layer_norm(w, p + "attention.output.LayerNorm", r(x + y), eps))
            hidden = r(activation(w.linear(p + "intermediate.dense", x)))
            y = w.linear(p + "output.dense", hidden)
            x = r(layer_norm(w, p + "output.LayerNorm", r(x + y), eps))
        mode = pooling_mode(directory)
        pooled.append(x.mean(0) if mode == "mean" else x[0] if mode == "cls" else x[-1])
    return np.array(pooled)


if __name__ == "__main__":
    vectors = forward(sys.argv[1], json.load(open(sys.argv[2])))
    if normalizes(sys.argv[1]):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    json.dump(vectors.tolist(), sys.stdout)
