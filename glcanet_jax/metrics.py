"""Scores from confusion matrices over whole datasets; rows are truth, columns are predictions."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from glcanet_jax.data.classes import IGNORE
from glcanet_jax.errors import UserError

FLIPS = 2**14  # sign flips that the paired test looks at, all of them where there are no more


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int, ignore: int = IGNORE) -> np.ndarray:
    """Counts ``[k, k]`` of the pixels whose truth is not ``ignore``.

    Raises:
        UserError: an id of truth or prediction is no class.
    """
    if truth.dtype == prediction.dtype == np.uint8 and ignore == IGNORE and num_classes**2 + num_classes <= 256:
        counts = _count_bytes(truth, prediction, num_classes)
        if counts is not None:
            return counts
    counted = truth != ignore
    truth, prediction = truth[counted].astype(np.int64), prediction[counted].astype(np.int64)
    check_ids("truth", truth, num_classes)
    check_ids("prediction", prediction, num_classes)
    return np.bincount(truth * num_classes + prediction, minlength=num_classes**2).reshape(num_classes, num_classes)


def check_ids(what: str, ids: np.ndarray, num_classes: int) -> None:
    """Raises UserError if some of the ids are no classes."""
    if ids.size and (ids.max() >= num_classes or ids.min() < 0):
        raise UserError(
            f"the {what} holds class id {ids.max()}; there are {num_classes} classes, ids 0 to {num_classes - 1}"
        )


def _count_bytes(truth: np.ndarray, prediction: np.ndarray, k: int) -> np.ndarray | None:
    """The counts of ids of 8 bits, in a fifth of the time, for a pair of classes is a byte and two pixels are a word.

    None where an id is no class: the slow way tells which.
    """
    pairs = np.minimum(truth, k, order="C")
    if not truth.size or prediction.max() >= k or np.count_nonzero(pairs == k) != np.count_nonzero(truth == IGNORE):
        return None
    pairs *= np.uint8(k)
    pairs += prediction
    pairs = pairs.ravel()
    words = np.bincount(pairs[: pairs.size // 2 * 2].view(np.uint16), minlength=2**16).reshape(256, 256)
    counts = words.sum(0) + words.sum(1)
    if pairs.size % 2:
        counts[pairs[-1]] += 1
    return counts[: k * k].reshape(k, k)


def _ratio(a: int, b: int) -> float | None:
    return float(a / b) if b else None


def _mean(values: Sequence[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return float(np.mean(present)) if present else None


def scores(confusion: np.ndarray, class_names: Sequence[str], protocol: Any) -> dict[str, Any]:
    """Scores of a protocol from the confusion matrix of its restricted predictions.

    Classes absent from truth and prediction score None and are left out of means. ``oa`` is over all counted pixels.
    """
    confusion = np.array(confusion, np.int64)
    confusion[list(protocol.ignore)] = 0
    hits, truth, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    classes = {}
    for c in protocol.classes:
        hit, t, p = int(hits[c]), int(truth[c]), int(predicted[c])
        classes[class_names[c]] = {
            "iou": _ratio(hit, t + p - hit),
            "f1": _ratio(2 * hit, t + p),
            "precision": _ratio(hit, p),
            "recall": _ratio(hit, t),
            "support": t,
        }
    return {
        "miou": _mean([c["iou"] for c in classes.values()]),
        "mf1": _mean([c["f1"] for c in classes.values()]),
        "oa": _ratio(int(hits.sum()), int(confusion.sum())),
        "classes": classes,
    }


def majority_baseline(confusion: np.ndarray) -> np.ndarray:
    """The confusion matrix of a map that is everywhere the commonest true class."""
    confusion = np.asarray(confusion)
    out = np.zeros_like(confusion)
    out[:, confusion.sum(1).argmax()] = confusion.sum(1)
    return out


def _restrict(logits: np.ndarray, predict: tuple[int, ...] | None) -> np.ndarray:
    if predict is None:
        return logits.argmax(-1)
    return np.asarray(predict)[logits[..., list(predict)].argmax(-1)]


def confusion_key(truth: str) -> str:
    """Where ``metrics.json`` has the unrestricted matrix of a truth."""
    return "confusion" if truth == "labels" else f"confusion_{truth}"


class ConfusionAccumulator:
    """Confusion matrices of several scenes, from one pass: one for every truth, and for every set of classes that a
    protocol lets the argmax choose from."""

    def __init__(self, num_classes: int, protocols: Sequence[Any]):
        self._k, self._protocols = num_classes, tuple(protocols)
        kinds = [("labels", None), *(kind for p in protocols for kind in ((p.truth, None), (p.truth, p.predict)))]
        self._kinds = tuple(dict.fromkeys(kinds))
        self._scenes: dict[str, dict[Any, np.ndarray]] = {}

    @property
    def truths(self) -> tuple[str, ...]:
        """Those that :meth:`add` wants besides the labels."""
        return tuple(dict.fromkeys(truth for truth, _ in self._kinds if truth != "labels"))

    @property
    def kinds(self) -> tuple[tuple[str, tuple[int, ...] | None], ...]:
        """The truths, and the restrictions of the answers that are counted against each."""
        return self._kinds

    def _of(self, scene: str) -> dict[Any, np.ndarray]:
        return self._scenes.setdefault(scene, {kind: np.zeros((self._k, self._k), np.int64) for kind in self._kinds})

    def add_counts(self, scene: str, counts: Mapping[tuple[str, tuple[int, ...] | None], np.ndarray]) -> None:
        """Count some rows of a scene that were counted already: ``[k, k]`` by kind."""
        matrices = self._of(scene)
        for kind, matrix in counts.items():
            matrices[kind] += matrix

    def add(
        self, scene: str, truth: np.ndarray, logits: np.ndarray, others: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Count some rows of a scene: ids ``[h, w]``, those of other truths by name, and logits ``[h, w, k]``."""
        predictions = {r: _restrict(logits, r).astype(np.uint8) for r in self.restrictions}
        self.add_maps(scene, {"labels": truth, **(others or {})}, predictions)

    @property
    def restrictions(self) -> tuple[tuple[int, ...] | None, ...]:
        """The sets of classes that :meth:`add_maps` wants predictions from; None is all of them."""
        return tuple(dict.fromkeys(restriction for _, restriction in self._kinds))

    def add_maps(
        self, scene: str, truths: Mapping[str, np.ndarray], predictions: Mapping[tuple[int, ...] | None, np.ndarray]
    ) -> None:
        """Count some rows of a scene: ids ``[h, w]`` by truth, ``labels`` and :attr:`truths`, and by :attr:`restrictions`."""
        matrices = self._of(scene)
        whole = predictions[None]
        left_out = {r: ~np.isin(np.arange(256), r)[whole] for r in self.restrictions if r is not None}
        for of in dict.fromkeys(of for of, _ in self._kinds):
            counts = confusion_matrix(truths[of], whole, self._k)
            for restriction in (r for t, r in self._kinds if t == of):
                if restriction is None:
                    matrices[of, None] += counts
                    continue
                # the choice among fewer is another one only where the choice among all is none of them
                differs, mine = left_out[restriction], counts.copy()
                mine[:, np.setdiff1d(np.arange(self._k), restriction)] = 0
                mine += confusion_matrix(truths[of][differs], predictions[restriction][differs], self._k)
                matrices[of, restriction] += mine

    def total(self, restriction: tuple[int, ...] | None = None, truth: str = "labels") -> np.ndarray:
        """The matrix over all scenes."""
        return sum((m[truth, restriction] for m in self._scenes.values()), np.zeros((self._k, self._k), np.int64))

    def add_up(self, together: Callable[[np.ndarray], np.ndarray]) -> None:
        """Count what others have counted, too: ``together`` sums int64 ``[m, k, k]``. Scenes by themselves are given up."""
        matrices = together(np.stack([self.total(restriction, truth) for truth, restriction in self._kinds]))
        self._scenes = {"all": dict(zip(self._kinds, matrices, strict=True))}

    def result(self, class_names: Sequence[str], config: dict[str, Any]) -> dict[str, Any]:
        """``metrics.json``: every protocol over all scenes, the unrestricted matrix of each truth, every scene by itself,
        the configuration."""

        def by_protocol(matrix_of: Any) -> dict[str, Any]:
            return {p.name: scores(matrix_of(p.predict, p.truth), class_names, p) for p in self._protocols}

        def matrices_of(matrix_of: Any) -> dict[str, Any]:
            return {confusion_key(truth): matrix_of(None, truth).tolist() for truth in ("labels", *self.truths)}

        scenes = {}
        for name, matrices in self._scenes.items():
            of_scene = lambda restriction, truth: matrices[truth, restriction]  # noqa: B023, E731
            own = by_protocol(of_scene)
            scenes[name] = {p: {k: s[k] for k in ("miou", "mf1", "oa")} for p, s in own.items()}
            scenes[name] |= matrices_of(of_scene)
        return {"protocols": by_protocol(self.total), **matrices_of(self.total), "scenes": scenes, "config": config}


def format_table(result: dict[str, Any]) -> str:
    """A protocol's scores as text, in percent."""
    percent = lambda v: "     -" if v is None else f"{100 * v:6.2f}"  # noqa: E731
    width = max(len("mean"), *(len(name) for name in result["classes"]))
    lines = [f"{'class':<{width}}    IoU     F1   prec.  recall       pixels"]
    for name, s in result["classes"].items():
        line = (
            f"{name:<{width}} {percent(s['iou'])} {percent(s['f1'])}  {percent(s['precision'])}  {percent(s['recall'])}"
        )
        lines.append(f"{line} {s['support']:>12,}")
    lines.append(
        f"{'mean':<{width}} {percent(result['miou'])} {percent(result['mf1'])}   overall accuracy {percent(result['oa']).strip()}"
    )
    return "\n".join(lines)


def paired_test(differences: Sequence[float | int]) -> float | None:
    """Two-sided p of differences that would as well have the other sign: the share of sign flips with a mean as far from zero.

    All flips where there are no more than ``FLIPS``, as many drawn ones else; None of fewer than two differences.
    """
    values = np.asarray(differences, np.float64)
    if len(values) < 2:
        return None
    if 2 ** len(values) <= FLIPS:
        signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
    else:
        signs = np.random.default_rng(0).choice((1, -1), (FLIPS, len(values)))
        signs[0] = 1  # what was seen is one of them
    return float(np.mean(np.abs(signs @ values) >= np.abs(values.sum()) - 1e-9 * np.abs(values).sum()))
