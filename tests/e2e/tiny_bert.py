#!/usr/bin/env python3
"""Writes a tiny random BERT as a sentence-transformers directory: tiny_bert.py DIR

Two layers, width 32, four heads, FFN 64; a vocabulary of letters, their continuations and a few
words, so that every ASCII text has tokens. The same bytes every time; the standard library alone.
"""

import json
import os
import random
import string
import struct
import sys

HIDDEN, LAYERS, HEADS, FFN, POSITIONS = 32, 2, 4, 64, 64
MAX_TOKENS = 48
WORDS = "the a cat dog sat on mat sun star bread bank rate low high red blue runs sleeps".split()


def vocabulary():
    letters = string.ascii_lowercase + string.digits + string.punctuation
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    continuations = ["##" + c for c in string.ascii_lowercase + string.digits]
    return specials + list(letters) + continuations + [w for w in WORDS if len(w) > 1]


def tensors(vocab_size):
    """(name, shape, kind), kind being what the values are drawn around."""
    yield "embeddings.word_embeddings.weight", (vocab_size, HIDDEN), "matrix"
    yield "embeddings.position_embeddings.weight", (POSITIONS, HIDDEN), "matrix"
    yield "embeddings.token_type_embeddings.weight", (2, HIDDEN), "matrix"
    yield from layer_norm("embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            yield from linear(f"{at}.attention.self.{part}", HIDDEN, HIDDEN)
        yield from linear(f"{at}.attention.output.dense", HIDDEN, HIDDEN)
        yield from layer_norm(f"{at}.attention.output.LayerNorm")
        yield from linear(f"{at}.intermediate.dense", FFN, HIDDEN)
        yield from linear(f"{at}.output.dense", HIDDEN, FFN)
        yield from layer_norm(f"{at}.output.LayerNorm")


def linear(name, rows, columns):
    yield f"{name}.weight", (rows, columns), "matrix"
    yield f"{name}.bias", (rows,), "zero"


def layer_norm(name):
    yield f"{name}.weight", (HIDDEN,), "one"
    yield f"{name}.bias", (HIDDEN,), "zero"


def write_safetensors(path, vocab_size):
    rng = random.Random(20261123)
    header, data = {"__metadata__": {"format": "pt"}}, bytearray()
    for name, shape, kind in tensors(vocab_size):
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        mean, spread = {"matrix": (0, 0.2), "one": (1, 0.05), "zero": (0, 0.05)}[kind]
        values = [rng.gauss(mean, spread) for _ in range(count)]
        begin = len(data)
        data += struct.pack(f"<{count}f", *values)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, len(data)]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded + data)


def write_json(directory, name, value):
    path = os.path.join(directory, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)


def write(directory):
    vocab = vocabulary()
    os.makedirs(directory, exist_ok=True)
    write_json(directory, "config.json", {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": FFN,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2, "vocab_size": len(vocab), "pad_token_id": 0})
    with open(os.path.join(directory, "vocab.txt"), "w", encoding="utf-8") as file:
        file.write("".join(token + "\n" for token in vocab))
    write_json(directory, "tokenizer_config.json", {
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "unk_token": "[UNK]",
        "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"})
    write_json(directory, "sentence_bert_config.json", {"max_seq_length": MAX_TOKENS})
    write_json(directory, "modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling",
         "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize",
         "type": "sentence_transformers.models.Normalize"}])
    write_json(directory, "1_Pooling/config.json", {
        "word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True,
        "pooling_mode_cls_token": False, "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False})
    write_safetensors(os.path.join(directory, "model.safetensors"), len(vocab))


if __name__ == "__main__":
    write(sys.argv[1])
