#!/usr/bin/env python3
"""The programs as a user runs them, on a tiny model: compress, serve, embed, watch, stop.

e2e_test.py BIN_DIR; needs no network and only the standard library.
"""

import array
import ast
import json
import math
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

import tiny_bert

BIN = None  # set by main
PATIENCE_S = 120  # of every wait; sanitizer builds on a busy machine are slow
TEXTS = ["the cat sat on the mat", "a dog runs", "bread", "the sun is a star",
         "bank rate low, bank rate high", "red and blue", "x" * 30, "the end of the list!"]


def program(name):
    return os.path.join(BIN, name)


def run(name, *arguments, stdin="", **kwargs):
    return subprocess.run([program(name), *arguments], input=stdin, capture_output=True, text=True,
                          timeout=PATIENCE_S, **kwargs)


class Server:
    """flashsvd-server on free ports."""

    def __init__(self, work, *arguments):
        ports = os.path.join(work, "ports")
        if os.path.exists(ports):
            os.remove(ports)
        self.log_path = os.path.join(work, "server.log")
        with open(self.log_path, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [program("flashsvd-server"), "--listen", "127.0.0.1", "--port", "0",
                 "--metrics-port", "0", "--port-file", ports, "--drain-delay", "0s", *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.ports = self._wait_for_ports(ports)
            self.address = f"127.0.0.1:{self.ports['grpc']}"
            health = self.client("health", "--wait", str(PATIENCE_S))
            if health.returncode != 0:
                raise AssertionError(f"not serving: {health.stderr}{self.log()}")
        except BaseException:
            self.kill()
            raise

    def _wait_for_ports(self, path):
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if os.path.exists(path):
                with open(path, encoding="utf-8") as file:
                    ports = dict(line.split() for line in file)
                if {"grpc", "metrics"} <= ports.keys():
                    return ports
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.log()}")
            time.sleep(0.02)
        raise AssertionError(f"no port file: {self.log()}")

    def log(self):
        with open(self.log_path, encoding="utf-8") as file:
            return file.read()

    def client(self, *arguments, stdin=""):
        return run("flashsvd-client", "--address", self.address, *arguments, stdin=stdin)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def read_npy(path):
    """Rows of a little-endian float32 .npy of two dimensions."""
    with open(path, "rb") as file:
        data = file.read()
    assert data[:8] == b"\x93NUMPY\x01\x00", data[:8]
    (length,) = struct.unpack("<H", data[8:10])
    assert (10 + length) % 64 == 0, length
    header = ast.literal_eval(data[10:10 + length].decode())
    assert header["descr"] == "<f4" and header["fortran_order"] is False, header
    rows, columns = header["shape"]
    values = array.array("f", data[10 + length:])
    assert len(values) == rows * columns, (len(values), header)
    return [values[i * columns:(i + 1) * columns] for i in range(rows)]


def largest_difference(a, b):
    assert len(a) == len(b)
    return max(abs(x - y) for row_a, row_b in zip(a, b) for x, y in zip(row_a, row_b))


class EndToEndTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = tempfile.mkdtemp(prefix="flashsvd-e2e-")
        cls.addClassCleanup(shutil.rmtree, cls.work)
        cls.dense = os.path.join(cls.work, "tiny")
        cls.lowrank = os.path.join(cls.work, "tiny-lowrank")
        tiny_bert.write(cls.dense)
        compressed = run("flashsvd-compress", "--model", cls.dense, "--out", cls.lowrank,
                         "--keep", "0.5", "--dtype", "f32")
        assert compressed.returncode == 0, compressed.stderr
        cls.server = Server(cls.work, "--model", f"dense={cls.dense}", "--model",
                            f"lowrank={cls.lowrank}", "--dtype", "f32", "--threads", "2")
        cls.addClassCleanup(cls.server.kill)
        cls.texts = os.path.join(cls.work, "texts.txt")
        with open(cls.texts, "w", encoding="utf-8") as file:
            file.write("\n".join(TEXTS) + "\n")

    def path(self, name):
        return os.path.join(self.work, f"{self.id().rsplit('.', 1)[1]}-{name}")

    def embed(self, model, *arguments):
        out = self.path("out.npy")
        result = self.server.client("embed", "--model", model, "--output", out, *arguments,
                                    self.texts)
        self.assertEqual(result.returncode, 0, result.stderr)
        return read_npy(out)

    def test_embeds_lines_into_npy(self):
        for model in ("dense", "lowrank"):
            rows = self.embed(model)
            self.assertEqual(len(rows), len(TEXTS))
            for row in rows:
                self.assertEqual(len(row), tiny_bert.HIDDEN)
                self.assertAlmostEqual(math.fsum(x * x for x in row), 1.0, delta=1e-5)
        # Different texts, different vectors: a constant answer would pass all of the above.
        self.assertGreater(largest_difference(rows[:1], rows[1:2]), 1e-3)

    def test_batching_does_not_change_embeddings(self):
        for model in ("dense", "lowrank"):
            together = self.embed(model)
            alone = self.embed(model, "--batch", "1", "--window", "3")
            self.assertLess(largest_difference(together, alone), 1e-6)

    def test_json_lines_equal_npy(self):
        result = self.server.client("embed", "--model", "dense", stdin="\n".join(TEXTS))
        self.assertEqual(result.returncode, 0, result.stderr)
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual([line["index"] for line in lines], list(range(len(TEXTS))))
        self.assertLess(
            largest_difference([line["embedding"] for line in lines], self.embed("dense")), 1e-6)
        self.assertRegex(result.stderr, rf"{len(TEXTS)} texts, \d+ tokens in .* tokens/s")

    def test_dimensions_and_truncation_reach_the_server(self):
        rows = self.embed("dense", "--dimensions", "8", "--no-normalize")
        self.assertEqual({len(row) for row in rows}, {8})
        long_text = "a " * 200
        cut = self.server.client("embed", "--model", "dense", stdin=long_text)
        line = json.loads(cut.stdout)
        self.assertEqual((line["tokens"], line["truncated"]), (tiny_bert.MAX_TOKENS, True))
        refused = self.server.client("embed", "--model", "dense", "--truncation", "none",
                                     stdin=long_text)
        self.assertEqual(refused.returncode, 1)
        self.assertIn("INVALID_ARGUMENT", refused.stderr)

    def test_similarity_of_a_text_with_itself_is_one(self):
        result = self.server.client("similarity", "--model", "dense", "--reference", "dense",
                                    stdin="a cat\na dog\n")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("mean 1.0000, least 1.0000", result.stdout)

    def test_tokenizes(self):
        result = self.server.client("tokenize", "--model", "dense", "--json", stdin="The cab\n")
        self.assertEqual(result.returncode, 0, result.stderr)
        line = json.loads(result.stdout)
        self.assertEqual(line["tokens"], ["[CLS]", "the", "c", "##a", "##b", "[SEP]"])
        self.assertEqual(list(zip(line["begin"], line["end"])),
                         [(0, 0), (0, 3), (4, 5), (5, 6), (6, 7), (0, 0)])

    def test_bad_input_names_the_line(self):
        out = self.path("out.npy")
        bad = self.path("bad.txt")
        with open(bad, "wb") as file:
            file.write(b"fine\nnot \xff fine\n")
        result = self.server.client("embed", "--model", "dense", "-o", out, bad)
        self.assertEqual(result.returncode, 2)
        self.assertIn(f"{bad}:2: not UTF-8 at byte 4", result.stderr)
        self.assertFalse(os.path.exists(out))
        result = self.server.client("embed", "--model", "dense", stdin="a\n\nb\n")
        self.assertEqual(result.returncode, 2)
        self.assertIn("standard input:2: empty line", result.stderr)
        result = self.server.client("embed", "--model", "dense", "--skip-empty", stdin="a\n\nb\n")
        self.assertEqual((result.returncode, len(result.stdout.splitlines())), (0, 2))

    def test_unknown_model_and_unreachable_server(self):
        result = self.server.client("embed", "--model", "none", stdin="a\n")
        self.assertEqual(result.returncode, 1)
        self.assertIn("NOT_FOUND", result.stderr)
        # Port 1 on the loopback: nothing listens there.
        result = run("flashsvd-client", "--address", "127.0.0.1:1", "--retries", "0", "models")
        self.assertEqual(result.returncode, 3)
        self.assertIn("127.0.0.1:1", result.stderr)

    def test_health(self):
        for service in ("", "flashsvd.v1.EncoderService"):
            result = self.server.client("health", "--service", service)
            self.assertEqual((result.returncode, result.stdout), (0, "SERVING\n"), result.stderr)
        self.assertNotEqual(self.server.client("health", "--service", "none").returncode, 0)
        healthy = run("flashsvd-server", "--healthcheck", "--port", self.server.ports["grpc"])
        self.assertEqual(healthy.returncode, 0, healthy.stderr)
        self.assertNotEqual(run("flashsvd-server", "--healthcheck", "--port", "1").returncode, 0)

    def test_models_tell_ranks_and_memory(self):
        self.embed("lowrank")
        result = self.server.client("models", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        models = {model["name"]: model for model in json.loads(result.stdout)["models"]}
        self.assertEqual(models.keys(), {"dense", "lowrank"})
        self.assertEqual(models["dense"]["parameters_kept"], 1)
        self.assertLess(models["lowrank"]["parameters_kept"], 0.6)
        memory = {key: int(value) for key, value in models["lowrank"]["memory"].items()}
        self.assertLess(memory["weight_bytes"], memory["weight_dense_equivalent_bytes"])
        self.assertLess(memory["activation_bytes"], memory["activation_dense_equivalent_bytes"])
        self.assertGreater(memory["activation_high_water_bytes"], 0)
        self.assertLessEqual(memory["activation_high_water_bytes"], memory["activation_bytes"])

        result = self.server.client("models", "lowrank")
        self.assertRegex(result.stdout, r"encoder\.layer\.1\.output\.dense +full +\d+")
        self.assertIn("dense", self.server.client("models").stdout)

    def test_metrics(self):
        self.embed("lowrank")
        url = f"http://127.0.0.1:{self.server.ports['metrics']}/metrics"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=PATIENCE_S) as response:
            self.assertRegex(response.headers["Content-Type"], r"^text/plain; version=0\.0\.4")
            text = response.read().decode()
        names = ("requests_total", "request_duration_seconds", "stage_duration_seconds",
                 "tokens_total", "batch_tokens", "batch_sequences", "queue_tokens",
                 "device_memory_bytes", "device_allocations_total", "batch_workspace_bytes", "weight_bytes",
                 "weight_dense_equivalent_bytes", "model_info", "build_info")
        types = set(re.findall(r"^# TYPE flashsvd_(\S+) ", text, re.M))
        self.assertEqual(set(names) - types, set())
        # Samples by name and labels, the labels in any order.
        samples = {(name, frozenset(labels.split(","))): float(value)
                   for name, labels, value in re.findall(r"^(\w+)\{(.*)\} (\S+)$", text, re.M)}
        finished = ("flashsvd_requests_total",
                    frozenset(('model="lowrank"', 'task="embed_stream"', 'code="OK"')))
        self.assertGreaterEqual(samples[finished], 1)
        weights = [samples["flashsvd_weight_bytes", frozenset((f'model="{model}"',))]
                   for model in ("lowrank", "dense")]
        self.assertLess(weights[0], weights[1])

    def test_check_accepts_a_good_model_and_prints_the_plan(self):
        result = run("flashsvd-server", "--check", "--model", self.lowrank)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("tiny-lowrank", result.stdout + result.stderr)

    def test_check_refuses_a_bad_one_in_one_line(self):
        def spoil_config(directory):
            path = os.path.join(directory, "config.json")
            with open(path, encoding="utf-8") as file:
                config = json.load(file)
            config["hidden_size"] = 33
            with open(path, "w", encoding="utf-8") as file:
                json.dump(config, file)
            return ["config.json", "hidden_size"]

        def cut_weights(directory):
            path = os.path.join(directory, "model.safetensors")
            os.truncate(path, os.path.getsize(path) - 10)
            return ["model.safetensors"]

        def remove_vocabulary(directory):
            os.remove(os.path.join(directory, "vocab.txt"))
            return ["vocab.txt"]

        for i, spoil in enumerate((spoil_config, cut_weights, remove_vocabulary)):
            with self.subTest(spoil.__name__):
                directory = self.path(f"bad{i}")
                shutil.copytree(self.dense, directory)
                words = spoil(directory)
                result = run("flashsvd-server", "--check", "--model", directory)
                self.assertNotEqual(result.returncode, 0)
                self.assertGreaterEqual(result.returncode, 0, "killed by a signal")
                self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
                for word in words:
                    self.assertIn(word, result.stderr)


class ShutdownTest(unittest.TestCase):
    def test_sigterm_under_load_answers_what_was_accepted_and_ends_with_zero(self):
        with tempfile.TemporaryDirectory(prefix="flashsvd-e2e-") as work:
            model = os.path.join(work, "tiny")
            tiny_bert.write(model)
            server = Server(work, "--model", model, "--threads", "1")
            self.addCleanup(server.kill)
            out_path = os.path.join(work, "out.jsonl")
            with open(out_path, "w", encoding="utf-8") as out:
                client = subprocess.Popen(
                    [program("flashsvd-client"), "--address", server.address, "--retries", "0",
                     "embed", "--batch", "4", "--no-progress"],
                    stdin=subprocess.PIPE, stdout=out, stderr=subprocess.PIPE, text=True)
            self.addCleanup(client.kill)
            # The client delivers whenever its window of 8 requests is full, 400 lines being 100.
            client.stdin.write("a cat\n" * 400)
            client.stdin.flush()
            deadline = time.monotonic() + PATIENCE_S
            while os.path.getsize(out_path) == 0 and time.monotonic() < deadline:
                time.sleep(0.02)
            self.assertGreater(os.path.getsize(out_path), 0)
            # Requests are in flight now, and more come while the server drains.
            server.process.send_signal(signal.SIGTERM)
            _, errors = client.communicate("a dog\n" * 400, timeout=PATIENCE_S)
            self.assertEqual(server.process.wait(PATIENCE_S), 0, server.log())
            self.assertIn(client.returncode, (0, 3), errors)
            if client.returncode == 3:
                self.assertIn("UNAVAILABLE", errors)
            # Whole batches, in order: nothing that was answered was lost on the way.
            with open(out_path, encoding="utf-8") as out:
                indices = [json.loads(line)["index"] for line in out]
            self.assertEqual(indices, list(range(len(indices))))
            self.assertEqual(len(indices) % 4, 0)

    def test_a_taken_port_is_one_line_and_a_failure(self):
        with tempfile.TemporaryDirectory(prefix="flashsvd-e2e-") as work:
            model = os.path.join(work, "tiny")
            tiny_bert.write(model)
            server = Server(work, "--model", model)
            self.addCleanup(server.kill)
            second = run("flashsvd-server", "--model", model, "--listen", "127.0.0.1", "--port",
                         server.ports["grpc"], "--metrics-port", "-1")
            self.assertNotEqual(second.returncode, 0)
            self.assertIn(server.ports["grpc"], second.stderr)
            self.assertEqual(server.stop(), 0, server.log())


class ReadmeTest(unittest.TestCase):
    def test_names_every_key_with_its_default(self):
        readme = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../README.md")
        with open(readme, encoding="utf-8") as f:
            told = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", f.read(), re.M))
        shown = run("flashsvd-server", "--help").stdout
        flags = {name.replace("-", "_"): default
                 for name, default in re.findall(r"^  --([a-z-]+) [^\[ ]+=(\S+)", shown, re.M)}
        self.assertGreater(len(flags), 20)
        self.assertEqual(told, flags)


if __name__ == "__main__":
    BIN = sys.argv.pop(1)
    unittest.main(verbosity=2)
