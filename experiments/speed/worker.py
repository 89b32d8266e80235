"""Processes of their own, for what :mod:`experiments.speed` measures: ``python -m experiments.speed.worker REQUEST``, in JSON.

Memory, compiled programs and threads are those of one measure or contender then, and what ends the process ends nothing else.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

# none of these imports JAX: a process that measures PyTorch does without it
from experiments.speed.cases import FULL, Sizes, Task
from experiments.speed.contenders import CONTENDERS
from experiments.speed.device import MEASURES
from glcanet_jax import cli
from glcanet_jax.errors import UserError

Request = dict[str, Any]  # of a worker, in JSON
# of workers; threads of OpenMP would spin beside the others' turns, and beside whatever else the machine does
ENVIRONMENT = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


class Worker:
    """A process that measures, beside us. It answers in lines of JSON: that it is ready, and then for each of its turns.

    Raises:
        UserError: from every method, when the process ends instead; in one line, why.
    """

    def __init__(self, name: str, request: Request):
        self._name, self._errors = name, tempfile.TemporaryFile("w+")
        command = [sys.executable, "-m", "experiments.speed.worker", json.dumps(request)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True)
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(command, cwd=root, env=ENVIRONMENT, **pipes)

    def answer(self) -> Any:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        said = [text.strip() for text in self._errors if text.strip()] or ["it said nothing"]
        errors = [
            text for text in said if re.match(r"error: |[\w.]+(Error|Exception)\b", text)
        ]  # JAX adds lines after it
        reason = (errors or said)[-1].removeprefix("error: ")
        killed = f"killed by signal {-code}, short of memory perhaps"
        raise UserError(f"{self._name} stopped: {killed if code < 0 else reason}")

    def ask(self, what: str) -> Any:
        with contextlib.suppress(BrokenPipeError):  # then the answer is why
            print(what, file=self._process.stdin, flush=True)
        return self.answer()

    def turn(self) -> dict[str, float]:
        """Seconds of a turn, those of all cores, and the peak of memory so far."""
        return self.ask("turn")

    def result(self, file: Path) -> np.ndarray:
        """What the last turn made, by way of a file."""
        return np.load(self.ask(str(file)))

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # it ends by itself, unless it is in the midst of something
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def serve(request: Request) -> None:
    """The life of a worker: one measure, or a contender that takes a turn for every line, or writes its result to a file of that name."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    answer = lambda value: print(json.dumps(value), file=answers, flush=True)  # noqa: E731
    sizes = Sizes(**request["sizes"])
    if "measure" in request:
        given = request["given"] | ({} if request["measure"] == "matmul_rate" else {"sizes": sizes})
        return answer(MEASURES[request["measure"]](**given))
    task = Task(sizes, request["batch"], Path(request["folder"]))
    contender = CONTENDERS[request["case"]][request["contender"]].built(task)
    contender.warm()
    answer(contender.took)
    result = None
    for line in map(str.strip, sys.stdin):
        if line != "turn":
            np.save(line, result)
            answer(line)
            continue
        began, cpu = time.perf_counter(), cpu_seconds()
        result = contender.turn()
        took = {"seconds": time.perf_counter() - began, "cpu_seconds": cpu_seconds() - cpu}
        answer({name: round(value, 4) for name, value in took.items()} | {"host_peak_mb": host_peak_mb()})


def cpu_seconds() -> float:
    """Of all threads of this process, and of its children that have ended."""
    return sum(os.times()[:4])


def host_peak_mb() -> float | None:
    """Megabytes that this process held at most, where Linux tells. (``profiling.peak_memory`` would import JAX.)"""
    with contextlib.suppress(OSError):
        match = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return round(int(match[1]) / 1024, 1) if match else None
    return None


def fresh(measure: str, sizes: Sizes = FULL, **given: Any) -> Any:
    """One of :data:`MEASURES`, by name, in a process that has done nothing else: the peaks of memory are its own.

    Raises:
        UserError: it failed; in one line, why. Memory, too, fails where this process holds the device's already.
    """
    with Worker(measure, {"measure": measure, "given": given, "sizes": asdict(sizes)}) as worker:
        return worker.answer()


def started(stack: contextlib.ExitStack, name: str, request: Request) -> tuple[Worker, dict[str, Any]]:
    """A contender's process that is ready, closed with the stack; and what building it took."""
    worker = stack.enter_context(Worker(name, request))
    took = worker.answer()
    if took.get("programs_compiled"):
        # making programs takes memory that is not the network's: the next process finds them on disk
        worker.close()
        worker = stack.enter_context(Worker(name, request))
        worker.answer()
    return worker, took


if __name__ == "__main__":
    cli.run(partial(serve, json.loads(sys.argv[1])))
