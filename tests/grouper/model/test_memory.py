import subprocess
import sys
from pathlib import Path

from grouper.model.memory import _left_in_groups, free_memory

MB = 10**6


def group(folder: Path, limit: str, used: int, files: int, names=("memory.max", "memory.current")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\nactive_file 1\n")


def test_a_containers_limit_counts_and_that_of_what_it_is_in(tmp_path):
    """The new way: one tree; files that are cached can be read again."""
    own = tmp_path / "cgroup"
    own.write_text("0::/pod/container\n")
    group(tmp_path / "root" / "pod" / "container", str(500 * MB), 300 * MB, 49)
    group(tmp_path / "root" / "pod", str(400 * MB), 350 * MB, 9)
    group(tmp_path / "root", "max", 0, 0)
    assert list(_left_in_groups(tmp_path / "root", own)) == [200 * MB + 50, 50 * MB + 10]


def test_the_old_way_of_saying_it(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("5:cpu:/x\n4:memory:/job\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group(tmp_path / "root" / "memory" / "job", str(700 * MB), 100 * MB, 0, names)
    assert list(_left_in_groups(tmp_path / "root", own)) == [600 * MB + 1]


def test_without_groups_the_machine_decides(tmp_path):
    assert list(_left_in_groups(tmp_path, tmp_path / "nothing")) == [] and free_memory() > 0


def test_a_limit_that_a_shell_set_counts():
    program = "from grouper.model.memory import free_memory; print(free_memory())"
    limited = f"ulimit -d 400000; exec {sys.executable} -c '{program}'"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 400_000 * 1024
