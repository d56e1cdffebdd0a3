"""External delegates as their vendors ship them, reduced to the two functions the runtime looks for."""

from __future__ import annotations

import subprocess
from pathlib import Path

# It takes no operation of the graph. The struct is TfLiteDelegate of tensorflow/lite/core/c/common.h.
_SOURCE = r"""
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
struct delegate { void *data; int (*prepare)(void *, struct delegate *); void *copy[3]; int64_t flags; void *builder; };
static int prepare(void *context, struct delegate *self) { ACT; return 0; }
struct delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count, void (*report)(const char *)) {
    struct delegate *made = calloc(1, sizeof *made);
    made->prepare = prepare;
    return made;
}
void tflite_plugin_destroy_delegate(struct delegate *made) { free(made); }
"""


def compiled_delegate(folder: Path, act: str = "") -> Path:
    """The library of a delegate that does this, in C, when the model is loaded on it."""
    library, source = folder / "libdelegate.so", folder / "delegate.c"
    source.write_text(_SOURCE.replace("ACT", act))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library
