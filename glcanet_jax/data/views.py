"""The two views of a context: one way to shrink it, for training and prediction alike."""

from collections.abc import Callable

import numpy as np

from glcanet_jax.data.classes import IGNORE


def resize_image(
    image: np.ndarray, height: int, width: int, rows: tuple[int | float, int | float] | None = None
) -> np.ndarray:
    """An antialiased resize of ``[h, w, c]``: a triangle filter as wide as the reduction asks, so that no pixel is lost.

    The values keep their type; integers are rounded. ``rows`` takes a band of the image (fractions of pixels); what lies
    beyond it still counts at its border.
    """
    from PIL import Image

    if image.shape[:2] == (height, width) and rows is None:
        return image
    box = None if rows is None else (0, rows[0], image.shape[1], rows[1])
    resize = lambda picture: np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR, box))  # noqa: E731
    if image.dtype == np.uint8 and image.shape[2] in (1, 3):
        out = resize(Image.fromarray(image[..., 0] if image.shape[2] == 1 else np.ascontiguousarray(image)))
        return out.reshape(height, width, image.shape[2])
    out = np.stack([resize(Image.fromarray(band.astype(np.float32))) for band in np.moveaxis(image, -1, 0)], axis=-1)
    if np.issubdtype(image.dtype, np.integer):
        limits = np.iinfo(image.dtype)
        out = np.clip(np.rint(out), limits.min, limits.max)
    return out.astype(image.dtype)


def triangle(length: int, size: int, taps: int) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`resize_image` makes each of ``size`` new pixels along an axis of: ``taps`` old pixels, and their weights.

    Both are ``[size, taps]``; pixels that do not count have no weight. (Pillow's ``precompute_coeffs``.)

    Raises:
        ValueError: there are more that count.
    """
    scale = length / size
    reach = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    count = np.minimum((centres + reach + 0.5).astype(np.int64), length) - first
    if count.max() > taps:
        raise ValueError(f"{count.max()} pixels make one, not {taps}")
    index = first[:, None] + np.arange(taps)
    weights = np.maximum(1 - np.abs((index - centres[:, None] + 0.5) / reach), 0) * (np.arange(taps) < count[:, None])
    weights /= weights.sum(1, keepdims=True)
    return np.minimum(index, length - 1).astype(np.int32), weights.astype(np.float32)


def most_taps(length: int, size: int) -> int:
    """Pixels that :func:`triangle` takes of an axis no longer than this, at most."""
    return int(2 * max(length / size, 1.0)) + 2


def resize_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nearest labels ``[h, w]`` at the centres of the new pixels."""
    if labels.shape == (height, width):
        return labels
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for new, old in zip((height, width), labels.shape, strict=True)
    )
    return labels[rows][:, columns]  # one axis after the other: whole rows are copied, few of them are gone through


def global_view(image: np.ndarray, size: int) -> np.ndarray:
    """A context window ``[h, w, c]`` stretched per axis to ``[size, size, c]``."""
    return resize_image(image, size, size)


def global_view_by_rows(
    read: Callable[[int, int], np.ndarray], height: int, width: int, size: int, limit: int = 2**24
) -> np.ndarray:
    """:func:`global_view` of an image that is read as ``read(first row, rows) -> [rows, width, c]``.

    No more than about ``limit`` pixels are held at once; whatever bands that makes, the view is the same.
    """
    scale = height / size
    reach = max(scale, 1.0) + 1  # rows that the filter takes beyond a band
    count = max(1, int((limit / width - 2 * reach) / scale))  # rows of the view at a time
    bands = []
    for first in range(0, size, count):
        stop = min(first + count, size)
        low, high = max(0, int(first * scale - reach)), min(height, int(np.ceil(stop * scale + reach)))
        rows = first * scale - low, min(stop * scale, height) - low
        bands.append(resize_image(read(low, high - low), stop - first, size, rows))
    return np.concatenate(bands)


def global_labels(labels: np.ndarray, size: int) -> np.ndarray:
    """Labels of the global view."""
    return resize_labels(labels, size, size)


def reflect_pad(image: np.ndarray, labels: np.ndarray | None, min_side: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Bring a window under ``min_side`` px to it: the image reflected at its bottom and right, the labels ignored there."""
    missing = tuple((0, max(0, min_side - side)) for side in image.shape[:2])
    if not any(after for _, after in missing):
        return image, labels
    image = np.pad(image, (*missing, (0, 0)), mode="symmetric")
    return image, None if labels is None else np.pad(labels, missing, constant_values=IGNORE)
