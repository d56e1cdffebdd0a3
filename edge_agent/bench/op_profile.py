"""Operation profile: time of each operation, measured by cutting the model after each operation.

LiteRT's profiler is not available from Python. A model that ends after its first n operations takes as long as these
n operations. So the time of an operation is the time that the model takes longer if it ends after this operation
instead of before it. XNNPACK fuses and reorders operations, so the result shows where the time is spent, not the cost
of an operation alone. By construction, the times of the operations add up to the time of the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import ModelError
from .report import Operation

RUNS = 30


def cut_after_each(model: bytes) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """Yield for each operation its kind, its output shape and the model that ends after this operation.

    Raises:
        ModelError: the model cannot be read on this machine.
    """
    try:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise ModelError(f"an operation profile needs LiteRT's schema: {error}") from error
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    parsed = schema.ModelT.InitFromPackedBuf(bytearray(model), 0)
    if len(parsed.subgraphs) != 1:
        raise ModelError(
            f"the model has {len(parsed.subgraphs)} graphs; an operation profile needs a model with a single graph"
        )
    # The signature would not match the outputs of a cut model.
    parsed.signatureDefs = None
    graph = parsed.subgraphs[0]
    operations = list(graph.operators)
    for number, operation in enumerate(operations, 1):
        code = parsed.operatorCodes[operation.opcodeIndex]
        kind = names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM")
        tensor = int(operation.outputs[0])
        graph.operators = operations[:number]
        graph.outputs = np.array([tensor], np.int32)
        builder = flatbuffers.Builder(len(model) + 65536)
        builder.Finish(parsed.Pack(builder), b"TFL3")
        yield kind, tuple(int(side) for side in graph.tensors[tensor].shape), bytes(builder.Output())


def shares(kinds: Sequence[tuple[str, tuple[int, ...]]], until_ms: Sequence[float]) -> tuple[Operation, ...]:
    """Return each operation with the time that it adds; a negative value, caused by noise, counts as zero.

    Args:
        kinds: kind and output shape of each operation.
        until_ms: for each operation, the time of the model that ends after it, in milliseconds.
    """
    until = np.maximum.accumulate(np.asarray(until_ms, np.float64))
    added = np.diff(until, prepend=0.0)
    whole = float(until[-1]) if len(until) else 0.0
    return tuple(
        Operation(kind, shape, round(float(ms), 4), round(float(ms) / whole, 4) if whole else 0.0)
        for (kind, shape), ms in zip(kinds, added, strict=True)
    )
