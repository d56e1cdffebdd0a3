"""Finds operations that XNNPACK, the runtime's fast path on CPUs, does not support, and replaces some of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from edge_agent.native_stderr import native_noise_hidden

from .graph import Graph


def with_fast_operations(model: bytes) -> bytes:
    """Return the float model with each hard-swish replaced by additions and multiplications.

    Hard-swish is x * relu6(x + 3) / 6, see Howard et al. 2019 (arXiv:1905.02244), equation 4. XNNPACK has no int8
    hard-swish, so each one would be computed outside the fast path. For this reason, int8 MobileNetV3 was slower than
    float.
    """
    graph = Graph(model)
    found = [operation for operation in graph.operations if operation.kind == "HARD_SWISH"]
    if not found:
        return model
    three, sixth = graph.add_constant("hard_swish/three", 3.0), graph.add_constant("hard_swish/sixth", 1 / 6)
    for operation in found:
        (given,) = operation.inputs
        opened, gate = (
            graph.add_tensor(f"{operation.output}/{part}", like=operation.output) for part in ("opened", "gate")
        )
        graph.replace(
            operation,
            [
                ("ADD", (given, three), opened, "RELU6"),
                ("MUL", (opened, sixth), gate, "NONE"),
                ("MUL", (given, gate), operation.output, "NONE"),
            ],
        )
    return graph.content()


def off_the_fast_path(model: bytes) -> Counter[str]:
    """Count the operations that the runtime computes outside XNNPACK on this machine, for each kind of operation.

    SOFTMAX, QUANTIZE and DEQUANTIZE are not counted, because they are small and every model ends with one of them.
    """
    from ai_edge_litert.interpreter import Interpreter

    with native_noise_hidden():
        interpreter = Interpreter(model_content=model)
        interpreter.allocate_tensors()
    operations: list[dict[str, Any]] = interpreter._get_ops_details()  # noqa: SLF001  there is no public API
    delegates = [operation for operation in operations if operation["op_name"] == "DELEGATE"]
    makers = {
        int(output): operation
        for operation in operations
        if operation["op_name"] != "DELEGATE"
        for output in operation["outputs"]
    }
    fast: set[int] = set()
    for delegate in delegates:
        # A delegate replaces all operations between its inputs and its outputs.
        edge, waiting = {int(name) for name in delegate["inputs"]}, [int(name) for name in delegate["outputs"]]
        while waiting:
            maker = makers.get(tensor) if (tensor := waiting.pop()) not in edge else None
            if maker is not None and maker["index"] not in fast:
                fast.add(maker["index"])
                waiting += [int(name) for name in maker["inputs"]]
    left = (
        operation["op_name"]
        for operation in operations
        if operation["op_name"] not in {"DELEGATE", "SOFTMAX", "QUANTIZE", "DEQUANTIZE"}
        and operation["index"] not in fast
    )
    return Counter(left)
