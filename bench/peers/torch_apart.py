"""Processes that compile at the same time and then use the GPU one after the other."""

import os
import signal
import subprocess
import sys
import threading
import time

import torch


class Gate:
    """Where a row's process waits between its compilation and its first step, so that what it then tries and times on
    the GPU (cuDNN's algorithms, Triton's configurations) is alone there."""
    closed, waited = False, 0.0

    @classmethod
    def pass_through(cls):
        if not cls.closed:
            return
        cls.closed = False
        signal.alarm(0)
        begun = time.perf_counter()
        print("ready", flush=True)
        sys.stdin.readline()
        cls.waited = time.perf_counter() - begun


class GatedBackend:
    """TorchInductor as torch.compile calls it, with the gate behind each compilation."""

    def __init__(self, mode):
        self.inner = torch._TorchCompileInductorWrapper(mode, None, False)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, graph, inputs):
        function = self.inner(graph, inputs)
        Gate.pass_through()
        return function


class Apart:
    """measure() in a process of its own: it compiles at once and is measured when it is asked for its result."""

    def __init__(self, command, limit, seconds, neighbours):
        self.limit, self.seconds = limit, seconds
        threads = os.environ.get("TORCHINDUCTOR_COMPILE_THREADS", str(max(2, (os.cpu_count() or 1) // neighbours)))
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                      start_new_session=True,
                                      env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": threads})
        self.ready = False

    def kill(self):
        try:
            os.killpg(self.child.pid, signal.SIGKILL)  # with the compiler's worker processes
        except ProcessLookupError:
            pass

    def wait_until_ready(self):
        """Ready or ended; the alarm inside ends it where compiling takes too long."""
        timer = threading.Timer(self.limit + 60, self.kill)
        timer.start()
        self.ready = any(line == "ready\n" for line in iter(self.child.stdout.readline, ""))
        timer.cancel()

    def result(self):
        """What the process printed last, and "" or why there is nothing."""
        try:
            text, _ = self.child.communicate("go\n" if self.ready else None, timeout=self.seconds if self.ready else 10)
        except subprocess.TimeoutExpired:
            return "", "the process did not end"
        finally:
            self.kill()
            self.child.wait()
        if self.child.returncode == -signal.SIGALRM:
            return "", f"compilation did not end within {self.limit} s"
        if self.child.returncode != 0:
            return "", f"the process ended with status {self.child.returncode}"
        return text.splitlines()[-1], ""


def run_apart(commands, limit, seconds):
    """The results of the commands, in order: all compile, for `limit` seconds at most, then one by one goes on."""
    processes = [Apart(command, limit, seconds, len(commands)) for command in commands]
    for process in processes:
        process.wait_until_ready()
    for process in processes:
        yield process.result()
