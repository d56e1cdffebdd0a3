"""Reads the tensors of a PyTorch file in the legacy format, without PyTorch and without running code in the file.

The file begins with five pickles: the magic number, the protocol, properties of the machine, descriptions of the
tensors, and the keys of the storages. The storages follow. A storage consists of the number of its elements (int64) and
their raw values (little-endian). See `torch.serialization._legacy_save`.

A pickle can run code when it is loaded. Therefore this module reads only files with a known SHA-256, and its unpickler
accepts only the names of four classes and functions.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.errors import DataError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


def read_torch_weights(path: Path, sha256: str) -> dict[str, npt.NDArray[Any]]:
    """Return all tensors of the file as a dict by name. They are float32 or int64, with axes in the order of PyTorch.

    Raises:
        DataError: the SHA-256 of the file is not ``sha256``, or the file is not a PyTorch file of tensors in the
            legacy format.
    """
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise DataError(f"{path}: sha256 {found[:12]}… is not the pinned {sha256[:12]}…; reinstall the weights package")
    file = io.BytesIO(data)
    try:
        if _load(file) != _MAGIC or _load(file) != _PROTOCOL:
            raise DataError(f"{path}: not a PyTorch file in the legacy format")
        _load(file)  # byte order and sizes on the machine that wrote it; values are always little-endian
        tensors: dict[str, _Tensor] = _load(file)
        storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
        values = {key: _read_storage(file, storages[key].dtype) for key in _load(file)}
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: not a PyTorch file of tensors: {error}") from error
    return {name: tensor.array(values[tensor.storage.key]) for name, tensor in tensors.items()}


@dataclass(frozen=True)
class _Storage:
    dtype: np.dtype[Any]
    key: str


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        size = values.itemsize
        view = np.ndarray(
            self.shape, values.dtype, values.data, self.offset * size, tuple(s * size for s in self.stride)
        )
        return view.copy()


class _Unpickler(pickle.Unpickler):
    """Unpickler that builds `_Tensor` descriptions, and rejects all names except the four that such a file needs."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, stride, *_: _Tensor(storage, offset, shape, stride)
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, *_ = pid
        return _Storage(dtype, key)


def _load(file: io.BytesIO) -> Any:
    return _Unpickler(file).load()


def _read_storage(file: io.BytesIO, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    count = int.from_bytes(file.read(8), "little")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
