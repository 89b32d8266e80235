"""Runs cases one after another in one process, since jax takes seconds to import; started by :mod:`tests.campaign.bench`."""

import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path


def main(requests: int, answers: int) -> None:
    """Lines of JSON on two descriptors: ``{"argv", "folder"}`` in, ``{"code", "seconds"}`` out.

    What a command says, its libraries in C included, goes to the files ``.out`` and ``.err`` beside its folder.
    """
    from glcanet_jax.__main__ import run

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with open(requests) as asked, open(answers, "w") as told:
        for line in asked:
            request = json.loads(line)
            folder, began = Path(request["folder"]), time.monotonic()
            os.chdir(folder)
            _redirect(folder)
            sys.argv = ["glcanet", *request["argv"]]
            warnings.resetwarnings()
            code = _ended(run)
            sys.stdout.flush()
            sys.stderr.flush()
            print(json.dumps({"code": code, "seconds": time.monotonic() - began}), file=told, flush=True)


def _redirect(folder: Path) -> None:
    for stream, number, suffix in ((sys.stdout, 1, ".out"), (sys.stderr, 2, ".err")):
        stream.flush()
        file = os.open(folder.with_name(folder.name + suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)


def _ended(run: object) -> int:
    """The exit code that a process would have."""
    try:
        run()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
