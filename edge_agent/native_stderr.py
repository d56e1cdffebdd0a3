"""Silence for native libraries that write to standard error past every Python setting."""

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
    """Within the block, what C and C++ code writes to standard error is kept back.

    Python's own `sys.stderr` still reaches the terminal (progress bars go on). When the block
    raises, what was kept back is printed after all: it may hold the cause. Not so with
    ``even_on_errors``, for libraries that repeat it all in their exceptions. The whole process is
    affected, so use it around start-up and conversion, not in a running agent.
    """
    sys.stderr.flush()
    python_stderr = sys.stderr
    with tempfile.TemporaryFile() as kept:
        terminal = os.dup(2)
        os.dup2(kept.fileno(), 2)
        sys.stderr = io.TextIOWrapper(
            os.fdopen(os.dup(terminal), "wb", 0), write_through=True, errors="backslashreplace"
        )
        try:
            yield
        except Exception:
            if not even_on_errors:
                kept.seek(0)
                with os.fdopen(os.dup(terminal), "wb") as out:
                    shutil.copyfileobj(kept, out)
            raise
        finally:
            sys.stderr.close()
            sys.stderr = python_stderr
            os.dup2(terminal, 2)
            os.close(terminal)
