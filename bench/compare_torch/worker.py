"""One PyTorch competitor in a process of its own, answering requests.

Requests: {"do": "prepare", "batch", "length", "ids", "output", "sdpa"} builds what the case needs,
writes the pooled vectors and answers with activation bytes; {"do": "measure"} answers with the
milliseconds of each pass. An answer with "error" ends the process: a CUDA error may have left it
unusable.
"""

import statistics
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

from . import model_dir, official, torch_models

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
PASSES = 30


def set_attention(kind):
    torch.backends.cuda.enable_flash_sdp(kind == "flash")
    torch.backends.cuda.enable_cudnn_sdp(kind == "cudnn")
    torch.backends.cuda.enable_mem_efficient_sdp(kind == "efficient")
    torch.backends.cuda.enable_math_sdp(kind == "math")


def event_times(call, passes):
    """Milliseconds of each pass on the device. All are queued before the first is waited for, so
    that a graph's passes do not include the time to launch it."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(passes + 1)]
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in zip(events, events[1:])]


def wall_times(call, passes):
    """Milliseconds of each pass for a caller who waits for its end."""
    times = []
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    for _ in range(passes):
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def eager_bytes(call):
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


class Graph:
    """A captured call; `output` is rewritten by every replay."""

    def __init__(self, call):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles, and allocates library workspaces
            for _ in range(2):
                call()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        self.graph = torch.cuda.CUDAGraph()
        torch.cuda.reset_peak_memory_stats()
        with torch.cuda.graph(self.graph, stream=stream):
            self.output = call()
        self.activation_bytes = torch.cuda.max_memory_allocated() - before

    def __call__(self):
        self.graph.replay()
        return self.output


class Worker:
    def __init__(self, spec):
        self.spec = spec
        self.kind, _, self.mode = spec["competitor"].partition("-")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        model = model_dir.Model(spec["model"])
        if self.kind == "paper":
            encoder = official.encoder(model, spec["flashsvd"])
        else:
            encoder = torch_models.Encoder(model, dense=self.kind == "dense")
        self.encoder = encoder.to("cuda", DTYPES[spec["dtype"]]).eval()
        self.heads = model.config["num_attention_heads"]
        self.hidden = model.config["hidden_size"]
        self.call = None

    def prepare(self, batch, length, ids, output, sdpa):
        values = np.fromfile(ids, "<i4").reshape(batch, length)
        self.host_ids = torch.from_numpy(values).to(torch.int64).pin_memory()
        self.device_ids = device_ids = self.host_ids.to("cuda")
        self.call = None  # frees the last case's graph
        torch.cuda.empty_cache()
        answer = {}
        if self.kind == "reference":
            set_attention("math")
            answer["sdpa"] = self.fastest_attention(batch, length)
        elif self.kind != "paper":
            set_attention(sdpa)

        def forward():
            return self.encoder(device_ids)

        if self.kind == "paper":
            self.prepare_paper(forward, answer)
        elif self.mode == "graph":
            self.prepare_graph(forward, answer)
        elif self.mode == "compiled":
            self.prepare_compiled(forward, answer)
        else:
            self.prepare_eager(forward, answer)
        vectors = self.call()
        self.host_vectors = torch.empty_like(vectors, device="cpu").pin_memory()
        vectors.cpu().float().numpy().astype("<f4").tofile(output)
        return answer

    def prepare_eager(self, forward, answer):
        forward()
        answer["activation_bytes"] = eager_bytes(forward)
        self.call = forward

    def prepare_graph(self, forward, answer):
        self.call = Graph(forward)
        answer["activation_bytes"] = self.call.activation_bytes

    def prepare_paper(self, forward, answer):
        """A graph if it can be captured, else eager, as it is published."""
        forward()  # compiles
        eager = statistics.median(event_times(forward, 10))
        answer["variants"] = {"eager": {"ms": eager}}
        try:
            self.prepare_graph(forward, answer)
            answer["variant"] = "graph"
        except RuntimeError as e:
            if "capture" not in str(e):
                raise
            torch.cuda.synchronize()
            self.prepare_eager(forward, answer)
            answer["variant"] = "eager"

    def prepare_compiled(self, forward, answer):
        answer["variants"] = {}
        best = None
        for mode in self.spec["compile_modes"]:
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            start = time.perf_counter()
            self.encoder.compile(mode=mode, dynamic=False)
            graph = Graph(forward)
            seconds = time.perf_counter() - start
            ms = statistics.median(event_times(graph, PASSES))
            answer["variants"][mode] = {"ms": ms, "compile_s": seconds}
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            answer["variants"][mode]["compiled_graphs"] = graphs
            if best is None or ms < best:
                best, self.call = ms, graph
                answer["variant"] = mode
                answer["activation_bytes"] = graph.activation_bytes

    def fastest_attention(self, batch, length):
        """Which of PyTorch's attention kernels every other competitor shall use for this case."""
        shape = (batch, length, 3, self.heads, self.hidden // self.heads)
        qkv = torch.randn(shape, dtype=DTYPES[self.spec["sdpa_dtype"]], device="cuda")
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        times = {}
        for kind in ("flash", "cudnn", "efficient"):
            set_attention(kind)
            try:
                graph = Graph(lambda: F.scaled_dot_product_attention(q, k, v))
                times[kind] = statistics.median(event_times(graph, PASSES))
            except RuntimeError as e:
                print(f"attention {kind}: {e}", file=sys.stderr)
        set_attention("math")
        return min(times, key=times.get) if times else "math"

    def answer(self):
        """A pass from ids in host memory to vectors in host memory."""
        self.device_ids.copy_(self.host_ids, non_blocking=True)
        self.host_vectors.copy_(self.call(), non_blocking=True)

    def measure(self):
        event_times(self.call, 5)
        return {"ms": event_times(self.call, PASSES), "wall_ms": wall_times(self.answer, PASSES)}


def versions():
    properties = torch.cuda.get_device_properties(0)
    cudnn = torch.backends.cudnn.version()
    return {"gpu": properties.name, "multiprocessors": properties.multi_processor_count,
            "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn,
            "triton": getattr(__import__("triton"), "__version__", "unknown")}


def serve(spec, connection):
    try:
        with torch.no_grad():
            worker = Worker(spec)
            connection.send(versions())
            while True:
                request = connection.recv()
                connection.send(getattr(worker, request.pop("do"))(**request))
    except EOFError:
        pass  # the parent is gone
    except Exception as e:  # whatever it is, it is this competitor's result
        connection.send({"error": f"{type(e).__name__}: {e}"[:2000]})
        raise
