"""A memory cgroup of the test's own, version 1 or 2, for what happens when memory runs out."""

import subprocess
import sys
import uuid
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
# Takes as many MiB as told and keeps them; the kernel shall prefer anybody else.
HOG = """
import sys, time
open("/proc/self/oom_score_adj", "w").write("-900")
kept = bytearray(int(sys.argv[1]) << 20)
kept[::4096] = b"x" * len(kept[::4096])
time.sleep(600)
"""


class Group:
    """with Group() as g: g.limit(bytes), g.add(pid), g.fill(mib)."""

    def __init__(self):
        v1 = (ROOT / "memory" / "memory.limit_in_bytes").exists()
        self.path = (ROOT / "memory" if v1 else ROOT) / f"retro-test-{uuid.uuid4().hex[:12]}"
        self.limit_file = self.path / ("memory.limit_in_bytes" if v1 else "memory.max")
        self.hog = None

    def __enter__(self):
        self.path.mkdir()
        if not self.limit_file.exists():
            self.path.rmdir()
            raise OSError(f"no memory controller in {self.path.parent}")
        return self

    def __exit__(self, *_):
        if self.hog:
            self.hog.kill()
            self.hog.wait()
        for pid in (self.path / "cgroup.procs").read_text().split():
            (self.path.parent / "cgroup.procs").write_text(pid)
        self.path.rmdir()

    def limit(self, n):
        self.limit_file.write_text(str(n))

    def add(self, pid):
        (self.path / "cgroup.procs").write_text(str(pid))

    def fill(self, mib):
        """Somebody else in the group takes memory."""
        words = ["sh", "-c", f"echo $$ > {self.path}/cgroup.procs && exec {sys.executable} -c '{HOG}' {mib}"]
        self.hog = subprocess.Popen(words)


def why_impossible():
    """None, or why there can be no such group here."""
    try:
        with Group() as g:
            g.limit(64 << 20)
    except OSError as why:
        return f"no memory cgroup can be made here: {why}"
    return None
