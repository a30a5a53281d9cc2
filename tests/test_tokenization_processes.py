"""Real processes: killed at any moment, two under `accelerate launch`, and a Ray cluster that loses a worker."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fsqcodec.tokenization import Settings, tokenize
from recordings import write_broken, write_codec, write_recordings, write_unusual
from test_tokenization import files_of

NUM_CLIPS, SHARD_SIZE = 400, 2


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A codec, recordings, and the shards of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("workplace")
    write_codec(folder / "codec")
    write_recordings(folder / "recordings", NUM_CLIPS, longest=20000)
    (folder / "recordings" / "0000-broken.flac").write_text("no audio")
    (folder / "recordings" / "manifest.jsonl").unlink()
    here = Path.cwd()
    os.chdir(folder)
    try:
        tokenize(Settings("recordings", "codec", shard_size=SHARD_SIZE), "undisturbed")
    finally:
        os.chdir(here)
    return folder


def start(
    folder: Path, output: str, *options: str, shard_size: int = SHARD_SIZE, launcher: tuple = (), **environment
) -> subprocess.Popen:
    command = [sys.executable, *launcher, "-m", "fsqcodec", "tokenize", "recordings", "-m", "codec", "-o", output]
    command += ["--shard-size", str(shard_size), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, **pipes)


def finish(process: subprocess.Popen) -> str:
    printed, _ = process.communicate(timeout=500)
    assert process.returncode == 0, printed
    return printed


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "data").glob("*.parquet"))


def wait_for(condition):
    deadline = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)


def assert_same(folder: Path, output: str):
    """The same files, and nothing beside them that a killed process left."""
    assert files_of(folder / output) == files_of(folder / "undisturbed")


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_files(workplace):
    num_kills = 0
    for wanted in (1, 6, 17):
        process = start(workplace, "killed")
        wait_for(lambda wanted=wanted: len(shards(workplace / "killed")) >= wanted)
        time.sleep(0.003 * num_kills)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        num_kills += process.returncode == -signal.SIGKILL
        assert not (workplace / "killed" / "errors.parquet").exists()
    assert num_kills == 3
    finish(start(workplace, "killed"))
    assert_same(workplace, "killed")


@pytest.mark.slow
def test_a_thousand_files_killed_in_the_middle(tmp_path):
    write_codec(tmp_path / "codec")
    recordings = tmp_path / "recordings"
    lengths = {f"good/{name}": len(clip) for name, clip in write_recordings(recordings / "good", 980).items()}
    lengths |= {f"unusual/{name}": length for name, length in write_unusual(recordings / "unusual").items()}
    reasons = {f"broken/{name}": reason for name, reason in write_broken(recordings / "broken").items()}
    assert len(lengths) == 988 and len(reasons) == 12
    process = start(tmp_path, "out", shard_size=50)
    wait_for(lambda: len(shards(tmp_path / "out")) >= 8)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 8 <= len(shards(tmp_path / "out")) < 20
    printed = finish(start(tmp_path, "out", shard_size=50))
    assert "988 clips" in printed and "12 clips failed" in printed
    rows = [row for path in shards(tmp_path / "out") for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 988
    assert {row["path"]: row["num_samples"] for row in rows} == {
        f"recordings/{name}": length for name, length in lengths.items()
    }
    assert all(len(row["audio_codes"]) == row["num_frames"] == -(-row["num_samples"] // 8) for row in rows)
    errors = pq.read_table(tmp_path / "out" / "errors.parquet").to_pylist()
    assert sorted(error["name"] for error in errors) == sorted(f"recordings/{name}" for name in reasons)
    assert all(reasons[error["name"].removeprefix("recordings/")] in error["reason"] for error in errors)


@pytest.mark.slow
def test_two_processes_under_accelerate(workplace):
    options = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", *options)
    printed = finish(start(workplace, "two", launcher=launcher, ACCELERATE_USE_CPU="true"))
    assert printed.count("h of audio") >= 2
    assert_same(workplace, "two")


@pytest.fixture(autouse=True)
def equal_priority(monkeypatch):
    """Ray's workers would wait for whatever else the machine does."""
    monkeypatch.setenv("RAY_worker_niceness", "0")


@pytest.fixture
def cluster():
    """Two Ray nodes of one CPU each on this machine."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fsqcodec[ray]'")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 2**27}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    nodes.add_node(**node)
    nodes.wait_for_nodes()
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def workers() -> set[int]:
    """Process ids of Ray's actors that tokenize."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::MapWorker" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_worker(workplace, cluster):
    if not Path("/proc").is_dir():
        pytest.skip("workers are found in /proc, which this system has not")
    process = start(workplace, "ray", "--engine", "ray", "--address", cluster.address)
    wait_for(lambda: len(shards(workplace / "ray")) >= 2 or process.poll() is not None)
    assert process.poll() is None, process.communicate()[0]
    os.kill(min(workers()), signal.SIGKILL)
    assert len(shards(workplace / "ray")) < NUM_CLIPS // SHARD_SIZE  # it was lost while there was something to do
    assert f"{NUM_CLIPS} clips" in finish(process)
    assert_same(workplace, "ray")


@pytest.mark.slow
def test_ray_passes_on_what_is_wrong(workplace):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'fsqcodec[ray]'")
    process = start(workplace, "fast", "--engine", "ray", "--fail-fast")
    printed, _ = process.communicate(timeout=500)
    assert process.returncode == 1
    assert "error: recordings/0000-broken.flac is not an audio file" in printed
    assert "Traceback" not in printed
