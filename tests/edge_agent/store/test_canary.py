"""Models that crash, hang, eat or lie, each tried in a real process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

import edge_agent
from edge_agent.bundle import Bundle, open_bundle
from edge_agent.bundle.archive import EXPECTED, MODEL
from edge_agent.bundle.manifest import CanaryImage
from edge_agent.errors import StoreError
from edge_agent.inference.evaluation import Evaluation
from edge_agent.store.canary import CanaryLimits, run_canary
from edge_agent.store.canary_worker import problems_of

from ...conftest import IMAGE_SIZE
from ...support.bundles import ONE, repacked
from ...support.delegates import compiled_delegate

# As its vendor ships it, but with a mind of its own; see DELEGATE in test_classifier.py.


@pytest.fixture
def bundle(bundle_file: Path) -> Bundle:
    return open_bundle(bundle_file)


def delegate(folder: Path, act: str) -> CanaryLimits:
    """A delegate that does this when the model is loaded on it."""
    return CanaryLimits(threads=1, delegate=str(compiled_delegate(folder, act)))


def refused(bundle: Path, limits: CanaryLimits = ONE) -> str:
    with pytest.raises(StoreError) as caught:
        run_canary(bundle, limits)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{bundle}: ")
    return message


def processes_of(bundle: Path) -> list[str]:
    """Processes that still try it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found += [entry.name] if str(bundle).encode() in (entry / "cmdline").read_bytes() else []
            except OSError:
                continue
    return [one for one in found if int(one) != os.getpid()]


def test_a_sound_model_proves_itself(bundle_file: Path, bundle: Bundle) -> None:
    done: list[int] = []
    proof = run_canary(bundle_file, ONE, progress=done.append)
    assert proof.passed, proof
    assert proof.digest == bundle.digest
    assert proof.images == len(bundle.canary()) == done[-1]
    assert proof.agreement == 1
    assert proof.accuracy == proof.expected_accuracy
    assert proof.score_difference < 1e-5
    assert 0 < proof.p50_ms < 10_000
    assert 20 < proof.memory_mb < 500
    assert (proof.threads, proof.delegate) == (1, None)


@pytest.mark.needs("cc")
@pytest.mark.parametrize(
    ("act", "said"),
    [
        ("*(volatile int *)0 = 1", "was killed by SIGSEGV"),
        ("abort()", "was killed by SIGABRT"),
        ("_exit(0)", "exited with 0 without a report"),
        ('for (int fd = 3; fd < 64; fd++) write(fd, "\\xff{]garbage", 10); _exit(0)', "exited with 0 without a report"),
        (
            "for (;;) for (int fd = 3; fd < 64; fd++) write(fd, calloc(1, 65536), 65536)",
            "wrote more than 65536 bytes of output",
        ),
        ("for (;;) memset(malloc(1 << 22), 1, 1 << 22)", "used more than 300 MB of memory"),
        ("signal(SIGTERM, SIG_IGN); signal(SIGALRM, SIG_IGN); fork(); for (;;) pause()", "did not finish within 3 s"),
    ],
    ids=["crashes", "aborts", "leaves", "babbles", "floods", "eats", "hangs"],
)
def test_what_takes_its_process_down_is_refused_in_a_line_and_leaves_none_behind(
    bundle_file: Path, tmp_path: Path, act: str, said: str
) -> None:
    own = repacked(bundle_file, tmp_path / "own.edgeloop")
    limits = delegate(tmp_path, act)
    limits = CanaryLimits(threads=1, delegate=limits.delegate, timeout_s=3 if "finish" in said else 200, memory_mb=300)
    start = time.monotonic()
    assert said in refused(own, limits)
    assert time.monotonic() - start < 150
    assert processes_of(own) == []


@pytest.mark.needs("cc")
def test_a_child_whose_parent_was_killed_ends_by_itself(bundle_file: Path, tmp_path: Path) -> None:
    own = repacked(bundle_file, tmp_path / "own.edgeloop")
    limits = delegate(tmp_path, "for (;;) pause()")
    code = (
        "import sys; from pathlib import Path; from edge_agent.store.canary import CanaryLimits, run_canary\n"
        "run_canary(Path(sys.argv[1]), CanaryLimits(threads=1, delegate=sys.argv[2], timeout_s=2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(own), str(limits.delegate)])
    deadline = time.monotonic() + 120
    while len(processes_of(own)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.kill()
    parent.wait(60)
    while processes_of(own) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(own) == []


@pytest.mark.needs("cc")
def test_the_child_knows_no_secret_and_no_module_of_the_working_directory(
    bundle_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = delegate(tmp_path, 'if (getenv("EDGELOOP_MQTT_PASSWORD")) abort()')
    monkeypatch.setenv("EDGELOOP_MQTT_PASSWORD", "secret")
    monkeypatch.chdir(tmp_path)
    Path("json.py").write_text("raise SystemExit('not me')")
    proof = run_canary(bundle_file, limits)
    assert proof.passed
    assert proof.delegate == limits.delegate


def test_a_delegate_that_does_not_load_is_passed_over_as_the_agent_does(bundle_file: Path, tmp_path: Path) -> None:
    proof = run_canary(bundle_file, CanaryLimits(threads=1, delegate=str(tmp_path / "none.so")))
    assert proof.passed
    assert proof.delegate is None


def test_a_model_that_sees_something_else_here_is_refused_with_every_reason(
    bundle_file: Path, bundle: Bundle, tmp_path: Path
) -> None:
    turned = [CanaryImage(one.file, one.label, (*one.scores[1:], one.scores[0])) for one in bundle.canary()]
    wrong = [
        CanaryImage(one.file, bundle.labels[int(np.argmax(one.scores))], one.scores) for one in turned
    ]  # right where it was made, wrong here
    own = repacked(bundle_file, tmp_path / "own.edgeloop", expected=wrong)
    proof = run_canary(own, ONE)
    assert not proof.passed
    assert len(proof.reasons) == 3, proof.reasons
    assert "clear images get another class" in proof.reasons[0]


def test_a_bundle_without_canary_images_is_refused(bundle_file: Path, tmp_path: Path) -> None:
    own = repacked(bundle_file, tmp_path / "own.edgeloop", expected=[])
    assert "no canary images" in refused(own)


def test_a_file_that_is_no_model_and_a_image_that_is_none_are_refused(bundle_file: Path, tmp_path: Path) -> None:
    own = repacked(bundle_file, tmp_path / "own.edgeloop", files={MODEL: b"TFL3" * 100})
    assert "runtime cannot load the model" in refused(own)
    own = repacked(bundle_file, tmp_path / "own.edgeloop", files={"canary/000.jpg": b"no image"})
    assert "not a complete JPEG" in refused(own)


def test_a_damaged_model_takes_at_most_its_own_process_down(bundle_file: Path, bundle: Bundle, tmp_path: Path) -> None:
    """Bytes of a model overwritten at random: proved, or refused in a line; this process goes on."""
    random, model = np.random.default_rng(3), bundle.read(MODEL)
    for _ in range(4):
        data = np.frombuffer(model, np.uint8).copy()
        data[random.integers(8, len(data), 200)] = random.integers(0, 256, 200)
        own = repacked(bundle_file, tmp_path / "own.edgeloop", files={MODEL: data.tobytes()})
        with suppress(StoreError):
            run_canary(own, ONE)


def scored(rows: list[list[float]], truth: list[int]) -> Evaluation:
    return Evaluation(("a", "b", "c"), np.array(truth), np.array(rows, np.float32))


def test_other_processors_are_no_reason_to_refuse() -> None:
    """As measured between x86-64 and aarch64: scores up to 0.08 apart, close calls the other way round."""
    random = np.random.default_rng(0)
    there = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]] * 8 + [[0.48, 0.47, 0.05]] * 4
    truth = [0, 1, 2] * 8 + [0] * 4
    here = (np.array(there) + random.uniform(-0.08, 0.08, (28, 3))).clip(0, 1)
    here[-4:] = [0.44, 0.51, 0.05]
    assert problems_of(scored(here.tolist(), truth), scored(there, truth)) == []


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ([[0.8, 0.1, 0.1]] * 24, "of 24 clear images"),  # always the same answer
        ([[0.55, 0.25, 0.2], [0.25, 0.55, 0.2], [0.2, 0.25, 0.55]] * 8, "differ by 0.25 on average"),  # flattened
    ],
)
def test_a_model_that_lost_its_mind_is_refused(here: list[list[float]], said: str) -> None:
    there = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]] * 8
    assert said in "; ".join(problems_of(scored(here, [0, 1, 2] * 8), scored(there, [0, 1, 2] * 8)))


PROVES = """
import sys
from pathlib import Path
from edge_agent.store.canary import CanaryLimits, run_canary
print(run_canary(Path(sys.argv[1]), CanaryLimits(threads=1, delegate=sys.argv[2])).passed)
"""
SYSTEM_PYTHON = Path("/usr/bin/python3")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.needs("cc")
def test_root_does_not_interpret_a_model_as_root_for_another_user(bundle_file: Path, tmp_path: Path) -> None:
    own = repacked(bundle_file, tmp_path / "own.edgeloop")
    os.chown(own, 65534, 65534)
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        folder.chmod(folder.stat().st_mode | 0o055)
    limits = delegate(tmp_path, "if (geteuid() == 0 || setuid(0) == 0) abort()")
    python = sys.executable
    if not reachable(Path(os.__file__)):  # tests that run from root's home: Debian's Python with these packages
        version = subprocess.run([SYSTEM_PYTHON, "-V"], capture_output=True, text=True, check=False).stdout.split()[-1:]
        if [one.rpartition(".")[0] for one in version] != [f"{sys.version_info.major}.{sys.version_info.minor}"]:
            pytest.skip("no Python of this version that another user may run")
        python = str(SYSTEM_PYTHON)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    done = subprocess.run(
        [
            python,
            "-c",
            PROVES,
            str(own),
            str(limits.delegate),
        ],
        env={**os.environ, "PYTHONPATH": ":".join([str(Path(edge_agent.__file__).parents[1]), *packages])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "True\n", done.stderr


def reachable(path: Path) -> bool:
    """Whether everybody may read it."""
    return all(folder.stat().st_mode & 0o005 for folder in (path, *path.parents))


def test_a_image_is_read_from_the_bundle_that_was_verified(bundle_file: Path, tmp_path: Path) -> None:
    """A bundle whose image shows another class than it says fails on this device, too."""
    black = cv2.imencode(".png", np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8))[1].tobytes()
    images = open_bundle(bundle_file).canary()
    own = repacked(bundle_file, tmp_path / "own.edgeloop", files={image.file: black for image in images})
    assert not run_canary(own, ONE).passed
    assert EXPECTED in open_bundle(own).manifest.files
