"""PyTorch's checkpoints as numpy arrays, read without PyTorch and without running anything that is pickled in them."""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glcanet_jax.errors import UserError

WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys that whole checkpoints have them under
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before 1.6
_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "BFloat16Storage": "bfloat16",
}
_BROKEN = (
    zipfile.BadZipFile, OSError, pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError, AttributeError,
    IndexError, struct.error,
)  # fmt: skip


@dataclass
class _Storage:
    """Numbers in a row; in files of the old format they come after everything that points to them."""

    dtype: np.dtype
    count: int
    data: np.ndarray | None = None


@dataclass
class _Tensor:
    """A view of a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self) -> np.ndarray:
        data = self.storage.data
        last = self.offset + sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        empty = not math.prod(self.size)
        if data is None or self.offset < 0 or any(s < 0 for s in self.stride) or (not empty and last >= len(data)):
            raise ValueError("a tensor reaches past its storage")
        if empty:
            return np.zeros(self.size, self.storage.dtype)
        strides = tuple(s * data.itemsize for s in self.stride)
        return np.lib.stride_tricks.as_strided(data[self.offset :], self.size, strides, writeable=False).copy()


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


class _Inert:
    """Stands where a pickle names anything but tensors: it takes whatever it is given, and does nothing."""

    name = ""

    def __new__(cls, *_: Any, **__: Any) -> "_Inert":
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def add(self, item: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> "_Inert":
        return self

    def __hash__(self) -> int:
        return id(self)


class _Unpickler(pickle.Unpickler):
    """Knows tensors and nothing else: whatever else a pickle names is neither looked up nor run, and stands as :class:`_Inert`."""

    def __init__(self, file: Any, path: Path):
        super().__init__(file)
        self._path = path
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: _Tensor(storage, offset, size, stride)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in _STORAGES:
            return name
        return type("Inert", (_Inert,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, count, *view = pid
        if kind != "storage" or storage not in _STORAGES or any(v is not None for v in view):
            raise UserError(
                f"{self._path} holds a storage of an unknown kind ({storage}); save its state_dict as safetensors"
            )
        return self.storages.setdefault(key, _Storage(_dtype(_STORAGES[storage]), count))


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a checkpoint by name, through ``state_dict`` or ``model`` wrappers; both of PyTorch's formats.

    Raises:
        UserError: not such a file, or something else stands where its tensors should be; nothing in it is run.
    """
    try:
        content = _read_zip(path) if zipfile.is_zipfile(path) else _read_old(path)
        for wrapper in WRAPPERS:
            if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
                content = content[wrapper]
        _check_plain(content, path)
        if not isinstance(content, dict):
            raise UserError(f"{path} holds a {type(content).__name__}, not a state_dict; save the model's state_dict")
        return {k: v.array() for k, v in content.items() if isinstance(v, _Tensor)}
    except _BROKEN as error:
        raise UserError(
            f"{path} is no readable PyTorch checkpoint ({error}); fetch it again, or save its state_dict as safetensors"
        ) from error


def _check_plain(content: Any, path: Path) -> None:
    """Raises UserError if something that would have to be run stands where tensors are wanted; beside them it is left alone."""
    values = content.values() if isinstance(content, dict) else (content,)
    inert = next((value for value in values if _is_inert(value)), None)
    if inert is not None:
        raise UserError(
            f"{path} wants to run {inert.name}; only plain tensors are read: save its state_dict alone, or as safetensors"
        )


def _is_inert(value: Any) -> bool:
    return isinstance(value, _Inert) or (isinstance(value, type) and issubclass(value, _Inert))


def _read_zip(path: Path) -> Any:
    """The format since PyTorch 1.6: a zip of a pickle and of storages."""
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.endswith("data.pkl")]
        if not names:
            raise UserError(f"{path} is a zip without data.pkl; give a PyTorch checkpoint, or save it as safetensors")
        prefix = names[0].rpartition("/")[0]
        unpickler = _Unpickler(io.BytesIO(archive.read(names[0])), path)
        content = unpickler.load()
        for key, storage in unpickler.storages.items():
            storage.data = np.frombuffer(archive.read(f"{prefix}/data/{key}"), storage.dtype, storage.count)
    return content


def _read_old(path: Path) -> Any:
    """The format before: a magic number, a protocol, sizes of types, the pickle, the storages' names, then their numbers."""
    with path.open("rb") as file:
        magic, protocol, system = (_Unpickler(file, path).load() for _ in range(3))
        for part in (magic, protocol, system):
            _check_plain(part, path)
        if magic != MAGIC or protocol != PROTOCOL or not system["little_endian"]:
            raise ValueError("not PyTorch's format, nor the one before 1.6")
        unpickler = _Unpickler(file, path)
        content = unpickler.load()
        keys = _Unpickler(file, path).load()
        _check_plain(keys, path)
        for key in keys:
            storage = unpickler.storages[key]
            (count,) = struct.unpack("<q", file.read(8))
            data = file.read(count * storage.dtype.itemsize)
            storage.data = np.frombuffer(data, storage.dtype, storage.count)
    return content
