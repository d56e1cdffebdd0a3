"""The store: real bundles, real processes, real kills; what is current is always whole."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge_agent.bundle import open_bundle
from edge_agent.bundle.archive import MODEL
from edge_agent.bundle.manifest import CanaryImage
from edge_agent.errors import BundleError, SignatureError, StoreError
from edge_agent.store.model_store import MAX_STARTS, ModelStore

from ...conftest import NAMESPACE, wait_until
from ...support.bundles import ONE, repacked
from ...support.stores import assert_sound, version_of


@pytest.fixture(scope="session")
def versions(bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles 1 to 5, the same but for their version."""
    folder = tmp_path_factory.mktemp("versions")
    return {number: repacked(bundle_file, folder / f"ground-{number}.edgeloop", version=number) for number in "12345"}


@pytest.fixture(scope="session")
def filled(versions: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with 1 to 4 in it: 2 is current and good, 1 is previous and good, 3 and 4 are only stored."""
    state = tmp_path_factory.mktemp("filled") / "state"
    store = ModelStore(state)
    for number in "12":
        store.install(versions[number], signers=None, limits=ONE)
        store.good()
    for number in "34":
        store.install(versions[number], signers=None, limits=ONE, activate=False)
    return state


@pytest.fixture
def state(filled: Path, tmp_path: Path) -> Path:
    """A store of one's own like `filled`."""
    shutil.copytree(filled, tmp_path / "state", symlinks=True)
    return tmp_path / "state"


def contents(state: Path) -> dict[str, bytes]:
    """Every file and link, to see that nothing changed."""
    return {
        str(path.relative_to(state)): bytes(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(state.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_a_first_bundle_is_installed_proved_and_current(versions: dict[str, Path], tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "var" / "state")
    assert store.status().installed == ()
    assert store.current_link() is None
    seen: list[tuple[int, int]] = []
    new = store.install(versions["1"], signers=None, limits=ONE, progress=lambda done, of: seen.append((done, of)))
    images = len(open_bundle(versions["1"]).canary())
    assert seen[-1] == (images, images)
    assert (new.version, new.status, new.starts) == ("1", "probation", 0)
    assert new.canary_p50_ms is not None
    assert new == store.current()
    assert store.current_link() == Path(new.path).name
    assert store.previous() is None
    assert open_bundle(new.path).digest == open_bundle(versions["1"]).digest
    assert_sound(tmp_path / "var" / "state")


def test_a_new_one_takes_over_and_a_rollback_brings_the_old_one_back(state: Path, versions: dict[str, Path]) -> None:
    store = ModelStore(state)
    link = store.current_link()
    store.install(versions["5"], signers=None, limits=ONE)
    assert store.current_link() != link
    assert (version_of(store.current()), version_of(store.previous())) == ("5", "2")
    back = store.rollback(reason="labels\x1b[2J\nwrong")
    assert (back.version, back.status) == ("2", "good")
    assert store.current_link() == link
    left = store.previous()
    assert left is not None
    assert (left.version, left.status, left.reason) == ("5", "failed", "labels [2J wrong")
    before = contents(state)
    with pytest.raises(StoreError, match=r"previous model, ground 5 .*, failed itself: labels"):
        store.rollback(reason="again")
    with pytest.raises(StoreError, match=r"ground 5 .* failed on this device on .*--force"):
        store.install(versions["5"], signers=None, limits=ONE)
    with pytest.raises(StoreError, match=r"ground 5 .* failed on this device on .*--force"):
        store.activate("ground-5")
    assert contents(state) == before
    forced = store.install(versions["5"], signers=None, limits=ONE, force=True)
    assert (forced.version, forced.status) == ("5", "probation")
    assert store.status().failures == ()
    assert_sound(state)


def test_the_same_bundle_twice_is_there_once_and_a_good_one_stays_good(state: Path, versions: dict[str, Path]) -> None:
    store = ModelStore(state)
    again = store.install(versions["2"], signers=None, limits=ONE)
    assert again.status == "good"
    assert len(store.status().installed) == 4
    older = store.install(versions["1"], signers=None, limits=ONE, allow_downgrade=True)
    assert (older.version, older.status) == ("1", "good")
    assert version_of(store.previous()) == "2"
    assert_sound(state)


@pytest.mark.parametrize("activate", [True, False])
def test_an_older_bundle_is_refused_unless_allowed(state: Path, versions: dict[str, Path], *, activate: bool) -> None:
    """A signature never goes out of date: an old bundle of the owner's is still one of the owner's."""
    store = ModelStore(state)
    before = contents(state)
    for force in (False, True):
        with pytest.raises(StoreError, match=r"ground 1 .* is older than ground 2, .*--allow-downgrade"):
            store.install(versions["1"], signers=None, limits=ONE, activate=activate, force=force)
    assert contents(state) == before
    store.install(versions["1"], signers=None, limits=ONE, activate=activate, allow_downgrade=True)
    assert version_of(store.current()) == ("1" if activate else "2")
    assert_sound(state)


def test_another_model_in_between_makes_no_downgrade_possible(
    state: Path, bundle_file: Path, versions: dict[str, Path], tmp_path: Path
) -> None:
    store = ModelStore(state)
    store.install(versions["3"], signers=None, limits=ONE)
    for number in range(4):  # more than the store keeps, so that no bundle of the first name is left
        other = repacked(bundle_file, tmp_path / f"sky-{number}.edgeloop", name="sky", version=str(number))
        store.install(other, signers=None, limits=ONE)
        store.good()
    assert {one.name for one in store.status().installed} == {"sky"}
    with pytest.raises(StoreError, match=r"ground 1 .* is older than ground 3, which this device has accepted"):
        store.install(versions["1"], signers=None, limits=ONE)
    store.install(versions["1"], signers=None, limits=ONE, allow_downgrade=True)
    store.install(versions["2"], signers=None, limits=ONE)  # the one that was allowed counts from now on
    assert version_of(store.current()) == "2"


def test_a_version_that_was_rolled_back_is_not_one_that_was_accepted(state: Path, versions: dict[str, Path]) -> None:
    store = ModelStore(state)
    store.install(versions["5"], signers=None, limits=ONE)
    assert store.failed("it crashed").version == "2"
    store.install(versions["3"], signers=None, limits=ONE)
    with pytest.raises(StoreError, match=r"is older than ground 3"):
        store.install(versions["1"], signers=None, limits=ONE)


@pytest.mark.parametrize(
    ("which", "found"), [("ground-3", "3"), ("digest", "3"), ("ground", None), ("bird", None), ("", None), ("..", None)]
)
def test_what_is_activated_is_named_clearly_or_the_choice_is_listed(state: Path, which: str, found: str | None) -> None:
    store = ModelStore(state)
    digests = {one.version: one.digest for one in store.status().installed}
    which = digests["3"][:10] if which == "digest" else which
    if found is None:
        with pytest.raises(StoreError, match=r"installed: ground-4 \([0-9a-f]{12}\), ground-3"):
            store.activate(which)
        assert version_of(store.current()) == "2"
    else:
        assert (store.activate(which).version, version_of(store.previous())) == ("3", "2")
    assert_sound(state)


def test_old_ones_go_but_never_the_current_or_the_previous(state: Path, versions: dict[str, Path]) -> None:
    store = ModelStore(state)
    store.install(versions["5"], signers=None, limits=ONE, activate=False)
    assert [one.version for one in store.status().installed] == ["5", "4", "2", "1"]
    assert (version_of(store.current()), version_of(store.previous())) == ("2", "1")
    assert_sound(state)


def test_probation_ends_after_which_starts_are_not_counted(state: Path) -> None:
    store = ModelStore(state)
    store.activate("ground-3")
    assert store.starting().starts == 1
    store.good("another" * 8)
    assert store.status().on_probation
    current = store.current()
    assert current is not None
    store.good(current.digest)
    assert not store.status().on_probation
    for _ in range(5):
        assert store.starting().version == "3"
    assert_sound(state)


def test_stops_that_were_asked_for_are_no_crash_loop(state: Path) -> None:
    store = ModelStore(state)
    store.activate("ground-3")
    for _ in range(2 * MAX_STARTS):
        assert store.starting().version == "3"
        store.ended()


STARTS = (
    "import sys; from pathlib import Path; from edge_agent.store.model_store import ModelStore; "
    "print(ModelStore(Path(sys.argv[1])).starting().version, flush=True); sys.stdin.read()"
)


def test_a_crash_loop_leads_back_across_processes(state: Path) -> None:
    """An agent that is killed each time it has loaded the model."""
    ModelStore(state).activate("ground-3")
    ran = []
    for _ in range(MAX_STARTS + 1):
        with subprocess.Popen(
            [sys.executable, "-c", STARTS, str(state)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as agent:
            assert agent.stdout is not None
            ran.append(agent.stdout.readline().strip())
            agent.kill()
    assert ran == ["3", "3", "2", "2"]
    status = ModelStore(state).status()
    assert status.failures[0].reason == "started 3 times without becoming good"
    assert_sound(state)


def test_the_first_bundle_has_nothing_to_go_back_to_and_stays(versions: dict[str, Path], tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.install(versions["1"], signers=None, limits=ONE)
    for _ in range(MAX_STARTS + 2):
        assert store.starting().version == "1"
    assert store.failed("slow").version == "1"
    current = store.current()
    assert current is not None
    assert (current.status, current.reason) == ("probation", "slow")
    with pytest.raises(StoreError, match="no model to roll ground 1"):
        store.rollback(reason="x")
    store.install(versions["2"], signers=None, limits=ONE)
    assert store.failed("worse").version == "1"
    assert_sound(tmp_path)


def test_a_failure_of_a_model_that_was_replaced_meanwhile_leaves_its_successor(state: Path) -> None:
    store = ModelStore(state)
    late = store.activate("ground-3")
    store.activate("ground-4")
    assert store.failed("slow", late.digest).version == "4"
    assert [one.digest for one in store.status().failures] == [late.digest]
    # The previous one failed as well: what ran before both takes over.
    assert store.failed("slow").version == "2"
    assert_sound(state)


@pytest.mark.parametrize("how", ["changed", "cut", "gone", "linked"])
def test_a_bundle_damaged_on_the_disk_is_found_at_the_start(state: Path, tmp_path: Path, how: str) -> None:
    store = ModelStore(state)
    three = Path(store.activate("ground-3").path)
    if how == "changed":
        data = bytearray((three / MODEL).read_bytes())
        data[500] ^= 1
        (three / MODEL).write_bytes(data)
    elif how == "cut":
        os.truncate(three / MODEL, 100)
    elif how == "gone":
        shutil.rmtree(three)
    else:
        three.rename(tmp_path / "elsewhere")
        three.symlink_to(tmp_path / "elsewhere")
    assert store.starting().version == "2"
    assert store.starting().version == "2"
    assert store.status().failures[0].version == "3"
    with pytest.raises(StoreError, match="install"):
        store.activate("ground-3", force=True)
    assert version_of(store.current()) == "2"


def test_a_damaged_bundle_is_mended_by_installing_it_again(state: Path, versions: dict[str, Path]) -> None:
    store = ModelStore(state)
    current = store.current()
    assert current is not None
    os.truncate(Path(current.path) / MODEL, 100)
    store.install(versions["2"], signers=None, limits=ONE)
    assert_sound(state)
    assert version_of(store.current()) == "2"


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"v":1,"current":"../../etc"}', b"\xff" * 100, b"[" * 10**6])
def test_damaged_notes_are_made_again_from_the_links(state: Path, content: bytes) -> None:
    (state / "state.json").write_bytes(content)
    store = ModelStore(state)
    assert version_of(store.current()) == "2"
    assert store.starting().version == "2"
    assert (state / "state.damaged").read_bytes() == content
    (state / "state.damaged").unlink()
    assert (version_of(store.current()), version_of(store.previous())) == ("2", "1")
    assert store.rollback(reason="x").version == "1"
    assert_sound(state)


def test_notes_that_cannot_be_read_are_made_again_from_the_links(state: Path) -> None:
    """A bad sector of the disk cannot be made here; a folder in the place of the file cannot be read, either."""
    (state / "state.json").unlink()
    (state / "state.json").mkdir()
    store = ModelStore(state)
    assert version_of(store.current()) == "2"
    assert store.starting().version == "2"
    (state / "state.damaged").rmdir()
    assert_sound(state)


def test_notes_of_a_newer_edgeloop_are_left_alone(state: Path) -> None:
    (state / "state.json").write_text('{"v":2,"current":17}')
    before = contents(state)
    with pytest.raises(StoreError, match="newer edgeloop wrote it"):
        ModelStore(state).starting()
    assert contents(state) == before


# --- hostile ---


def test_hostile_bundles_of_every_kind_change_nothing(
    state: Path, bundle_file: Path, versions: dict[str, Path], tmp_path: Path
) -> None:
    before = contents(state)
    data = versions["5"].read_bytes()
    bundle = open_bundle(versions["5"])
    turned = [CanaryImage(one.file, one.label, (*one.scores[1:], one.scores[0])) for one in bundle.canary()]
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    (tmp_path / "changed").write_bytes(data[:70_000] + bytes([data[70_000] ^ 1]) + data[70_001:])
    (tmp_path / "text").write_text("no bundle")
    (tmp_path / "empty").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    repacked(versions["5"], tmp_path / "wrong", expected=turned)
    repacked(versions["5"], tmp_path / "bare", expected=[])
    repacked(versions["5"], tmp_path / "model", files={MODEL: b"TFL3" * 999})
    hostile = ["cut", "changed", "text", "empty", "pipe", "missing", "wrong", "bare", "model"]
    for name in hostile:
        with pytest.raises((StoreError, BundleError)) as caught:
            ModelStore(state).install(tmp_path / name, signers=None, limits=ONE)
        assert str(tmp_path / name) in str(caught.value), name
        assert "\n" not in str(caught.value)
        assert contents(state) == before, name
    assert_sound(state)


@pytest.mark.needs("ssh-keygen")
def test_only_what_an_allowed_signer_signed_is_installed(
    state: Path, versions: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("key", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", tmp_path / name], check=True)
    signers = tmp_path / "allowed_signers"
    signers.write_text(f"me@example.org {(tmp_path / 'key.pub').read_text()}")
    by_other = repacked(versions["5"], tmp_path / "other.edgeloop", key=tmp_path / "other")
    by_me = repacked(versions["5"], tmp_path / "me.edgeloop", key=tmp_path / "key")
    before, store = contents(state), ModelStore(state)
    for refused in (versions["5"], by_other):
        with pytest.raises(SignatureError):
            store.install(refused, signers=signers, limits=ONE)
        assert contents(state) == before
    assert store.install(by_me, signers=signers, limits=ONE).signer == "me@example.org"
    # What is installed already is no way around.
    with pytest.raises(SignatureError):
        store.install(by_other, signers=signers, limits=ONE)
    assert_sound(state)


def test_links_planted_in_the_store_lead_nowhere(state: Path, versions: dict[str, Path], tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    new = open_bundle(versions["5"])
    (state / "bundles" / f"ground-5-{new.digest[:12]}").symlink_to(outside)
    (state / "bundles" / ".new-link").symlink_to(outside)
    (state / ".current.part").symlink_to(outside)
    store = ModelStore(state)
    store.install(versions["5"], signers=None, limits=ONE)
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert_sound(state)
    (state / "store.lock").unlink()
    (state / "store.lock").symlink_to(outside / "lock")
    with pytest.raises(StoreError, match="cannot be written to"):
        store.rollback(reason="x")
    (state / "store.lock").unlink()
    (state / "bundles").rename(outside / "bundles")
    (state / "bundles").symlink_to(outside / "bundles")
    with pytest.raises(StoreError, match="found a link"):
        store.rollback(reason="x")


def test_a_directory_that_is_not_the_stores_is_left_alone(state: Path) -> None:
    (state / "bundles" / "notes").mkdir()
    (state / "bundles" / "README").write_text("mine")
    ModelStore(state).activate("ground-3")
    assert (state / "bundles" / "notes").is_dir()
    assert (state / "bundles" / "README").read_text() == "mine"


# --- disks that take nothing, and others at work ---

FULL = """
    import shutil, sys
    from pathlib import Path
    from edge_agent.errors import StoreError
    from edge_agent.store.canary import CanaryLimits
    from edge_agent.store.model_store import ModelStore
    one, two = map(Path, sys.argv[1:])
    state, ballast, size = Path("disk/state"), Path("disk/ballast"), two.stat().st_size
    store = ModelStore(state)
    def fill(left):
        ballast.unlink(missing_ok=True)
        ballast.write_bytes(bytes(shutil.disk_usage("disk").free - left))
    def tell(change):
        try:
            change()
            said = "done"
        except StoreError as error:
            said = "no room" if "No space left" in str(error) or "MB are free" in str(error) else str(error)
        ballast.unlink(missing_ok=True)
        for number in range(100):
            Path(f"disk/{number}").unlink(missing_ok=True)
        names = sorted(path.name for path in state.rglob("*") if "." in path.name[:1] or "-" in path.name)
        print(said, len(names), store.current().version, store.starting().version)
    def install(progress=lambda done, of: None):
        store.install(two, signers=None, limits=CanaryLimits(threads=1), progress=progress)
    def files(left):
        # No room for files, though there is for bytes.
        for number in range(100):
            Path(f"disk/{number}").touch()
    store.install(one, signers=None, limits=CanaryLimits(threads=1))
    store.good()
    fill(0); tell(install)
    fill(size // 2); tell(install)
    try:
        files(0)
    except OSError:
        for number in range(8):
            Path(f"disk/{number}").unlink()
    tell(install)
    tell(lambda: install(lambda done, of: fill(0) if done == of and not ballast.exists() else None))
    tell(install)
    store.good()
    fill(0); tell(lambda: store.rollback(reason="x"))
    fill(0); tell(lambda: store.failed("x"))
    fill(0); tell(lambda: store.activate("ground-1"))
    fill(0); print(store.starting().version)
"""


@pytest.mark.needs("namespace")
def test_a_full_disk_refuses_in_a_line_and_what_runs_runs_on(versions: dict[str, Path], tmp_path: Path) -> None:
    """Full before, while unpacking (no more files), and at the last step; each time nothing has changed."""
    (tmp_path / "disk").mkdir()
    size_kb = 3 * versions["1"].stat().st_size // 1024 + 2048
    (tmp_path / "full.py").write_text(textwrap.dedent(FULL))
    mount = f"mount -t tmpfs -o size={size_kb}k,nr_inodes=80 none disk"
    script = f"{mount} && exec {sys.executable} full.py {versions['1']} {versions['2']}"
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    refused, full = "no room 1 1 1", "no room 2 2 2"
    assert done.stdout.splitlines() == [*[refused] * 4, "done 2 2 2", *[full] * 3, "2"]


@pytest.mark.needs("namespace")
def test_a_read_only_disk_runs_what_is_there(state: Path, versions: dict[str, Path]) -> None:
    code = """
        import sys
        from pathlib import Path
        from edge_agent.errors import StoreError
        from edge_agent.store.model_store import ModelStore
        store = ModelStore(Path(sys.argv[1]))
        print(store.starting().version, store.status().current.version)
        for change in (lambda: store.install(Path(sys.argv[2]), signers=None), lambda: store.rollback(reason="x"),
                       store.good, lambda: store.failed("x"), lambda: store.incoming):
            try:
                change()
            except StoreError as error:
                print(error)
    """
    (state.parent / "ro.py").write_text(textwrap.dedent(code))
    (state / "store.lock").unlink()
    mount = f"mount --bind {state} {state} && mount -o remount,ro,bind {state}"
    script = f"{mount} && exec {sys.executable} ro.py {state} {versions['5']}"
    done = subprocess.run(
        [*NAMESPACE, "sh", "-c", script], cwd=state.parent, capture_output=True, text=True, timeout=60, check=False
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "2 2", done.stderr
    assert len(lines) == 6
    assert all("Read-only file system" in line for line in lines[1:]), lines


def test_two_installers_at_once_both_succeed(state: Path, versions: dict[str, Path], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edge_agent.store.model_store import ModelStore\n"
        "print(ModelStore(Path(sys.argv[1])).install(Path(sys.argv[2]), signers=None).version)"
    )
    for state_, pair in ((state, ("3", "5")), (tmp_path / "fresh", ("5", "5"))):
        running = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(state_), str(versions[number])], stdout=subprocess.PIPE, text=True
            )
            for number in pair
        ]
        assert [one.communicate(timeout=60)[0].strip() for one in running] == list(pair)
        assert_sound(state_)
        assert {"5"} <= {one.version for one in ModelStore(state_).status().installed}


def test_threads_that_change_it_all_at_once_mix_nothing(state: Path) -> None:
    """Each change reads what the one before wrote: no version is lost, and the links always lead somewhere."""
    stop, problems = threading.Event(), list[str]()

    def turn(which: str) -> None:
        for _ in range(10):
            ModelStore(state).activate(which)

    def look() -> None:
        store = ModelStore(state)
        while not stop.is_set():
            status = store.status()
            if status.current is None or len(status.installed) != 4 or store.current_link() is None:
                problems.append(str(status))

    threads = [threading.Thread(target=turn, args=(f"ground-{number}",)) for number in "1234"]
    looking = threading.Thread(target=look)
    for thread in (*threads, looking):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    looking.join()
    assert problems == []
    assert_sound(state)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_installs_belongs_to_the_agents_user(state: Path, versions: dict[str, Path]) -> None:
    for path in (state, *state.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    for folder in (state, *state.parents[:-1]):
        folder.chmod(folder.stat().st_mode | 0o055)
    new = ModelStore(state).install(versions["5"], signers=None, limits=ONE)
    owned = [Path(new.path), *Path(new.path).rglob("*"), state / "state.json", state / "store.lock"]
    assert {path.lstat().st_uid for path in owned} == {65534}


def test_a_download_that_was_left_goes_at_a_start_much_later(state: Path) -> None:
    incoming = ModelStore(state).incoming
    (incoming / ".x.part").write_bytes(b"x")
    (incoming / ".y.part").write_bytes(b"y")
    os.utime(incoming / ".x.part", (time.time() - 7200,) * 2)
    ModelStore(state).starting()
    assert [path.name for path in incoming.iterdir()] == [".y.part"]


# --- killed ---


def cleaned(state: Path) -> bool:
    """Whether no leftover is there after the next one that takes the lock."""
    ModelStore(state).good("0" * 64)
    return not [path for path in (state / "bundles").iterdir() if path.name.startswith(".")]


INSTALLER = """
    import sys
    from pathlib import Path
    from edge_agent.store.canary import CanaryLimits
    from edge_agent.store.model_store import ModelStore
    print("ready", flush=True)
    ModelStore(Path(sys.argv[1])).install(Path(sys.argv[2]), signers=None, limits=CanaryLimits(threads=1), force=True)
    print("done", flush=True)
"""


@pytest.mark.long
def test_installers_killed_at_any_point_leave_a_store_that_works(state: Path, versions: dict[str, Path]) -> None:
    draw, outcomes = random.Random(7), []
    for turn in range(21):
        number = "5" if turn % 2 else "3"
        before = ModelStore(state).current()
        installer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(INSTALLER), str(state), str(versions[number])],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert installer.stdout is not None
        installer.stdout.readline()
        if turn:
            time.sleep(draw.uniform(0, 0.5))
        if turn < 20:
            installer.kill()
        said = installer.stdout.read()
        installer.wait(60)
        installer.stdout.close()
        link = ModelStore(state).current_link()
        assert link is not None
        assert open_bundle(state / "bundles" / link).digest.startswith(link.rpartition("-")[2])
        started = ModelStore(state).starting()
        assert before is not None
        assert started.version in {number, before.version}
        if "done" in said:
            assert started.version == number
        outcomes.append(started.version == number)
        # A process that was just being started may hold the leftovers' lock for a moment yet.
        wait_until(lambda: cleaned(state), 10, "the leftovers to be gone")
        assert_sound(state)
        ModelStore(state).good()
    assert set(outcomes) == {True, False}, outcomes


# Runs in a process of its own: for each change, a fork that kills itself before its n-th call of the system, for
# every n until the change is through.
KILLED = """
    import os, shutil, signal, sys
    from pathlib import Path
    from edge_agent.bundle import open_bundle
    from edge_agent.store.model_store import ModelStore

    filled, work = Path(sys.argv[1]), Path(sys.argv[2])
    CALLS = {"open", "write", "close", "fsync", "fchmod", "rename", "replace", "unlink", "symlink",
             "mkdir", "rmdir"}
    def three(store): store.activate("ground-3")
    def on_probation(store): three(store); store.starting(); store.starting()
    CHANGES = {
        "activate": (None, three),
        "crash loop": (on_probation, lambda store: store.starting()),
        "prune": (None, lambda store: pruned(store)),
    }
    def pruned(store):
        import edge_agent.store.state as state
        state.KEPT = 1
        store.activate("ground-1")
    for name, (first, change) in CHANGES.items():
        number, through = 0, False
        shutil.rmtree(work / "base", ignore_errors=True)
        shutil.copytree(filled, work / "base", symlinks=True)
        if first is not None:
            first(ModelStore(work / "base"))
        seen = set()
        while not through:
            number += 1
            state = work / "state"
            shutil.rmtree(state, ignore_errors=True)
            shutil.copytree(work / "base", state, symlinks=True, copy_function=os.link)
            child = os.fork()
            if child == 0:
                left = number
                def count(frame, event, called):
                    global left
                    if event == "c_call" and called.__name__ in CALLS and not isinstance(called.__self__, str | bytes):
                        left -= 1
                        if left == 0:
                            os.kill(os.getpid(), signal.SIGKILL)
                sys.setprofile(count)
                change(ModelStore(state))
                os._exit(0)
            through = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            link = ModelStore(state).current_link()
            assert link is not None, (name, number)
            assert link.endswith(open_bundle(state / "bundles" / link).digest[:12]), (name, number)
            try:
                ModelStore(state).good("0" * 64)  # takes the lock, and so finishes what was begun
                status = ModelStore(state).status()
                assert Path(status.current.path) == (state / "current").resolve(), (name, number)
                assert Path(status.previous.path) == (state / "previous").resolve(), (name, number)
                assert open_bundle(status.current.path).digest == status.current.digest
                names = {path.name for path in (state / "bundles").iterdir()}
                assert names == {Path(one.path).name for one in status.installed}, (name, number, names)
                assert not [path for path in state.iterdir() if path.name.endswith(".part")], (name, number)
                assert all(one.canary for one in status.installed), (name, number)
                seen.add((status.current.version, status.current.status))
            except Exception as error:
                raise AssertionError((name, number)) from error
        print(name, number, sorted(seen))
"""


@pytest.mark.long
def test_killed_at_each_single_step_of_each_change_it_is_the_old_or_the_new(filled: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(filled), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(" [") for line in done.stdout.splitlines())
    assert {name.rpartition(" ")[0] for name in lines} == {"activate", "crash loop", "prune"}
    assert all(int(name.rpartition(" ")[2]) > 8 for name in lines), lines
    assert lines[next(name for name in lines if name.startswith("activate"))] == "('2', 'good'), ('3', 'probation')]"


# --- any order of changes ---


class StoreMachine(RuleBasedStateMachine):
    """Any order of what people, agents and rotting cards do to a store."""

    filled: Path
    folder: Path
    turn = 0

    @initialize()
    def begin(self) -> None:
        type(self).turn += 1
        self.state = self.folder / str(self.turn)
        shutil.copytree(self.filled, self.state, symlinks=True)
        self.store = ModelStore(self.state)
        self.damaged = False

    def teardown(self) -> None:
        shutil.rmtree(self.state, ignore_errors=True)

    @rule(number=st.sampled_from("1234"), force=st.booleans())
    def activate(self, number: str, *, force: bool) -> None:
        one = next((one for one in self.store.status().installed if one.version == number), None)
        try:
            now = self.store.activate(f"ground-{number}", force=force)
        except StoreError:
            assert one is None or one.status == "failed" or self.damaged
        else:
            assert one is not None
            assert one.status != "failed" or force
            assert now.version == number
            assert now.status == ("good" if one.status == "good" else "probation")

    @rule()
    def rollback(self) -> None:
        before = self.store.status()
        assert before.current is not None
        try:
            now = self.store.rollback(reason="by hand")
        except StoreError:
            assert before.previous is None or before.previous.status == "failed" or self.damaged
        else:
            after = self.store.status()
            assert now.digest == (before.previous or now).digest
            assert after.previous is not None
            assert (after.previous.digest, after.previous.status) == (before.current.digest, "failed")

    @rule()
    def start(self) -> None:
        before = self.store.current()
        assert before is not None
        now = self.store.starting()
        self.damaged = False
        open_bundle(now.path)
        if now.digest == before.digest and now.status == "probation":
            assert now.starts in (before.starts, before.starts + 1)

    @rule()
    def good(self) -> None:
        self.store.good()
        current = self.store.current()
        assert current is not None
        assert current.status == "good"

    @rule()
    def failed(self) -> None:
        before = self.store.current()
        now = self.store.failed("errors")
        assert before is not None
        assert now.digest == before.digest or now.status != "failed"

    @rule()
    def ended(self) -> None:
        self.store.ended()

    @precondition(lambda self: not self.damaged)
    @rule()
    def rots(self) -> None:
        status = self.store.status()
        whole = [one for one in status.installed if one.status not in {"installed", "failed"}]
        if status.current is not None and len(whole) > 1:
            os.truncate(Path(status.current.path) / MODEL, 7)
            self.damaged = True

    @invariant()
    def never_without_a_model(self) -> None:
        status = self.store.status()
        assert status.current is not None
        assert (self.state / "current").resolve() == Path(status.current.path)
        if not self.damaged:
            assert open_bundle(self.state / "current").digest == status.current.digest


@pytest.fixture
def machine(filled: Path, tmp_path: Path) -> type[StoreMachine]:
    StoreMachine.filled, StoreMachine.folder = filled, tmp_path
    return StoreMachine


@pytest.mark.slow
def test_any_order_of_changes_leaves_a_model_to_run(machine: type[StoreMachine]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=15,
            suppress_health_check=list(HealthCheck),
            database=None,
            derandomize=True,
        ),
    )
