"""Where the time goes: the model cut after each of its operations, and timed.

LiteRT keeps its profiler from Python. A model that ends after its first n operations takes as long as those n do, so
an operation's time is what it adds. XNNPACK fuses and reorders within what it is given, so this is where the time goes,
not what an operation costs alone; the parts add up to the whole by construction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import ModelError
from .report import Operation

RUNS = 30


def cut_after_each(model: bytes) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    """Kind and output shape of each operation, and the model that ends with it.

    Raises:
        ModelError: the model's format cannot be read here.
    """
    try:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise ModelError(
            f"operations are told apart with LiteRT's own schema: {error}; 32-bit systems have none"
        ) from error
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    parsed = schema.ModelT.InitFromPackedBuf(bytearray(model), 0)
    if len(parsed.subgraphs) != 1:
        raise ModelError(f"the model has {len(parsed.subgraphs)} graphs; one with a single graph can be cut")
    # A cut model has other outputs than its signature says.
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
    """Each operation with what it adds to the time until its end; one that noise makes negative adds nothing.

    Args:
        kinds: kind and output shape of each.
        until_ms: time of the model that ends with it, milliseconds.
    """
    until = np.maximum.accumulate(np.asarray(until_ms, np.float64))
    added = np.diff(until, prepend=0.0)
    whole = float(until[-1]) if len(until) else 0.0
    return tuple(
        Operation(kind, shape, round(float(ms), 4), round(float(ms) / whole, 4) if whole else 0.0)
        for (kind, shape), ms in zip(kinds, added, strict=True)
    )
