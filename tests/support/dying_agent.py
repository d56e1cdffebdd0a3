"""An agent that never survives the start of a model on probation: python -m tests.support.dying_agent STATE COMMAND ...

It is killed as soon as the store has counted a start, however long that start takes.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from edge_agent.store.model_store import ModelStore


def main(state: Path, command: list[str]) -> int:
    """Run the command; kill it when the number of starts grows, or when this process is to end."""
    store = ModelStore(state)
    before = _starts(store)
    with subprocess.Popen(command) as agent:

        def end(_signal: int, _frame: FrameType | None) -> None:
            agent.kill()

        signal.signal(signal.SIGTERM, end)
        while agent.poll() is None:
            if _starts(store) > before:
                agent.kill()
            time.sleep(0.05)
    return 1


def _starts(store: ModelStore) -> int:
    return sum(one.starts for one in store.status().installed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
