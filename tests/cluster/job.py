"""A job of several ranks over hosts, and what became of it."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import cli
from hosts import wait_until

# How mpirun is started on a cluster (docs/running.md says why).
LAUNCH_ENV = {
    **cli.MPI_ENV,
    "OMPI_MCA_oob_tcp_keepalive_time": "3",
    "OMPI_MCA_oob_tcp_keepalive_intvl": "1",
    "OMPI_MCA_oob_tcp_keepalive_probes": "3",
    "OMPI_MCA_btl_tcp_if_include": "eth0",
}


class Job:
    """`mpirun -n RANKS retro WORDS` over the hosts in the order given; ends with the test."""

    def __init__(self, hosts, *words, on=("h0", "h1", "h2"), ranks=None, stdin=subprocess.DEVNULL):
        self.hosts = hosts
        self.ranks = ranks or len(on)
        self.folder = Path(tempfile.mkdtemp(prefix="job-", dir=hosts.folder))
        self.log_dir = self.folder / "log"
        self.output, self.errors = self.folder / "out", self.folder / "err"
        env = hosts.environment({**LAUNCH_ENV, "OMPI_MCA_plm_rsh_agent": str(hosts.remote_shell())})
        self.process = subprocess.Popen(
            [*cli.DIES_WITH_US, *hosts.head(), "mpirun", "--host", ",".join(on), "-n", str(self.ranks), str(cli.RETRO), *map(str, words),
             "--log-dir", str(self.log_dir)],
            stdin=stdin, stdout=open(self.output, "wb"), stderr=open(self.errors, "wb"), env=env,
        )
        self.pids, self.ended = {}, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in self.hosts.processes():
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def said(self):
        return self.errors.read_text(errors="replace")

    def runs(self):
        """Waits until tokens come and every rank has told so (a beat is 0.25 s, comm/heartbeat.c); knows their processes then."""
        assert wait_until(lambda: self.output.stat().st_size > 40 or self.process.poll() is not None, 180), self.said
        assert self.process.poll() is None, self.said
        time.sleep(1.5)
        self.pids = {r: next(iter(self.hosts.processes("retro", r))) for r in range(self.ranks)}
        return self

    def ends(self, within, leftovers=True):
        """Seconds until the last rank and until mpirun was gone, from now."""
        begun = time.monotonic()

        def all_gone():
            for rank, pid in self.pids.items():
                if rank not in self.ended and not alive(pid):
                    self.ended[rank] = time.monotonic() - begun
            return len(self.ended) == len(self.pids)

        assert wait_until(all_gone, within), f"ranks {set(self.pids) - set(self.ended)} live on\n{self.said}"
        ranks_s = time.monotonic() - begun
        assert wait_until(lambda: self.process.poll() is not None, 60), f"mpirun lives on\n{self.said}"
        self.code = self.process.returncode
        if leftovers:
            assert wait_until(lambda: not self.hosts.processes(), 60), self.hosts.processes()
        return ranks_s, time.monotonic() - begun

    def failure(self):
        """The file's object; the same line stands on the terminal, and no other line of ours after it."""
        cause = json.loads((self.log_dir / "failure.json").read_text())
        lines = [x for x in self.said.splitlines() if re.match(r"retro(\[.*?\])?: ", x)]
        assert cause["error"] in lines[-1] and "first cause" in lines[-1], (cause, lines)
        return cause


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
