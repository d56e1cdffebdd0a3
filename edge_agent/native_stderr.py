"""Hide the output of native libraries that write to standard error directly, bypassing Python's `sys.stderr`."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def native_noise_hidden(*, even_on_errors: bool = False) -> Iterator[None]:
    """Hide what C and C++ code writes to standard error within the block.

    Python's own `sys.stderr` still reaches the terminal, so progress bars keep working. If the block
    raises, the hidden output is printed, because it may contain the cause. ``even_on_errors`` keeps it hidden; this is
    for libraries whose exceptions contain the same text. The redirection affects the whole process, so use it for
    start-up and conversion, not in a running agent.
    """
    sys.stderr.flush()
    python_stderr = sys.stderr
    with tempfile.TemporaryFile() as hidden:
        terminal = os.dup(2)
        os.dup2(hidden.fileno(), 2)
        sys.stderr = io.TextIOWrapper(
            os.fdopen(os.dup(terminal), "wb", 0), write_through=True, errors="backslashreplace"
        )
        try:
            yield
        except Exception:
            if not even_on_errors:
                hidden.seek(0)
                with os.fdopen(os.dup(terminal), "wb") as out:
                    shutil.copyfileobj(hidden, out)
            raise
        finally:
            sys.stderr.close()
            sys.stderr = python_stderr
            os.dup2(terminal, 2)
            os.close(terminal)
