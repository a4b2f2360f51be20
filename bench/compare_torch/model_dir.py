"""Model directories with random weights, written and read with numpy alone.

The files follow docs/checkpoint_format.md and share no code with the C++ that reads them.
"""

import dataclasses
import json
import os
import struct

import numpy as np

LAYOUTS = ("per_head", "full", "qkv_shared", "dense")
VOCABULARY = 1000  # small: the embedding tables are no part of what is compared


@dataclasses.dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    ffn: int
    ranks: dict  # layout -> R, r_ffn, r_out: about half of the encoder's linear parameters


SHAPES = {
    "minilm": Shape(384, 6, 12, 1536, {
        "per_head": (20, 120, 120), "full": (96, 120, 96), "qkv_shared": (144, 120, 96)}),
    "bert-base": Shape(768, 12, 12, 3072, {
        "per_head": (40, 240, 240), "full": (192, 240, 192), "qkv_shared": (288, 240, 192)}),
    "bert-large": Shape(1024, 24, 16, 4096, {
        "per_head": (40, 320, 320), "full": (256, 320, 256), "qkv_shared": (384, 320, 256)}),
}


def linear_modules(shape):
    """Name within a layer -> (out, in, which of the ranks)."""
    d, f = shape.hidden, shape.ffn
    return {
        "attention.self.query": (d, d, 0),
        "attention.self.key": (d, d, 0),
        "attention.self.value": (d, d, 0),
        "attention.output.dense": (d, d, 2),
        "intermediate.dense": (f, d, 1),
        "output.dense": (d, f, 1),
    }


def random_tensors(shape, layout, ranks, positions, seed):
    """Returns name -> float32 array, and the entries of `lowrank.modules`.

    Factors A and B are scaled so that B A x has elements of order one for an x with elements of
    order one: with a LayerNorm behind each half of a layer, activations stay so at any depth, and
    softmax is neither flat nor a hard maximum.
    """
    rng = np.random.default_rng(seed)
    tensors, modules = {}, {}

    def normal(*size, scale=1.0):
        return rng.standard_normal(size, np.float32) * np.float32(scale)

    def norm(name):
        tensors[name + ".weight"] = 1 + normal(shape.hidden, scale=0.1)
        tensors[name + ".bias"] = normal(shape.hidden, scale=0.1)

    for table, rows in (("word", VOCABULARY), ("position", positions), ("token_type", 2)):
        tensors[f"embeddings.{table}_embeddings.weight"] = normal(rows, shape.hidden)
    norm("embeddings.LayerNorm")
    for layer in range(shape.layers):
        prefix = f"encoder.layer.{layer}."
        for module, (out, width, which) in linear_modules(shape).items():
            name = prefix + module
            tensors[name + ".bias"] = normal(out, scale=0.2)
            if layout == "dense":
                tensors[name + ".weight"] = normal(out, width, scale=width**-0.5)
                continue
            rank, kind = ranks[which], layout if "self" in module else "full"
            modules[name] = {"rank": rank, "layout": kind, "method": "random"}
            # Singular values that fall slowly, as those of trained weights do.
            spread = (1 + np.arange(rank, dtype=np.float32)) ** -0.5
            spread /= np.linalg.norm(spread)
            heads = shape.heads if kind == "per_head" else 1
            a = normal(heads, rank, width, scale=width**-0.5)
            b = normal(heads, out // heads, rank) * spread
            if kind != "per_head":
                a, b = a[0], b[0]
            if kind == "qkv_shared":
                tensors.setdefault(prefix + "attention.self.shared.A", a)
            else:
                tensors[name + ".lowrank.A"] = a
            tensors[name + ".lowrank.B"] = b
        norm(prefix + "attention.output.LayerNorm")
        norm(prefix + "output.LayerNorm")
    return tensors, modules


def write_safetensors(path, tensors, metadata):
    header, offset = {"__metadata__": metadata}, 0
    for name, values in tensors.items():
        end = offset + 4 * values.size
        header[name] = {
            "dtype": "F32", "shape": list(values.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            np.ascontiguousarray(values, "<f4").tofile(f)


def write_model(directory, shape, layout, ranks, positions, seed=1):
    os.makedirs(directory, exist_ok=True)
    tensors, modules = random_tensors(shape, layout, ranks, positions, seed)
    metadata = {"format": "pt"}
    if modules:
        metadata |= {"lowrank.format": "1", "lowrank.modules": json.dumps(modules)}
    write_safetensors(os.path.join(directory, "model.safetensors"), tensors, metadata)
    with open(os.path.join(directory, "config.json"), "w") as f:
        json.dump({
            "model_type": "bert", "hidden_size": shape.hidden, "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads, "intermediate_size": shape.ffn,
            "vocab_size": VOCABULARY, "max_position_embeddings": positions, "type_vocab_size": 2,
            "layer_norm_eps": 1e-12, "hidden_act": "gelu", "position_embedding_type": "absolute",
        }, f, indent=1)


class Model:
    """A model directory as written above: config, and tensors by name as float32 arrays."""

    def __init__(self, directory):
        with open(os.path.join(directory, "config.json")) as f:
            self.config = json.load(f)
        path = os.path.join(directory, "model.safetensors")
        with open(path, "rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            self.header = json.loads(f.read(length))
        metadata = self.header.pop("__metadata__")
        self.modules = json.loads(metadata.get("lowrank.modules", "{}"))
        self.data = np.memmap(path, np.uint8, "c", 8 + length)

    def tensor(self, name):
        entry = self.header[name]
        begin, end = entry["data_offsets"]
        return self.data[begin:end].view("<f4").reshape(entry["shape"])

    def factors(self, module):
        """A and B of a low-rank module, in its layout's shapes."""
        if self.modules[module]["layout"] == "qkv_shared":
            a = self.tensor(module.rsplit(".", 1)[0] + ".shared.A")
        else:
            a = self.tensor(module + ".lowrank.A")
        return a, self.tensor(module + ".lowrank.B")

    def dense_weight(self, module):
        """W [out, in]; of a low-rank module its factors multiplied out."""
        if module not in self.modules:
            return self.tensor(module + ".weight")
        a, b = self.factors(module)
        return (b @ a).reshape(-1, a.shape[-1])
