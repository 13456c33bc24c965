"""Ranks on two hosts: two network namespaces with one cable between them, as two machines of `torchrun --nnodes 2`."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import grouper

ROOT = Path(grouper.__file__).parent.parent
PORT = 29_431
JOB = """
import sys
from grouper import Calibration, RefineOptions, TextSource
from grouper.machine import Machine
from search import SearchOptions, Selection, export_from_run, search
model, text, folder = sys.argv[1:]
search(model, folder + "/run", SearchOptions(text=text, tokens=512), jobs=1, machine=Machine("cpu"))
calibration = Calibration(TextSource(text), tokens=512)
half, few = Selection(kv_ratio="1/2"), RefineOptions(tokens=1024)
export_from_run(folder + "/run", folder + "/out", half, calibration, few, machine=Machine("cpu"))
"""


def ip(*words: object) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Names of two namespaces. The first has the address 10.231.7.1, the second 10.231.7.2."""
    if not sys.platform.startswith("linux") or os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs Linux, root and iproute2")
    names = [f"grouper{os.getpid()}{side}" for side in "ab"]
    ends = [f"g{os.getpid() % 100_000}{side}" for side in "ab"]
    made = []
    try:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
            made.append(name)
        ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        for number, (name, end) in enumerate(zip(names, ends), 1):
            ip("-n", name, "addr", "add", f"10.231.7.{number}/24", "dev", end)
            for link in (end, "lo"):
                ip("-n", name, "link", "set", link, "up")
        yield names
    finally:
        for name in made:
            ip("netns", "del", name)


def started(host: str, rank: int, words: tuple) -> subprocess.Popen:
    """One rank of a command, as torchrun starts it on a host of its own."""
    torchrun = {
        "RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "10.231.7.1",
        "MASTER_PORT": PORT,
    }  # fmt: skip
    link = subprocess.run(["ip", "-n", host, "-o", "link", "show", "up"], capture_output=True, text=True, check=True)
    cable = next(line.split()[1].partition("@")[0] for line in link.stdout.splitlines() if ": g" in line)
    more = {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": 1, "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": cable}
    given = {name: str(value) for name, value in {**torchrun, **more}.items()}
    return subprocess.Popen(
        ["ip", "netns", "exec", host, sys.executable, "-c", JOB, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **given},
    )  # fmt: skip


def on_both(hosts: list[str], *words: object) -> None:
    ranks = [started(host, rank, words) for rank, host in enumerate(hosts)]
    said = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said


def on_one(job: Path, *words: object) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    here = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launcher, job, *map(str, words)], capture_output=True, text=True, timeout=300, env=here)
    assert done.returncode == 0, done.stderr


def test_two_hosts_write_what_two_processes_of_one_write(hosts, reader, text, tmp_path):
    """A search with text and a refined export, in folders that both hosts see."""
    one, two, job = tmp_path / "one", tmp_path / "two", tmp_path / "job.py"
    for folder in (one, two):
        folder.mkdir()
    job.write_text(JOB)
    on_one(job, reader, text, one)
    on_both(hosts, reader, text, two)
    kinds = (".csv", ".safetensors", ".svg")
    compared = [path.relative_to(one) for path in one.rglob("*") if path.suffix in kinds]
    assert {"pareto.csv", "model.safetensors"} <= {path.name for path in compared}
    for path in compared:
        assert (one / path).read_bytes() == (two / path).read_bytes(), path
