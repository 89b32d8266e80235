"""Experiment trackers that are told of a run: ``--track wandb|mlflow|tensorboard|csv``, several at once.

Each is a small adapter of :class:`Tracker`, and an extra that is asked for by name. Each is called in a thread of its own, so that training
never waits for it; what fails is warned of once, and not called again. Nothing leaves this machine unless its own settings say so.
"""

import csv
import importlib.util
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from glcanet_jax import border, report
from glcanet_jax.config import flat
from glcanet_jax.data import disk
from glcanet_jax.errors import UserError

PATIENCE = 60.0  # seconds that a tracker has, in the end, to send what it was told
PROJECT = "glcanet-jax"  # what runs are filed under
Values = Mapping[str, float]


@runtime_checkable
class Tracker(Protocol):
    """Who is told of a run. It is made with the run's folder, its configuration and the step that it goes on from."""

    def numbers(self, kind: str, step: int, values: Values) -> None:
        """Losses, rates and times (``train``), or scores (``eval``), after a step."""

    def scores(self, values: Values) -> None:
        """Scores of the finished run, by names as ``test/miou``."""

    def files(self, paths: Sequence[Path]) -> None:
        """Pictures and pages of the finished run."""

    def close(self, whole: bool) -> None:
        """Called once, at the end of training, or where it stopped before."""


class Csv:
    """``track/train.csv`` and ``track/eval.csv``: a row a record, a column a value; ``track/scores.csv`` of the finished run."""

    def __init__(self, run: Path, config: Mapping[str, Any], step: int):
        self._folder = run / "track"
        disk.check_no_links(self._folder)
        self._folder.mkdir(exist_ok=True)
        self._columns: dict[str, list[str]] = {}
        for kind in ("train", "eval"):
            rows = [row for row in self._rows(kind) if int(row["step"]) <= step]  # what comes later will come again
            if rows:
                self._write(kind, rows)

    def _rows(self, kind: str) -> list[dict[str, str]]:
        path = self._folder / f"{kind}.csv"
        if not path.is_file():
            return []
        found = csv.DictReader(border.read_text(path).splitlines())
        return [row for row in found if (row.get("step") or "").isdigit() and None not in row.values()]

    def _write(self, kind: str, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = list(dict.fromkeys(["step", *(key for row in rows for key in row)]))
        with disk.whole(self._folder / f"{kind}.csv") as place, place.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        self._columns[kind] = columns

    def numbers(self, kind: str, step: int, values: Values) -> None:
        row = {"step": step, **values}
        columns = self._columns.get(kind)
        if columns is None or not set(row) <= set(columns):
            self._write(kind, [*(self._rows(kind) if columns else ()), row])
            return
        with (self._folder / f"{kind}.csv").open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, columns, restval="").writerow(row)

    def scores(self, values: Values) -> None:
        with disk.whole(self._folder / "scores.csv") as place, place.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("score", "value"), *values.items()])

    def files(self, paths: Sequence[Path]) -> None:
        pass  # they lie in the run's folder already

    def close(self, whole: bool) -> None:
        pass


class TensorBoard:
    """``tensorboard/`` in the run's folder, written by tensorboardX."""

    def __init__(self, run: Path, config: Mapping[str, Any], step: int):
        from tensorboardX import SummaryWriter

        self._writer, self._step = SummaryWriter(str(run / "tensorboard"), purge_step=step), step
        if step == 0:
            rows = "\n".join(f"| {name} | {value} |" for name, value in flat(config).items())
            self._writer.add_text("configuration", f"| setting | value |\n|---|---|\n{rows}", 0)

    def numbers(self, kind: str, step: int, values: Values) -> None:
        self._step = step
        for key, value in values.items():
            self._writer.add_scalar(f"{kind}/{key}", value, step)

    def scores(self, values: Values) -> None:
        for key, value in values.items():
            self._writer.add_scalar(f"scores/{key}", value, self._step)

    def files(self, paths: Sequence[Path]) -> None:
        for path in paths:
            picture = _pixels(path)
            if picture is not None:
                self._writer.add_image(_name(path), picture, self._step, dataformats="HWC")

    def close(self, whole: bool) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases. Offline, in ``wandb/`` in the run's folder, unless ``WANDB_MODE`` says ``online``."""

    def __init__(self, run: Path, config: Mapping[str, Any], step: int):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own errors stay here, too
        import wandb

        self._wandb = wandb
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode == "offline":
            print(
                f"wandb: nothing is sent; `wandb sync {run / 'wandb'}/offline-run-*` sends it, WANDB_MODE=online as it comes"
            )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), dir=str(run), name=run.resolve().name, id=_kept_id(run, "wandb"),
            resume="allow", config=dict(config), mode=mode,
            settings=wandb.Settings(silent=True, console="off", save_code=False),
        )  # fmt: skip

    def numbers(self, kind: str, step: int, values: Values) -> None:
        # a step of one's own: theirs must never fall, and a run that goes on begins at its last checkpoint
        self._run.log({f"{kind}/{key}": value for key, value in values.items()} | {"trained": step})

    def scores(self, values: Values) -> None:
        self._run.summary.update(dict(values))

    def files(self, paths: Sequence[Path]) -> None:
        pictures = {_name(path): pixels for path in paths if (pixels := _pixels(path)) is not None}
        self._run.log({f"pictures/{name}": self._wandb.Image(pixels) for name, pixels in pictures.items()})

    def close(self, whole: bool) -> None:
        self._run.finish(exit_code=0 if whole else 1)


class Mlflow:
    """MLflow: a database ``mlflow.db`` in the run's folder, unless ``MLFLOW_TRACKING_URI`` names a server."""

    def __init__(self, run: Path, config: Mapping[str, Any], step: int):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        place = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(place or f"sqlite:///{(run / 'mlflow.db').resolve()}")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        kept = None if place else (run / "mlruns").resolve().as_uri()  # of pictures
        experiment = found.experiment_id if found else self._client.create_experiment(name, artifact_location=kept)
        known = run / "track" / "mlflow-run"
        if known.is_file():
            self._id = border.read_text(known).strip()
            self._client.update_run(self._id, "RUNNING")
            return
        self._id = self._client.create_run(experiment, run_name=run.resolve().name).info.run_id
        params = [Param(key, str(value)[:500]) for key, value in flat(config).items()]
        for first in range(0, len(params), 100):  # no more are taken at once
            self._client.log_batch(self._id, params=params[first : first + 100])
        known.parent.mkdir(exist_ok=True)
        report.write_text(known, self._id + "\n")

    def numbers(self, kind: str, step: int, values: Values) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(f"{kind}/{key}", value, now, step) for key, value in values.items()])

    def scores(self, values: Values) -> None:
        for key, value in values.items():
            self._client.log_metric(self._id, f"scores/{key}", value)

    def files(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self._client.log_artifact(self._id, str(path), _name(path).rpartition("/")[0] or None)

    def close(self, whole: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if whole else "KILLED")


# by the name that --track takes: the adapter, the module that it needs, and what brings it
KNOWN: dict[str, tuple[Callable[[Path, Mapping[str, Any], int], Tracker], str | None, str]] = {
    "wandb": (Wandb, "wandb", "wandb"),
    "mlflow": (Mlflow, "mlflow", "mlflow"),
    "tensorboard": (TensorBoard, "tensorboardX", "tensorboardX"),
    "csv": (Csv, None, ""),
}


class Tracking:
    """All trackers of a run. As a context manager it closes them, whatever happened."""

    def __init__(self, names: Sequence[str] = ()):
        """Raises UserError if one of them is not known, or not installed."""
        self.names = tuple(dict.fromkeys(names))
        self._workers: list[_Worker] = []
        for name in self.names:
            if name not in KNOWN:
                raise UserError(f"--track is {name!r}; there are {', '.join(KNOWN)}")
            _, module, package = KNOWN[name]
            if module is not None and importlib.util.find_spec(module) is None:
                raise UserError(
                    f"--track {name} needs {package}, which is not installed; pip install {package}, or leave it out"
                )

    def begin(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        """The run's folder is there, and its steps begin."""
        names = dict.fromkeys([*self.names, *self.unasked(config)])
        self._workers = [_Worker(name, KNOWN[name][0], run, config, step) for name in names]

    @staticmethod
    def unasked(config: Mapping[str, Any]) -> list[str]:
        """TensorBoard, as it was before it could be asked for: where the configuration wants it and it is installed."""
        wanted = config["train"]["tensorboard"] and importlib.util.find_spec("tensorboardX") is not None
        return ["tensorboard"] if wanted else []

    def write(self, line: Mapping[str, Any]) -> None:
        """A line of the run's log."""
        values = numbers_of(line)
        for worker in self._workers if values else ():
            worker.call("numbers", line["kind"], line["step"], values)

    def scores(self, split: str, result: Mapping[str, Any]) -> None:
        """What a split scored, as ``metrics.json`` has it."""
        several, values = len(result["protocols"]) > 1, {}
        for protocol, of in result["protocols"].items():
            prefix = f"{split}/{protocol}" if several else split
            values |= {f"{prefix}/{key}": of[key] for key in ("miou", "mf1", "oa")}
            values |= {f"{prefix}/iou/{name}": own["iou"] for name, own in of["classes"].items()}
        self._tell("scores", {key: value for key, value in values.items() if value is not None})

    def files(self, paths: Sequence[Path]) -> None:
        self._tell("files", list(paths))

    def _tell(self, what: str, given: Any) -> None:
        for worker in self._workers:
            worker.call(what, given)

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        for worker in self._workers:
            worker.close(kind is None)
        self._workers = []


class _Worker:
    """A tracker in a thread of its own, from its beginning on; the first thing that fails is told, and ends it."""

    def __init__(self, name: str, make: Callable[..., Tracker], *given: Any):
        self._name, self._queue = name, queue.Queue()
        self._thread = threading.Thread(target=self._work, args=(make, *given), name=f"track {name}", daemon=True)
        self._thread.start()

    def _work(self, make: Callable[..., Tracker], *given: Any) -> None:
        try:
            tracker = make(*given)
            what = ""
            while what != "close":
                what, *values = self._queue.get()
                getattr(tracker, what)(*values)
        except Exception as error:  # whatever is wrong with it is no matter of the training
            told = " ".join(str(error).split())[:200] or type(error).__name__
            print(f"warning: {self._name} has failed and is told no more; training goes on ({told})", flush=True)

    def call(self, what: str, *values: Any) -> None:
        if self._thread.is_alive():
            self._queue.put((what, *values))

    def close(self, whole: bool) -> None:
        self.call("close", whole)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            print(f"warning: {self._name} did not take all that it was told within {PATIENCE:.0f} s; it is left behind")


# --------------------------------------------------------------------------------------------------------------- helpers
def numbers_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line of the log, its step aside."""
    numbers = {k: v for k, v in line.items() if isinstance(v, int | float) and not isinstance(v, bool) and k != "step"}
    return {k: float(v) for k, v in numbers.items() if math.isfinite(v)}


def _kept_id(run: Path, name: str) -> str:
    """A tracker's name of a run, the same when it goes on."""
    path = run / "track" / f"{name}-run"
    if path.is_file():
        return border.read_text(path).strip()
    path.parent.mkdir(exist_ok=True)
    new = os.urandom(8).hex()
    report.write_text(path, new + "\n")
    return new


def _name(path: Path) -> str:
    """What a picture is called: those of a split, by the split's folder."""
    return f"{path.parent.name}/{path.stem}" if path.parent.name.startswith("eval-") else path.stem


def _pixels(path: Path) -> Any:
    """A picture as ``[h, w, 3]``, no larger than a page shows; None of what is none."""
    import numpy as np
    from PIL import Image

    if path.suffix not in (".png", ".webp", ".jpg"):
        return None
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((report.PAGE, report.PAGE))
        return np.asarray(picture)
