"""Writes the tiny checkpoints beside this file and the expected vectors of each, and those of
all-MiniLM-L6-v2 when its directory is given. Needs numpy only.

    python3 make.py [MODEL_DIR]
"""

import json
import os
import struct
import sys

import numpy as np

import numpy_encoder

HERE = os.path.dirname(os.path.abspath(__file__))
D, HEADS, F, LAYERS, VOCAB, POSITIONS = 48, 4, 80, 2, 64, 96
LINEAR = {
    "attention.self.query": (D, D),
    "attention.self.key": (D, D),
    "attention.self.value": (D, D),
    "attention.output.dense": (D, D),
    "intermediate.dense": (F, D),
    "output.dense": (D, F),
}
QKV = [n for n in LINEAR if "self" in n]

# name: (layout of a module, pooling, activation); None is dense.
MODELS = {
    "dense": (lambda layer, n: None, "mean", "gelu"),
    "per_head": (lambda layer, n: ("per_head", 5) if n in QKV else ("full", 11), "mean", "gelu"),
    "full": (lambda layer, n: ("full", 17), "cls", "gelu_new"),
    "qkv_shared": (lambda layer, n: ("qkv_shared", 13) if n in QKV else ("full", 9), "last", "relu"),
    # Every kind of neighbour: per-head keys under a dense query, full values, a dense output, a
    # per-head rank as large as the head, and a layer left alone.
    "mixed": (
        lambda layer, n: {
            (0, "attention.self.key"): ("per_head", 3),
            (0, "attention.self.value"): ("full", 7),
            (0, "intermediate.dense"): ("full", 1),
            (1, "attention.self.query"): ("full", 6),
            (1, "attention.self.key"): ("per_head", 12),
            (1, "attention.self.value"): ("per_head", 4),
            (1, "output.dense"): ("full", 20),
        }.get((layer, n)),
        "mean",
        "gelu",
    ),
}


def write_safetensors(path, tensors, metadata):
    header, blob = {"__metadata__": metadata}, b""
    for name, values in tensors.items():
        raw = np.asarray(values, np.float32).tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(values.shape),
            "data_offsets": [len(blob), len(blob) + len(raw)],
        }
        blob += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + blob)


def make_model(name, layout_of, pooling, activation, rng):
    directory = os.path.join(HERE, name)
    os.makedirs(os.path.join(directory, "1_Pooling"), exist_ok=True)
    tensors, modules = {}, {}

    def norm(prefix):
        tensors[prefix + ".weight"] = 1 + 0.2 * rng.standard_normal(D)
        tensors[prefix + ".bias"] = 0.2 * rng.standard_normal(D)

    for table, rows in (("word", VOCAB), ("position", POSITIONS), ("token_type", 2)):
        tensors[f"embeddings.{table}_embeddings.weight"] = rng.standard_normal((rows, D))
    norm("embeddings.LayerNorm")
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        for module, (out, width) in LINEAR.items():
            full = prefix + module
            tensors[full + ".bias"] = 0.5 * rng.standard_normal(out)
            spec = layout_of(layer, module)
            # Spread singular values, since trained factors are not well conditioned; outputs of
            # order one, so that softmax is neither flat nor a hard maximum.
            if spec is None:
                tensors[full + ".weight"] = rng.standard_normal((out, width)) * 1.3 / np.sqrt(width)
                continue
            layout, rank = spec
            modules[full] = {"rank": rank, "layout": layout, "method": "random"}
            decay = 0.8 ** np.arange(rank)
            decay *= 1.3 / np.linalg.norm(decay)
            if layout == "per_head":
                h = out // HEADS
                a = rng.standard_normal((HEADS, rank, width)) / np.sqrt(width)
                b = rng.standard_normal((HEADS, h, rank)) * decay
            else:
                a = rng.standard_normal((rank, width)) / np.sqrt(width)
                b = rng.standard_normal((out, rank)) * decay
            if layout == "qkv_shared":
                tensors.setdefault(prefix + "attention.self.shared.A", a)
            else:
                tensors[full + ".lowrank.A"] = a
            tensors[full + ".lowrank.B"] = b
        norm(prefix + "attention.output.LayerNorm")
        norm(prefix + "output.LayerNorm")

    metadata = {"format": "pt"}
    if modules:
        metadata |= {"lowrank.format": "1", "lowrank.modules": json.dumps(modules)}
    write_safetensors(os.path.join(directory, "model.safetensors"), tensors, metadata)

    def write_json(path, value):
        with open(os.path.join(directory, path), "w") as f:
            json.dump(value, f, indent=1)
            f.write("\n")

    write_json("config.json", {
        "model_type": "bert", "hidden_size": D, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "intermediate_size": F, "vocab_size": VOCAB,
        "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "hidden_act": activation, "position_embedding_type": "absolute",
    })
    write_json("modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ])
    write_json("1_Pooling/config.json", {
        "word_embedding_dimension": D,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_lasttoken": pooling == "last",
    })
    return directory


def relative_error(got, want):
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def write_golden(path, directory, sequences):
    want = numpy_encoder.forward(directory, sequences)
    naive = numpy_encoder.forward(directory, sequences, numpy_encoder.bfloat16)
    with open(path, "w") as f:
        json.dump({
            "sequences": [list(map(int, s)) for s in sequences],
            "pooled": [[float(f"{v:.12g}") for v in row] for row in want],
            # Of a plain unfused bfloat16 chain against float64.
            "naive_bf16_relative_error": relative_error(naive, want),
        }, f)
        f.write("\n")
    print(f"{path}: naive bf16 relative error {relative_error(naive, want):.2e}")


def main():
    rng = np.random.default_rng(20260801)
    lengths = [1, 2, 7, 16, 17, 33, 64, 96]
    for name, (layout_of, pooling, activation) in MODELS.items():
        directory = make_model(name, layout_of, pooling, activation, rng)
        sequences = [rng.integers(0, VOCAB, n) for n in lengths]
        write_golden(os.path.join(directory, "golden.json"), directory, sequences)
    if len(sys.argv) > 1:
        # Text-like ids: [CLS], word pieces, [SEP].
        sequences = [[101, *rng.integers(1000, 30522, n), 102] for n in (0, 1, 5, 19, 62, 126, 254)]
        write_golden(os.path.join(HERE, "minilm.json"), sys.argv[1], sequences)


if __name__ == "__main__":
    main()
