"""The two views of a context: one way to shrink it, for training and prediction alike."""

import numpy as np

from glcanet_jax.data.scenes import IGNORE


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """An antialiased resize of ``[h, w, c]``: a triangle filter as wide as the reduction asks, so that no pixel is lost.

    The values keep their type; integers are rounded.
    """
    from PIL import Image

    if image.shape[:2] == (height, width):
        return image
    if image.dtype == np.uint8 and image.shape[2] in (1, 3):
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else np.ascontiguousarray(image))
        out = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
        return out.reshape(height, width, image.shape[2])
    bands = [
        np.asarray(Image.fromarray(band.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
        for band in np.moveaxis(image, -1, 0)
    ]
    out = np.stack(bands, axis=-1)
    if np.issubdtype(image.dtype, np.integer):
        limits = np.iinfo(image.dtype)
        out = np.clip(np.rint(out), limits.min, limits.max)
    return out.astype(image.dtype)


def resize_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nearest labels ``[h, w]`` at the centres of the new pixels."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for new, old in zip((height, width), labels.shape, strict=True)
    )
    return labels[rows[:, None], columns[None]]


def global_view(image: np.ndarray, size: int) -> np.ndarray:
    """A context window ``[h, w, c]`` stretched per axis to ``[size, size, c]``."""
    return resize_image(image, size, size)


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
