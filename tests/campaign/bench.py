"""Runs cases: most in a few processes that stay, some as the real command."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.campaign.cases import Case
from tests.campaign.verdict import Outcome, Verdict, changes, digests, judge, snapshot

ROOT = Path(__file__).parents[2]
LIMIT = float(os.environ.get("GLCANET_CAMPAIGN_LIMIT", 90))  # seconds until a case counts as a hang


def environment() -> dict[str, str]:
    """Of the processes that run commands."""
    settings = dict(os.environ) | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    return settings | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200"}


class Worker:
    """A process that runs one case after another; a new one takes over where it dies or hangs."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def run(self, argv: tuple[str, ...], folder: Path) -> Outcome:
        """A command in a folder."""
        began = time.monotonic()
        try:
            if self._process is None:
                self._start()
            os.write(self._to, (json.dumps({"argv": argv, "folder": str(folder)}) + "\n").encode())
            limit = LIMIT if self._warm else 2 * LIMIT  # the first one waits for imports
            ready, _, _ = select.select([self._from], [], [], limit)
            answer = self._answers.readline() if ready else ""
        except BrokenPipeError:
            ready, answer = True, ""
        seconds, self._warm = time.monotonic() - began, True
        said = [_read(folder.with_name(folder.name + end)) for end in (".out", ".err")]
        if answer:
            return Outcome(json.loads(answer)["code"], *said, seconds)
        code = self._process.poll() if ready else None
        self.close()
        died = f"the process died (code {code}): {said[1][-300:]}" if ready else ""
        return Outcome(None, said[0], died, seconds)

    def _start(self) -> None:
        theirs, self._to = os.pipe()
        self._from, answers = os.pipe()
        command = [sys.executable, "-m", "tests.campaign.worker", str(theirs), str(answers)]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment(), pass_fds=(theirs, answers))
        os.close(theirs)
        os.close(answers)
        self._answers, self._warm = open(self._from, closefd=False), False

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._answers.close()
            for number in (self._to, self._from):
                with contextlib.suppress(OSError):
                    os.close(number)
            self._process = None


def run_apart(argv: tuple[str, ...], folder: Path) -> Outcome:
    """The real command, in a process of its own."""
    began = time.monotonic()
    command = [sys.executable, "-m", "glcanet_jax", *argv]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=2 * LIMIT
        )
    except subprocess.TimeoutExpired:
        return Outcome(None, "", "", time.monotonic() - began)
    said = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    return Outcome(done.returncode, *said, time.monotonic() - began)


def attempt(case: Case, folder: Path, site: Path, worker: Worker | None) -> Verdict:
    """Make a case's files in a new folder, run it there, and judge what came of it; nothing is left of it."""
    folder.mkdir(parents=True)
    try:
        for name in ("w.safetensors", "data", "scene.tif", "map_classes.tif"):
            if name in " ".join(case.argv).replace("=", " ").split():
                (shutil.copytree if (site / name).is_dir() else shutil.copyfile)(site / name, folder / name)
        case.make(folder)
        before, final = snapshot(folder, ("out",)), digests(folder / "out")
        outcome = run_apart(case.argv, folder) if worker is None else worker.run(case.argv, folder)
        outside, inside = changes(before, snapshot(folder, ("out",))), changes(final, digests(folder / "out"))
        return judge(case, folder, outcome, outside, inside)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for end in (".out", ".err"):
            folder.with_name(folder.name + end).unlink(missing_ok=True)


def _read(path: Path) -> str:
    return path.read_bytes().decode(errors="replace") if path.exists() else ""
