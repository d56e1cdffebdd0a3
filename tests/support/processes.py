"""Processes that tests start, and end under all circumstances."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

_INTERRUPTIBLE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def interruptible(command: Sequence[str]) -> list[str]:
    """The command, started so that SIGINT reaches it.

    A shell starts background processes with SIGINT ignored, which their children inherit. The process keeps its id.

    Args:
        command: a program and its arguments.
    """
    return [sys.executable, "-I", "-S", "-c", _INTERRUPTIBLE, *command]


class AgentProcess:
    """`edgeloop run` in a process of its own."""

    def __init__(self, folder: Path, settings: dict[str, Any], *options: str) -> None:
        (folder / "agent.yaml").write_text(yaml.safe_dump(settings))
        self.log = folder / "agent.log"
        command = [sys.executable, "-m", "edge_agent.cli", "run", "--config", str(folder / "agent.yaml"), *options]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(interruptible(command), stdout=log, stderr=subprocess.STDOUT)

    def end(self, how: signal.Signals | None = None, timeout_s: float = 120) -> int:
        if how is not None:
            self.process.send_signal(how)
        return self.process.wait(timeout_s)
