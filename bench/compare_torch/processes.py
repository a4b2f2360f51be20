"""The competitors as processes: what a competitor does, a crash included, stays its own."""

import json
import multiprocessing
import os
import subprocess


class CompetitorError(Exception):
    """Why there is no result, in one line."""


def last_line(path):
    with open(path, errors="replace") as f:
        lines = [line.strip() for line in f if line.strip()]
    return lines[-1][:300] if lines else "no message"


def run_worker(spec, log, connection):
    """The process of a TorchCompetitor."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if spec["compile_modes"] == ["default"]:
        # A few small kernels a case: a pool of compiling processes takes longer to start.
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    from . import worker  # imports PyTorch, which the parent never does

    worker.serve(spec, connection)


# Forked from one server process, so that PyTorch is imported once (that can take many seconds); it
# does not touch CUDA before the fork. A process that crashes takes no other with it.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["numpy", "torch"])


class TorchCompetitor:
    """worker.py in a process, started when first needed and again after it failed."""

    def __init__(self, name, spec, log, fresh_each_case=False):
        self.name, self.fresh_each_case = name, fresh_each_case
        self.versions = None  # known once it has started
        self._spec = dict(spec, competitor=name)
        self._log = log
        self._process = None

    def start(self):
        if self._process is not None:
            return
        self.versions = None
        self._connection, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=run_worker, args=(self._spec, self._log, theirs))
        self._process.start()
        theirs.close()

    def wait_ready(self, timeout):
        self.start()
        if self.versions is None:
            self.versions = self._answer(timeout)

    def ask(self, timeout, **request):
        self.wait_ready(timeout)
        try:
            self._connection.send(request)
        except OSError:
            pass  # it has died: the answer says so
        return self._answer(timeout)

    def _answer(self, timeout):
        try:
            if not self._connection.poll(timeout):
                self.stop()
                raise CompetitorError(f"no answer within {timeout:.0f} s")
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            self.stop()
            raise CompetitorError(f"process ended with {code}: {last_line(self._log)}") from None
        if "error" in answer:
            self.stop()
            raise CompetitorError(" ".join(answer["error"].split()))
        return answer

    def end_case(self):
        if self.fresh_each_case:
            self.stop()

    def stop(self):
        if self._process is None:
            return
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._process = None


class Ours:
    """flashsvd-bench, a process for each measurement."""

    name = "ours"

    def __init__(self, bench, model, dtype, chunk_tokens, seconds, log):
        self._command = [bench, "encoder", "--device", "cuda", "--model", model, "--dtype", dtype,
                         "--json", "--seconds", str(seconds)]
        if chunk_tokens:
            self._command += ["--chunk-tokens", str(chunk_tokens)]
        self._log = log
        self._case = []
        self._last = None

    def ask(self, timeout, do, **case):
        if do == "prepare":
            self._case = ["--batch", str(case["batch"]), "--length", str(case["length"]),
                          "--ids", case["ids"]]
            self._last = self._run(["--output", case["output"]], timeout)
            return {"activation_bytes": self._last["activation_planned_bytes"],
                    "bench": self._last}
        # The run that prepared is the first measurement.
        result, self._last = self._last or self._run([], timeout), None
        return {"ms": [result["latency_ms_p50"]], "wall_ms": [result["latency_ms_p50"]]}

    def _run(self, arguments, timeout):
        with open(self._log, "ab") as log:
            try:
                done = subprocess.run(self._command + self._case + arguments, stderr=log,
                                      stdout=subprocess.PIPE, timeout=timeout, check=False)
            except subprocess.TimeoutExpired:
                raise CompetitorError(f"no answer within {timeout:.0f} s") from None
            except OSError as e:
                raise CompetitorError(f"cannot run {self._command[0]}: {e.strerror}") from None
        if done.returncode != 0:
            raise CompetitorError(f"ended with {done.returncode}: {last_line(self._log)}")
        try:
            return json.loads(done.stdout)
        except ValueError:
            raise CompetitorError(f"no JSON but {done.stdout[:100]!r}") from None

    def end_case(self):
        pass

    def stop(self):
        pass
