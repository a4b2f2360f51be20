#!/usr/bin/env python3
"""Compares this runtime with PyTorch on one GPU: the same random BERT encoder, inputs and dtype.

  dense-*     the uncompressed encoder (weights W = B A multiplied out)
  lowrank-*   the factors as PyTorch runs them: two products for each linear module
  *-eager     as it is
  *-graph     in a CUDA graph
  *-compiled  torch.compile, then a CUDA graph; the faster of its modes "default" and
              "max-autotune-no-cudagraphs", where --compile-modes names both
  ours        flashsvd-bench (--bench)
  paper       the FlashSVD paper's Triton kernels, from a checkout of its repository (--flashsvd)

PyTorch is given the fastest of its attention kernels for each case. In the first table its times
are medians of CUDA events around passes queued back to back; ours are wall-clock times from ids in
host memory to vectors in host memory, so our disadvantage is a launch and two copies. The second
table has the latter of both. Activations are the peak of allocated bytes during a pass above those
before it; ours are the planned arena.

All outputs are compared with PyTorch's low-rank model in float32. The exit status is 1 if ours
fails, or errs more than 1.5 times as much as PyTorch's low-rank model at the same dtype.
"""

import argparse
import datetime
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

try:
    import numpy as np
except ImportError:
    sys.exit("compare_torch.py: needs numpy (and, to measure, torch; to plot, matplotlib)")

from compare_torch import model_dir, processes, report, self_test

COMPETITORS = ("dense-eager", "dense-graph", "dense-compiled", "lowrank-eager", "lowrank-graph",
               "lowrank-compiled", "paper", "ours")
COMPILE_MODES = ("default", "max-autotune-no-cudagraphs")
EXAMPLE = """example:
  bench/compare_torch.py --bench build/bench/flashsvd-bench --shape bert-base --layout per_head \\
      --dtype bf16 --out compare
"""


START = time.monotonic()


def progress(message):
    print(f"[{time.monotonic() - START:5.1f} s] {message}", file=sys.stderr, flush=True)


def names_of(choices):
    def parse(value):
        names = value.split(",")
        for name in names:
            if name not in choices:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(choices)}")
        return names
    return parse


def parse_cases(value):
    try:
        cases = [tuple(int(n) for n in case.split("x")) for case in value.split(",")]
    except ValueError:
        cases = [()]
    if any(len(c) != 2 or min(c) < 1 for c in cases):
        raise argparse.ArgumentTypeError(f"{value!r} is not of the form 1x128,32x512")
    return cases


def parse_ranks(value):
    try:
        ranks = tuple(int(n) for n in value.split(","))
    except ValueError:
        ranks = ()
    if len(ranks) != 3 or min(ranks) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is not of the form R,r_ffn,r_out")
    return ranks


def parse_arguments(argv):
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bench", metavar="PATH",
                   help="flashsvd-bench, built with CUDA; default: build/bench/flashsvd-bench of "
                   "this tree, or the one on PATH")
    p.add_argument("--shape", choices=model_dir.SHAPES, default="bert-base", help="(%(default)s)")
    p.add_argument("--layout", choices=model_dir.LAYOUTS, default="per_head",
                   help="of the factors; dense: nothing is compressed (%(default)s)")
    p.add_argument("--ranks", type=parse_ranks, metavar="R,r_ffn,r_out",
                   help="ranks of query, key and value (per head for per_head), of the "
                   "feed-forward, of the attention output; default: about half of the encoder's "
                   "linear parameters, such as 40,240,240 for bert-base per_head")
    p.add_argument("--dtype", choices=("bf16", "f16"), default="bf16", help="(%(default)s)")
    p.add_argument("--cases", type=parse_cases, metavar="BxL,...",
                   default="1x128,8x128,32x128,32x256,32x512,8x2048",
                   help="batch x length (%(default)s)")
    p.add_argument("--competitors", type=names_of(COMPETITORS), metavar="NAME,...",
                   help="default: all; paper only with --flashsvd")
    p.add_argument("--compile-modes", type=names_of(COMPILE_MODES), metavar="MODE,...",
                   default="default", help=f"of {', '.join(COMPILE_MODES)} (%(default)s)")
    p.add_argument("--flashsvd", metavar="PATH", help="checkout of the paper's repository")
    p.add_argument("--chunk-tokens", type=int, metavar="N", help="passed to flashsvd-bench")
    p.add_argument("--seed", type=int, default=1, help="of weights and ids (%(default)s)")
    p.add_argument("--timeout", type=float, default=120, metavar="SECONDS",
                   help="for each step of a competitor (%(default)s)")
    p.add_argument("--out", metavar="DIR",
                   help="write compare.txt, compare.json, compare.png and the competitors' logs "
                   "there")
    p.add_argument("--self-test", action="store_true",
                   help="check this script; needs neither a GPU nor PyTorch")
    args = p.parse_args(argv)
    if args.self_test:
        return args
    if args.layout == "dense":
        if args.ranks:
            p.error("--ranks: a dense model has none")
        args.ranks = (0, 0, 0)
    args.ranks = args.ranks or model_dir.SHAPES[args.shape].ranks[args.layout]
    if args.competitors is None:
        args.competitors = [c for c in COMPETITORS if c != "paper" or args.flashsvd]
    if "paper" in args.competitors and not args.flashsvd:
        p.error("the competitor paper needs --flashsvd PATH")
    if args.flashsvd and not os.path.isdir(args.flashsvd):
        p.error(f"--flashsvd: {args.flashsvd} is no directory")
    if args.layout == "dense":
        args.competitors = [c for c in args.competitors if not c.startswith(("lowrank", "paper"))]
    if "ours" in args.competitors:
        args.bench = find_bench(args.bench) or p.error(
            "no flashsvd-bench found: build it with CUDA and name it with --bench, or leave ours "
            "out of --competitors")
    return args


def find_bench(path):
    built = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                         "../build/bench/flashsvd-bench")
    for candidate in [path] if path else [built, "flashsvd-bench"]:
        found = shutil.which(candidate)
        if found:
            return os.path.abspath(found)
    return None


def machine_facts(versions):
    facts = dict(versions)
    try:
        facts["driver"] = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        facts["driver"] = "unknown"
    facts["python"] = platform.python_version()
    facts["system"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    facts["date"] = datetime.date.today().isoformat()
    return facts


def make_competitors(args, model, folder):
    spec = {"model": model, "dtype": args.dtype, "sdpa_dtype": args.dtype,
            "compile_modes": args.compile_modes,
            "flashsvd": args.flashsvd and os.path.abspath(args.flashsvd)}

    def log(name):
        return os.path.join(folder, name + ".log")

    reference = processes.TorchCompetitor(
        "reference", dict(spec, dtype="f32"), log("reference"))
    competitors = []
    for name in args.competitors:
        if name == "ours":
            competitors.append(processes.Ours(
                args.bench, model, args.dtype, args.chunk_tokens, 0.3, log(name)))
        else:
            competitors.append(processes.TorchCompetitor(
                name, spec, log(name), fresh_each_case=name == "paper"))
    return reference, competitors


class Comparison:
    def __init__(self, args, folder, logs):
        self.args, self.folder = args, folder
        model = os.path.join(folder, "model")
        progress(f"writing a random {args.shape}, {args.layout}")
        positions = max(length for _, length in args.cases)
        model_dir.write_model(model, model_dir.SHAPES[args.shape], args.layout, args.ranks,
                              max(positions, 2), args.seed)
        self.reference, self.competitors = make_competitors(args, model, logs)

    def start(self):
        """Starts all processes side by side: importing PyTorch is slow."""
        started = [self.reference]
        started += [c for c in self.competitors if c.name not in ("ours", "paper")]
        progress(f"starting {len(started)} PyTorch processes")
        for competitor in started:
            competitor.start()
        for competitor in started:
            try:
                competitor.wait_ready(self.args.timeout)
            except processes.CompetitorError as e:
                if competitor is self.reference:
                    raise
                progress(f"{competitor.name} does not start, will try again: {e}")
        progress("PyTorch is ready")
        return self.reference.versions

    def stop(self):
        for competitor in [self.reference, *self.competitors]:
            competitor.stop()

    def run_case(self, batch, length, result):
        """Fills `result` in as far as it comes."""
        files = {name: os.path.join(self.folder, name) for name in ("ids", "output")}
        rng = np.random.default_rng(self.args.seed)
        ids = rng.integers(0, model_dir.VOCABULARY, batch * length)
        ids.astype("<i4").tofile(files["ids"])
        case = dict(files, batch=batch, length=length, sdpa="math")
        result |= {"batch": batch, "length": length, "competitors": {}}
        entries = result["competitors"]
        try:
            result["sdpa"] = self.reference.ask(self.args.timeout, do="prepare", **case)["sdpa"]
        except processes.CompetitorError as e:
            failure = f"not run, the float32 reference failed: {e}"
            entries |= {c.name: {"failure": failure} for c in self.competitors}
            return
        case["sdpa"] = result["sdpa"]
        want = np.fromfile(files["output"], "<f4").astype(np.float64)
        for competitor in self.competitors:
            entry = entries[competitor.name] = {}
            self.attempt(entry, lambda: self.prepare(competitor, case, want, entry))
            self.attempt(entry, lambda: self.measure(competitor, entry))
            progress(f"{batch} x {length} {competitor.name}: " + (
                f"failed: {entry['failure']}" if "failure" in entry else f"{entry['ms']:.3f} ms"))
        # Again, in reverse order, so that a drift of the clocks disturbs all alike.
        for competitor in reversed(self.competitors):
            entry = entries[competitor.name]
            self.attempt(entry, lambda: self.measure(competitor, entry))
            competitor.end_case()

    @staticmethod
    def attempt(entry, step):
        if "failure" in entry:
            return
        try:
            step()
        except processes.CompetitorError as e:
            entry["failure"] = str(e)
            entry.pop("ms", None)

    def prepare(self, competitor, case, want, entry):
        if os.path.exists(case["output"]):
            os.remove(case["output"])
        start = time.monotonic()
        entry |= competitor.ask(self.args.timeout, do="prepare", **case)
        entry["prepare_s"] = time.monotonic() - start
        got = np.fromfile(case["output"], "<f4").astype(np.float64)
        if got.shape != want.shape:
            raise processes.CompetitorError(f"{got.size} output values instead of {want.size}")
        entry["relative_error"] = float(np.linalg.norm(got - want) / np.linalg.norm(want))

    def measure(self, competitor, entry):
        answer = competitor.ask(self.args.timeout, do="measure")
        for field in ("ms", "wall_ms"):
            passes = entry.setdefault("passes_" + field, [])
            passes += answer[field]
            entry[field] = statistics.median(passes)


def compare(args, folder, logs):
    comparison = Comparison(args, folder, logs)
    results = []
    try:
        machine = machine_facts(comparison.start())
        title = (f"{args.shape}, {args.layout} {','.join(map(str, args.ranks))}, {args.dtype}; "
                 f"{machine['gpu']}, driver {machine['driver']}, PyTorch {machine['torch']}, "
                 f"CUDA {machine['cuda']}")
        for batch, length in args.cases:
            results.append({})
            comparison.run_case(batch, length, results[-1])
    except KeyboardInterrupt:
        if not results:
            raise
        progress("interrupted: the report has what was finished")
        machine["interrupted"] = True
    finally:
        comparison.stop()
    return machine, title, results


def write_report(args, machine, title, results):
    names = args.competitors
    facts = ", ".join(f"{key} {machine[key]}" for key in
                      ("cudnn", "triton", "python", "system", "date"))
    page = f"{title}\n{facts}\n\n{report.text(results, names)}\n"
    print(page, end="")
    if not args.out:
        return
    with open(os.path.join(args.out, "compare.txt"), "w") as f:
        f.write(page)
    options = {k: v for k, v in vars(args).items() if k not in ("out", "self_test")}
    report.write_json(os.path.join(args.out, "compare.json"), machine, options, results, names)
    try:
        report.plot(os.path.join(args.out, "compare.png"), results, names, title)
    except ImportError:
        progress("no matplotlib here: no plot")


def interrupt(*_):
    raise KeyboardInterrupt


def main():
    signal.signal(signal.SIGTERM, interrupt)
    args = parse_arguments(sys.argv[1:])
    if args.self_test:
        self_test.run()
        return 0
    with tempfile.TemporaryDirectory(prefix="compare_torch.") as folder:
        logs = folder
        if args.out:
            logs = os.path.abspath(args.out)
            os.makedirs(logs, exist_ok=True)
        try:
            machine, title, results = compare(args, folder, logs)
        except processes.CompetitorError as e:
            progress(f"the float32 reference failed: {e}")
            return 1
        except KeyboardInterrupt:
            return 130
    write_report(args, machine, title, results)
    found = report.problems(results)
    for line in found:
        print(f"FAIL {line}")
    return 1 if found or "interrupted" in machine else 0


if __name__ == "__main__":
    sys.exit(main())
