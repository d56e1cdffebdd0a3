"""Converts the int8 network of a .tflite file for ONNX Runtime: `onnx_network.py MODEL.tflite MODEL.onnx`.

Weights, scales and zero points stay the same; each operation is placed between DequantizeLinear and QuantizeLinear,
which ONNX Runtime fuses into its integer kernels. Activations are shifted by 128 from int8 to uint8, the form that its
x86-64 kernels run fastest (its documentation, "Quantize ONNX models"). tf2onnx 1.17 cannot convert such a network with
uint8 pixels and float32 scores. Only operations of the networks used here are supported.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper

OPERATIONS = {number: name for name, number in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
DTYPES = {
    schema.TensorType.UINT8: np.uint8,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.INT64: np.int64,
    schema.TensorType.FLOAT32: np.float32,
}


class Network:
    """An ONNX graph under construction, with the name of each TFLite tensor's float value in `floats`."""

    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, model.subgraphs[0]
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.floats: dict[int, str] = {}

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        output = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        """Add a constant array and return its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def data(self, index: int) -> Any:
        """Return the array of a constant tensor."""
        tensor = self.graph.tensors[index]
        raw = bytes(self.model.buffers[tensor.buffer].data)
        return np.frombuffer(raw, DTYPES[tensor.type]).reshape(tensor.shape)

    def is_constant(self, index: int) -> bool:
        """Return True if the model contains the tensor's values."""
        return self.model.buffers[self.graph.tensors[index].buffer].data is not None

    def weights(self, index: int, order: tuple[int, ...] | None = None) -> str:
        """Add a constant as floats and return its name; `order` transposes it so that its scales belong to axis 0."""
        value, quantization = self.data(index), self.graph.tensors[index].quantization
        value = value if order is None else value.transpose(order)
        if quantization is None or quantization.scale is None:
            return self.constant(value)
        scale = np.array(quantization.scale, np.float32)
        zero = np.zeros(len(scale), value.dtype)
        if len(scale) == 1:
            return self.add("DequantizeLinear", [*map(self.constant, (value, scale[0], zero[0]))])
        return self.add("DequantizeLinear", [*map(self.constant, (value, scale, zero))], axis=0)

    def value(self, index: int) -> str:
        """Return the name of a tensor's float value, channels first as in ONNX."""
        if index not in self.floats and self.is_constant(index):
            axes = len(self.graph.tensors[index].shape)
            name = self.weights(index, (0, 3, 1, 2) if axes == 4 else None)
            # One value per channel.
            self.floats[index] = (
                self.add("Reshape", [name, self.constant(np.array([-1, 1, 1], np.int64))]) if axes == 1 else name
            )
        return self.floats[index]

    def set_result(self, index: int, name: str) -> None:
        """Record the result of an operation, quantized with the tensor's parameters."""
        tensor = self.graph.tensors[index]
        if tensor.type == schema.TensorType.FLOAT32:
            self.floats[index] = name
            return
        shift = 128 if tensor.type == schema.TensorType.INT8 else 0
        by = [
            self.constant(np.float32(tensor.quantization.scale[0])),
            self.constant(np.uint8(tensor.quantization.zeroPoint[0] + shift)),
        ]
        self.floats[index] = self.add("DequantizeLinear", [self.add("QuantizeLinear", [name, *by]), *by])


LIMITS = {
    schema.ActivationFunctionType.NONE: (-np.inf, np.inf),
    schema.ActivationFunctionType.RELU: (0, np.inf),
    schema.ActivationFunctionType.RELU6: (0, 6),
}


def activated(network: Network, name: str, operator: Any) -> str:
    """Apply the fused activation of an operation, unless its 8-bit range already has the same limits."""
    low, high = LIMITS[operator.builtinOptions.fusedActivationFunction]
    tensor = network.graph.tensors[int(operator.outputs[0])]
    least, most, step = -np.inf, np.inf, 0.0
    if tensor.type == schema.TensorType.INT8:
        step, zero = tensor.quantization.scale[0], tensor.quantization.zeroPoint[0]
        least, most = (-128 - zero) * step, (127 - zero) * step
    if least < low - step / 2 or most > high + step / 2:
        return network.add("Clip", [name, network.constant(np.float32(low)), network.constant(np.float32(high))])
    return name


def convolved(network: Network, operator: Any, *, depthwise: bool) -> str:
    image, kernel, *bias = (int(index) for index in operator.inputs)
    options = operator.builtinOptions
    order = (3, 0, 1, 2) if depthwise else (0, 3, 1, 2)
    inputs = [network.value(image), network.weights(kernel, order), *(network.weights(index) for index in bias)]
    channels = network.graph.tensors[image].shape[3]
    name = network.add(
        "Conv",
        inputs,
        strides=[options.strideH, options.strideW],
        auto_pad="SAME_UPPER" if options.padding == schema.Padding.SAME else "VALID",
        group=channels if depthwise else 1,
    )
    return activated(network, name, operator)


def translated(network: Network, operator: Any) -> str:  # noqa: PLR0911 - one return per kind
    """Convert one operation and return the name of its float result."""
    name = OPERATIONS[network.model.operatorCodes[operator.opcodeIndex].builtinCode]
    inputs, options = [int(index) for index in operator.inputs], operator.builtinOptions
    if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        return convolved(network, operator, depthwise=name == "DEPTHWISE_CONV_2D")
    if name in ("ADD", "MUL"):
        made = network.add(name.capitalize(), [network.value(index) for index in inputs])
        return activated(network, made, operator)
    if name in ("QUANTIZE", "DEQUANTIZE"):
        return network.value(inputs[0])
    if name == "MEAN":
        made = network.add("GlobalAveragePool", [network.value(inputs[0])])
        return made if options.keepDims else network.add("Flatten", [made])
    if name == "PAD":
        (top, bottom), (left, right) = network.data(inputs[1])[1:3]
        pads = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
        return network.add("Pad", [network.value(inputs[0]), network.constant(pads)])
    if name == "RESHAPE":
        return network.add("Flatten", [network.value(inputs[0])])
    if name == "FULLY_CONNECTED":
        values = [network.value(inputs[0]), network.weights(inputs[1]), *map(network.weights, inputs[2:])]
        return activated(network, network.add("Gemm", values, transB=1), operator)
    if name == "SOFTMAX":
        return network.add("Softmax", [network.value(inputs[0])], axis=-1)
    raise SystemExit(f"the operation {name} is not supported")


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    model = schema.ModelT.InitFromPackedBuf(source.read_bytes(), 0)
    network = Network(model)
    (pixels,), (scores,) = network.graph.inputs, network.graph.outputs
    tensor = network.graph.tensors[pixels]
    scale = network.constant(np.float32(tensor.quantization.scale[0]))
    zero = network.constant(np.uint8(tensor.quantization.zeroPoint[0]))
    first = network.add("Transpose", ["pixels"], perm=[0, 3, 1, 2])
    network.floats[pixels] = network.add("DequantizeLinear", [first, scale, zero])
    for operator in network.graph.operators:
        network.set_result(int(operator.outputs[0]), translated(network, operator))
    last = network.floats[scores]
    shape = [int(size) for size in network.graph.tensors[scores].shape]
    graph = helper.make_graph(
        network.nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [int(size) for size in tensor.shape])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        network.constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 9
    onnx.checker.check_model(made)
    onnx.save(made, str(target))


if __name__ == "__main__":
    main()
