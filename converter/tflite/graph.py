"""Reads and edits the operations and tensors of a TFLite model."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

Array = npt.NDArray[Any]

_KINDS = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
_ACTIVATIONS = {value: name for name, value in vars(schema.ActivationFunctionType).items() if isinstance(value, int)}
_OPTIONS = {"ADD": "AddOptions", "MUL": "MulOptions"}
LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""Operations with weights (input 1) and a bias (input 2)."""


@dataclass(frozen=True)
class Operation:
    """One operation of the model.

    Attributes:
        kind: name of the operation in TFLite, such as CONV_2D.
        activation: name of the fused activation, such as NONE, RELU or RELU6.
        inputs: names of the tensors that the operation reads, including constants; "" for a missing optional input.
        output: name of the tensor that the operation computes. In image classifiers, only one output is relevant.
        raw: operator object of the TFLite schema.
    """

    kind: str
    activation: str
    inputs: tuple[str, ...]
    output: str
    raw: Any


class Graph:
    """The first subgraph of a ``.tflite`` file. Tensors are identified by their names, which are unique in the file.

    Args:
        content: content of the file. It is not modified; the method `content` returns the modified model.
    """

    def __init__(self, content: bytes) -> None:
        self._model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
        self._subgraph = self._model.subgraphs[0]
        self._names = [tensor.name.decode() for tensor in self._subgraph.tensors]
        self._places = {name: place for place, name in enumerate(self._names)}
        self.operations = [self._operation(raw) for raw in self._subgraph.operators]

    @property
    def inputs(self) -> list[str]:
        """Names of the model's inputs."""
        return [self._names[place] for place in self._subgraph.inputs]

    @property
    def outputs(self) -> list[str]:
        """Names of the model's outputs."""
        return [self._names[place] for place in self._subgraph.outputs]

    @property
    def activations(self) -> list[str]:
        """Names of the float32 tensors that depend on the model's input: inputs first, then outputs of operations."""
        made = [*self.inputs, *(operation.output for operation in self.operations)]
        return [name for name in made if self._tensor(name).type == schema.TensorType.FLOAT32]

    def makers(self) -> dict[str, Operation]:
        """Return the operation that computes each tensor, by the name of the tensor."""
        return {operation.output: operation for operation in self.operations}

    def readers(self) -> dict[str, list[Operation]]:
        """Return the operations that read each tensor, by the name of the tensor."""
        readers: dict[str, list[Operation]] = {}
        for operation in self.operations:
            for name in operation.inputs:
                readers.setdefault(name, []).append(operation)
        return readers

    def place(self, name: str) -> int:
        """Return the index of a tensor in the interpreter."""
        return self._places[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(int(side) for side in self._tensor(name).shape)

    def is_constant(self, name: str) -> bool:
        """Return True if the file contains the tensor's values."""
        return bool(name) and self._data(name) is not None

    def bias(self, operation: Operation) -> npt.NDArray[np.float32] | None:
        """Return the bias of a layer, (channels,) float32, or None if it has no bias."""
        name = operation.inputs[2] if len(operation.inputs) > 2 else ""
        return self.constant(name).reshape(-1) if name else None

    def constant(self, name: str) -> npt.NDArray[np.float32]:
        """Return the real values of a constant as float32. Values that are stored as integers are dequantized."""
        tensor, data = self._tensor(name), self._data(name)
        if data is None:
            raise ValueError(f"{name} is not a constant")
        dtype = {
            schema.TensorType.FLOAT32: np.float32,
            schema.TensorType.FLOAT16: np.float16,
            schema.TensorType.INT8: np.int8,
            schema.TensorType.UINT8: np.uint8,
            schema.TensorType.INT16: np.int16,
            schema.TensorType.INT32: np.int32,
        }[tensor.type]
        values = np.frombuffer(bytes(data), dtype).reshape(tensor.shape).astype(np.float32)
        quantization = tensor.quantization
        if quantization is None or quantization.scale is None or not len(quantization.scale):
            return values
        along = [1] * values.ndim
        if len(quantization.scale) > 1:
            along[quantization.quantizedDimension] = -1
        scale = np.asarray(quantization.scale, np.float32).reshape(along)
        return (values - np.asarray(quantization.zeroPoint, np.float32).reshape(along)) * scale

    def set_constant(self, output: str, place: int, values: Array) -> None:
        """Set the weights or the bias of the layer that computes the tensor ``output``.

        The weights are set if ``place`` is 1, the bias if it is 2. A missing bias is added.

        TFLite merges equal constants, such as the zero biases of all layers. If other operations share the constant,
        this layer gets its own copy.
        """
        operation = self.makers()[output]
        name = operation.inputs[place] if place < len(operation.inputs) else ""
        if name and sum(other.inputs.count(name) for other in self.operations) == 1:
            self._tensor(name).buffer = self._buffer(values)
            return
        raw = operation.raw
        own = self.add_constant(f"{output}/{place}", values)
        raw.inputs = [*raw.inputs[:place], self._places[own], *raw.inputs[place + 1 :]]
        self.operations[self.operations.index(operation)] = self._operation(raw)

    def add_tensor(self, name: str, *, like: str) -> str:
        """Add a tensor with the shape and type of the tensor ``like`` and return its name."""
        tensor = copy(self._tensor(like))
        tensor.name, tensor.buffer = name.encode(), 0
        return self._append(tensor)

    def add_constant(self, name: str, values: Array | float) -> str:
        """Add a float32 constant and return its name."""
        tensor = schema.TensorT()
        tensor.name, tensor.type = name.encode(), schema.TensorType.FLOAT32
        tensor.shape = list(np.shape(values))
        tensor.buffer = self._buffer(np.asarray(values))
        return self._append(tensor)

    def replace(self, operation: Operation, by: Iterable[tuple[str, tuple[str, str], str, str]]) -> None:
        """Replace an operation by a series of element-wise operations.

        Each of them is given as a tuple: ADD or MUL, names of the two inputs, name of the output, fused activation.
        """
        made = []
        for kind, inputs, output, activation in by:
            raw = schema.OperatorT()
            raw.opcodeIndex = self._code(kind)
            raw.inputs = [self._places[name] for name in inputs]
            raw.outputs = [self._places[output]]
            raw.builtinOptionsType = getattr(schema.BuiltinOptions, _OPTIONS[kind])
            raw.builtinOptions = getattr(schema, f"{_OPTIONS[kind]}T")()
            raw.builtinOptions.fusedActivationFunction = getattr(schema.ActivationFunctionType, activation)
            made.append(self._operation(raw))
        place = self.operations.index(operation)
        self.operations[place : place + 1] = made
        self._subgraph.operators = [one.raw for one in self.operations]

    def set_metadata(self, name: str, data: bytes) -> None:
        """Store a metadata entry under a name."""
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(data, np.uint8)
        self._model.buffers.append(buffer)
        entry.name, entry.buffer = name.encode(), len(self._model.buffers) - 1
        self._model.metadata = [*(self._model.metadata or []), entry]

    def content(self) -> bytes:
        """Return the modified model as the content of a ``.tflite`` file."""
        self._drop_unused_buffers()
        return bytes(flatbuffer_utils.convert_object_to_bytearray(self._model))

    def _operation(self, raw: Any) -> Operation:
        code = self._model.operatorCodes[raw.opcodeIndex]
        kind = _KINDS[max(code.builtinCode, code.deprecatedBuiltinCode)]
        if kind == "CUSTOM":
            kind = code.customCode.decode()
        activation = _ACTIVATIONS[getattr(raw.builtinOptions, "fusedActivationFunction", 0)]
        inputs = tuple("" if place < 0 else self._names[place] for place in raw.inputs)
        return Operation(kind, activation, inputs, self._names[raw.outputs[0]], raw)

    def _code(self, kind: str) -> int:
        number = getattr(schema.BuiltinOperator, kind)
        for place, code in enumerate(self._model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number:
                return place
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = number
        self._model.operatorCodes.append(code)
        return len(self._model.operatorCodes) - 1

    def _append(self, tensor: Any) -> str:
        name = str(tensor.name.decode())
        self._subgraph.tensors.append(tensor)
        self._names.append(name)
        self._places[name] = len(self._names) - 1
        return name

    def _buffer(self, values: Array) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.astype("<f4").tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        return len(self._model.buffers) - 1

    def _drop_unused_buffers(self) -> None:
        """Remove buffers with the values of replaced constants. Buffer 0, the empty buffer of the schema, stays."""
        users = [*self._subgraph.tensors, *(self._model.metadata or [])]
        used = sorted({0, *(user.buffer for user in users)})
        places = {old: new for new, old in enumerate(used)}
        for user in users:
            user.buffer = places[user.buffer]
        self._model.buffers = [self._model.buffers[old] for old in used]

    def _tensor(self, name: str) -> Any:
        return self._subgraph.tensors[self._places[name]]

    def _data(self, name: str) -> Any:
        return self._model.buffers[self._tensor(name).buffer].data
