"""A bundle's model gives the same labels on every runtime that may load it: the oldest LiteRT, and its predecessor."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

import edge_agent
from edge_agent.bundle import open_bundle
from edge_agent.images import read_image
from edge_agent.preprocessing import preprocess

OLDEST = ("ai-edge-litert==2.0.2", "numpy==2.2.6")
PREDECESSOR = ("tflite-runtime==2.14.0", "numpy==1.26.4")

SCORE = """
import json, sys
import numpy as np
try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter
model = Interpreter(sys.argv[1], num_threads=1)
model.allocate_tensors()
(given,), (found,) = model.get_input_details(), model.get_output_details()
scores = []
for image in np.load(sys.argv[2]):
    model.set_tensor(given["index"], image[None])
    model.invoke()
    scores.append(model.get_tensor(found["index"])[0].tolist())
print(json.dumps(scores))
"""


@pytest.mark.long
@pytest.mark.needs("index")
@pytest.mark.parametrize("packages", [OLDEST, PREDECESSOR], ids=lambda packages: packages[0])
def test_other_runtimes_give_the_same_labels(
    packages: tuple[str, ...], efficientnet_bundle: Path, photo_folder: Path, tmp_path: Path
) -> None:
    if sys.version_info[:2] != (3, 11) and packages is PREDECESSOR:
        pytest.skip("tflite-runtime exists for Python 3.11 at most")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    bundle = open_bundle(efficientnet_bundle)
    images = [read_image(path) for path in sorted(photo_folder.rglob("*.jpg"))[:40]]
    np.save(tmp_path / "images.npy", [preprocess(image, bundle.manifest.preprocess) for image in images])
    (tmp_path / "model.tflite").write_bytes(bundle.read("model.tflite"))
    done = subprocess.run(
        [python, "-c", SCORE, tmp_path / "model.tflite", tmp_path / "images.npy"],
        capture_output=True,
        check=True,
    )
    theirs = np.array(json.loads(done.stdout))
    with edge_agent.open(efficientnet_bundle) as classifier:
        ours = np.array([classifier.classify(image).scores for image in images])
    assert len(set(theirs.argmax(axis=1))) > 1, "the same label for every image"
    assert (theirs.argmax(axis=1) == ours.argmax(axis=1)).mean() >= 0.95
    assert np.abs(theirs - ours).max() < 0.15
