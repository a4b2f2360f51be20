"""Checks of the script itself; needs no GPU, and PyTorch and matplotlib only for what they do."""

import json
import os
import sys
import tempfile

import numpy as np

from . import model_dir, processes, report

TINY = model_dir.Shape(48, 2, 4, 80, {})
TINY_RANKS = (5, 9, 11)


def expect(condition, what):
    if not condition:
        raise AssertionError(what)


def numpy_linear(model, name, x):
    bias = model.tensor(name + ".bias")
    if name not in model.modules:
        return x @ model.tensor(name + ".weight").T + bias
    a, b = model.factors(name)
    if a.ndim == 2:
        return (x @ a.T) @ b.T + bias
    return np.concatenate([(x @ ai.T) @ bi.T for ai, bi in zip(a, b)], axis=1) + bias


def numpy_forward(model, ids):
    """Mean-pooled vectors of ids [batch, length], written from BERT's definition."""
    from math import erf

    def norm(name, x):
        x = x - x.mean(1, keepdims=True)
        x = x / np.sqrt((x * x).mean(1, keepdims=True) + model.config["layer_norm_eps"])
        return x * model.tensor(name + ".weight") + model.tensor(name + ".bias")

    def attend(q, k, v, h):
        out = np.empty_like(q)
        for i in range(0, q.shape[1], h):
            scores = q[:, i : i + h] @ k[:, i : i + h].T / np.sqrt(h)
            p = np.exp(scores - scores.max(1, keepdims=True))
            out[:, i : i + h] = p / p.sum(1, keepdims=True) @ v[:, i : i + h]
        return out

    gelu = np.vectorize(lambda x: 0.5 * x * (1 + erf(x / 2**0.5)), otypes=[np.float64])
    tables = [model.tensor(f"embeddings.{t}_embeddings.weight").astype(np.float64)
              for t in ("word", "position", "token_type")]
    pooled = []
    for sequence in ids:
        x = tables[0][sequence] + tables[1][: len(sequence)] + tables[2][0]
        x = norm("embeddings.LayerNorm", x)
        for layer in range(model.config["num_hidden_layers"]):
            p = f"encoder.layer.{layer}."
            q, k, v = (numpy_linear(model, f"{p}attention.self.{n}", x)
                       for n in ("query", "key", "value"))
            y = attend(q, k, v, x.shape[1] // model.config["num_attention_heads"])
            x = norm(p + "attention.output.LayerNorm",
                     x + numpy_linear(model, p + "attention.output.dense", y))
            y = gelu(numpy_linear(model, p + "intermediate.dense", x))
            x = norm(p + "output.LayerNorm", x + numpy_linear(model, p + "output.dense", y))
        pooled.append(x.mean(0))
    return np.array(pooled)


def relative(got, want):
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def multiplied_out(model, directory):
    """The same model, dense, as a directory."""
    tensors = {n: model.tensor(n) for n in model.header
               if ".lowrank." not in n and ".shared." not in n}
    tensors |= {n + ".weight": model.dense_weight(n) for n in model.modules}
    os.makedirs(directory)
    model_dir.write_safetensors(os.path.join(directory, "model.safetensors"), tensors, {})
    with open(os.path.join(directory, "config.json"), "w") as f:
        json.dump(model.config, f)
    return model_dir.Model(directory)


def check_models(folder):
    ids = np.random.default_rng(3).integers(0, model_dir.VOCABULARY, (3, 7))
    try:
        import torch

        from . import torch_models
    except ImportError:
        torch = None
        print("self-test: no PyTorch here, its models are not checked", file=sys.stderr)
    for layout in model_dir.LAYOUTS:
        directory = os.path.join(folder, layout)
        model_dir.write_model(directory, TINY, layout, TINY_RANKS, positions=16)
        model = model_dir.Model(directory)
        want = numpy_forward(model, ids)
        expect(np.isfinite(want).all() and 0.01 < np.abs(want).mean() < 10, f"{layout}: values")
        dense = multiplied_out(model, directory + "-dense")
        error = relative(numpy_forward(dense, ids), want)
        expect(error < 1e-5, f"{layout}: factors and product differ by {error}")
        if torch is None:
            continue
        for kind in {True, layout == "dense"}:
            with torch.no_grad():
                got = torch_models.Encoder(model, dense=kind)(torch.from_numpy(ids)).numpy()
            error = relative(got, want)
            expect(error < 1e-5, f"{layout}: PyTorch (dense={kind}) and numpy differ by {error}")


def check_shapes():
    """Parameters of the named shapes, at their own ranks, without generating them."""
    for name, shape in model_dir.SHAPES.items():
        dense = sum(out * width for out, width, _ in model_dir.linear_modules(shape).values())
        for layout, ranks in shape.ranks.items():
            kept = 0
            for module, (out, width, which) in model_dir.linear_modules(shape).items():
                per_head = layout == "per_head" and "self" in module
                copies = shape.heads if per_head else 1
                a = copies * ranks[which] * width
                shared = layout == "qkv_shared" and "self" in module
                kept += out * ranks[which] + (a / 3 if shared else a)
            expect(0.4 < kept / dense < 0.6, f"{name} {layout} keeps {kept / dense:.2f}")


def made_up(case, scale, ours_error=1e-3):
    def entry(ms, mib, error):
        return {"ms": ms * scale, "wall_ms": (ms + 1) * scale, "activation_bytes": int(mib * 2**20 * scale),
                "relative_error": error}

    return {"batch": case[0], "length": case[1], "competitors": {
        "dense-compiled": entry(4, 240, 2e-3) | {"variant": "default"},
        "lowrank-graph": entry(6, 264, 1e-3),
        "paper": {"failure": "no answer within 60 s"},
        "ours": entry(2, 32, ours_error)}}


def check_report(folder):
    names = ["dense-compiled", "lowrank-graph", "paper", "ours"]
    good = [made_up((1, 128), 0.5), made_up((32, 512), 1)]
    expect(report.ratio(good[1], "dense-compiled", "ours") == 2, "ratio")
    expect(report.ratio(good[1], "dense-compiled", "ours", "wall_ms") == 5 / 3, "wall ratio")
    expect(report.ratio(good[1], "paper", "ours") is None, "ratio of a failure")
    expect(report.problems(good) == [], f"problems of good results: {report.problems(good)}")
    page = report.text(good, names)
    for part in ("32 x 512", "2.00", "3.00", "1.67", "failed", "240.0", "1.0e-03", "no answer within 60 s"):
        expect(part in page, f"{part!r} is not in the table:\n{page}")
    lines = page.split("\n\n")[0].split("\n")[1:]
    expect(len({len(line) for line in lines}) == 1, "columns are not aligned")
    for error in (1.6e-3, float("nan")):
        bad = [made_up((8, 128), 1, error)]
        expect(report.problems(bad) and "FAIL" in report.text(bad, names), f"error {error} passes")
    report.write_json(os.path.join(folder, "a.json"), {}, {}, good, names)
    with open(os.path.join(folder, "a.json")) as f:
        expect(json.load(f)["ratios"]["lowrank-graph/ours"] == [3, 3], "JSON")
    try:
        report.plot(os.path.join(folder, "a.png"), good, names, "self-test")
        expect(os.path.getsize(os.path.join(folder, "a.png")) > 10000, "plot")
    except ImportError:
        print("self-test: no matplotlib here, the plot is not checked", file=sys.stderr)


def check_processes(folder):
    """What flashsvd-bench may do: answer, fail, print nonsense, hang, be missing."""
    for script, want in (
            ("""echo '{"activation_planned_bytes": 7, "latency_ms_p50": 2.5}'""", None),
            ("echo flashsvd-bench: no GPU >&2; exit 3", "ended with 3: flashsvd-bench: no GPU"),
            ("echo hello", "no JSON"), ("exec sleep 9", "no answer"), (None, "cannot run")):
        bench = os.path.join(folder, "bench.sh")
        if script is None:
            os.remove(bench)
        else:
            with open(bench, "w") as f:
                f.write(f"#!/bin/sh\n{script}\n")
            os.chmod(bench, 0o755)
        ours = processes.Ours(bench, "model", "bf16", 0, 1, os.path.join(folder, "log"))
        try:
            answer = ours.ask(0.5, do="prepare", batch=1, length=2, ids="i", output="o")
            expect(want is None and answer["activation_bytes"] == 7, f"{script!r} succeeded")
            expect(ours.ask(0.5, do="measure")["ms"] == [2.5], "measurement")
        except processes.CompetitorError as e:
            expect(want is not None and want in str(e), f"{script!r}: {e}")


def run():
    with tempfile.TemporaryDirectory() as folder:
        check_shapes()
        check_models(folder)
        check_report(folder)
        check_processes(folder)
    print("self-test passed")
