"""Three hosts on one machine, mpirun over TCP between them: the same tokens as one host, and for every way in which a
rank, a host or a link can be lost, all ranks end within the bound, the right one is named, nothing is left running.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cli
import memory
from hosts import wait_until
from job import Job, alive

BOUND = 10  # seconds until every rank has ended: what docs/operations.md promises


def words(model, *more):
    return ("generate", "--model", model, "--prompt", "a b c", "--max-tokens", 60000, "--ignore-eos", "--policy",
            "dense", "--threads", 1, *more)


def test_three_hosts_give_the_tokens_of_one(hosts, tiny):
    options = ("generate", "--model", tiny, "--prompt", "Once upon a time", "--max-tokens", 40, "--ignore-eos",
               "--kv-dtype", "f32", "--threads", 1)
    alone = cli.run_ok(*options).stdout
    with Job(hosts, *options) as job:
        assert job.process.wait(300) == 0, job.said
        assert job.output.read_bytes() == alone
        assert "3 ranks on 3 hosts by MPI" in job.said
        logs = [[json.loads(x) for x in (job.log_dir / f"rank-{r}.jsonl").read_text().splitlines()]
                for r in range(3)]
        assert {(x["rank"], x["host"]) for x in logs[0]} == {(0, "h0")}
        assert not (job.log_dir / "failure.json").exists()
        assert not hosts.processes()


@pytest.mark.parametrize("victim", [0, 2])
def test_killed_rank(hosts, tiny, victim):
    with Job(hosts, *words(tiny)) as job:
        job.runs()
        os.kill(job.pids[victim], signal.SIGKILL)
        ranks_s, _ = job.ends(BOUND)
        assert ranks_s < 4, "the end of a process is noticed at once"
        assert job.code == 128 + 9  # what mpirun makes of it
        cause = job.failure()
        assert (cause["kind"], cause["rank"], cause["host"]) == ("died", victim, f"h{victim}")
        assert cause["phase"] in ("step", "idle") and cause["exit_code"] == 5
        assert cause["told_by"] == (0 if victim else 1)


@pytest.fixture
def group():
    """A memory cgroup."""
    reason = memory.why_impossible()
    if reason:
        pytest.skip(reason)
    with memory.Group() as g:
        yield g


def test_the_limit_of_a_group_is_seen_before_loading(tiny, group):
    """As under Slurm, where a job's group is not the root of what it sees."""
    group.limit(130 << 20)  # about 95 MiB are the libraries of a CUDA build, 15 those of another
    words = f"echo $$ > {group.path}/cgroup.procs && exec {cli.RETRO} generate --model {tiny} --prompt x --max-tokens 60000"
    done = subprocess.run(["sh", "-c", words], capture_output=True, timeout=300)
    cli.one_line(done, 4, "0.[01][0-9] GiB free", "--max-context")


@pytest.mark.parametrize("on, victim, host", [(("h0:2",), 1, "h0"), (("h0", "h1:2"), 2, "h1")])
def test_rank_killed_by_the_kernel_for_memory(hosts, tiny, group, on, victim, host):
    """A rank shares a group of 16 MiB with somebody who takes 64; the kernel takes the larger: the rank."""
    with Job(hosts, *words(tiny), on=on, ranks=len(on) + 1) as job:
        job.runs()
        group.limit(16 << 20)
        group.add(job.pids[victim])
        group.fill(64)
        ranks_s, _ = job.ends(BOUND)
        assert ranks_s < 5
        cause = job.failure()
        assert (cause["kind"], cause["rank"], cause["host"]) == ("died", victim, host)
        assert "killed by the kernel, its host is out of memory" in cause["error"] and cause["exit_code"] == 5


@pytest.mark.parametrize("victim", [0, 1])
def test_stopped_rank(hosts, tiny, victim):
    with Job(hosts, *words(tiny)) as job:
        job.runs()
        os.kill(job.pids[victim], signal.SIGSTOP)
        job.ends(BOUND)
        assert job.code == 5
        cause = job.failure()
        assert (cause["kind"], cause["rank"], cause["host"]) == ("stopped", victim, f"h{victim}")


HOLD = """
import ctypes, sys, time
ptrace = ctypes.CDLL(None).ptrace
ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
seize, interrupt = 0x4206, 0x4207
pid = int(sys.argv[1])
print("held" if ptrace(seize, pid, None, None) == 0 and ptrace(interrupt, pid, None, None) == 0 else "not held", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def held(pid):
    """The main thread of a process stands still, its others go on, as in a driver call that never returns. A process
    of its own does it: what it held is let go when it ends."""
    holder = subprocess.Popen([*cli.DIES_WITH_US, sys.executable, "-c", HOLD, str(pid)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "held"
        yield
    finally:
        holder.kill()
        holder.wait()


def test_thread_that_hangs_in_a_step(hosts, tiny):
    with Job(hosts, *words(tiny, "--watchdog", 4)) as job:
        job.runs()
        with held(job.pids[2]):
            job.ends(BOUND, leftovers=False)
        assert job.code == 5
        assert wait_until(lambda: not hosts.processes(), 60), hosts.processes()
        cause = job.failure()
        assert (cause["kind"], cause["rank"], cause["host"]) == ("hung", 2, "h2")


@pytest.mark.parametrize("how, host", [("cut", "h2"), ("black_hole", "h2"), ("black_hole", "h0"),
                                       ("power_cut", "h1")])
def test_lost_host(hosts, tiny, how, host):
    with Job(hosts, *words(tiny)) as job:
        job.runs()
        getattr(hosts, how)(host)
        job.ends(BOUND)
        assert job.code in (5, 9, 137, 205)  # ours, or mpirun's for a lost daemon
        cause = job.failure()
        rank = int(host[1])
        if how == "power_cut":  # the kernel of the host lives on here and may say that its sockets closed
            assert cause["kind"] in ("died", "unreachable")
        else:
            assert cause["kind"] == "unreachable"
        assert (cause["rank"], cause["host"]) == (rank, host) and cause["told_by"] == 0


def test_server_that_loses_a_host(hosts, tiny):
    """It lives on until mpirun has noticed, too, and is then ended by a signal that it would take for a request to drain."""
    with Job(hosts, "serve", "--model", tiny, "--port", 0, "--max-context", 256, "--threads", 1) as job:
        assert wait_until(lambda: "serving tiny on" in job.said, 120), job.said
        job.pids = {r: next(iter(hosts.processes("retro", r))) for r in range(3)}
        hosts.black_hole("h1")
        job.ends(BOUND)
        cause = job.failure()
        assert (cause["kind"], cause["rank"], cause["host"]) == ("unreachable", 1, "h1")


@pytest.mark.parametrize("lost", [True, False])
def test_second_signal_to_a_server(hosts, tiny, lost):
    """mpirun, too, sends one to a server that drains when it has noticed a lost host before us; otherwise it is the cause."""
    with Job(hosts, "serve", "--model", tiny, "--port", 0, "--max-context", 65536, "--threads", 1) as job:
        assert wait_until(lambda: "serving tiny on" in job.said, 120), job.said
        job.pids = {r: next(iter(hosts.processes("retro", r))) for r in range(3)}
        port = re.search(r"127.0.0.1:(\d+)/", job.said)[1]
        body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 60000, "ignore_eos": True})
        client = subprocess.Popen([*cli.DIES_WITH_US, *hosts.enter("h0"), "curl", "-sS", "-d", body, "-H",
                                   "Content-Type: application/json", f"http://127.0.0.1:{port}/v1/completions"])
        time.sleep(1)
        if lost:
            hosts.black_hole("h1")
            time.sleep(2.5)
        for _ in range(2):
            os.kill(job.pids[0], signal.SIGTERM)
            time.sleep(0.4)
        # mpirun, which has noticed nothing here, may wait for the lost host.
        assert wait_until(lambda: not any(alive(p) for p in job.pids.values()), BOUND), job.said
        client.wait()
        assert wait_until(lambda: "first cause" in job.said, 5), job.said
        cause = job.failure()
        assert (cause["kind"], cause["rank"]) == (("unreachable", 1) if lost else ("signal", 0)) and cause["told_by"] == 0


def test_broken_link_between_two_others(hosts, tiny):
    with Job(hosts, *words(tiny)) as job:
        job.runs()
        hosts.black_hole_between("h1", "h2")
        job.ends(BOUND)
        assert job.code == 5
        cause = job.failure()
        assert cause["kind"] == "link" and {cause["rank"], cause["other_rank"]} == {1, 2}


def test_terminated_job_says_so(hosts, tiny):
    with Job(hosts, *words(tiny)) as job:
        job.runs()
        os.kill(job.pids[1], signal.SIGTERM)
        job.ends(BOUND)
        assert job.code == 128 + 15
        cause = job.failure()
        assert (cause["kind"], cause["rank"], cause["exit_code"]) == ("signal", 1, 143)


def test_idle_ranks_are_left_alone_and_watched(hosts, tiny):
    """Rank 0 waits for its prompt far longer than any limit; then a rank dies although nobody works."""
    limits = ("--peer-timeout", 4, "--watchdog", 2, "--start-timeout", 15)
    with Job(hosts, "generate", "--model", tiny, "--prompt", "-", *limits, stdin=subprocess.PIPE) as job:
        assert wait_until(lambda: (job.log_dir / "rank-2.jsonl").exists(), 60), job.said
        time.sleep(18)
        assert job.process.poll() is None, job.said
        job.pids = {2: next(iter(hosts.processes("retro", 2)))}
        os.kill(job.pids[2], signal.SIGKILL)
        job.ends(BOUND)
        cause = job.failure()
        assert (cause["kind"], cause["rank"], cause["phase"]) == ("died", 2, "prepare")


def test_follower_that_does_not_end(hosts, tiny):
    """It stands still while nobody works; then rank 0 ends in order and waits for it, not for ever."""
    with Job(hosts, "serve", "--model", tiny, "--port", 0, "--max-context", 256, "--threads", 1, "--watchdog", 4) as job:
        assert wait_until(lambda: "serving tiny on" in job.said, 120), job.said
        job.pids = {r: next(iter(hosts.processes("retro", r))) for r in range(3)}
        with held(job.pids[1]):
            os.kill(job.pids[0], signal.SIGTERM)
            job.ends(BOUND, leftovers=False)
        assert job.code == 5
        cause = job.failure()
        assert (cause["kind"], cause["rank"], cause["phase"]) == ("hung", 1, "idle")


def test_start_that_waits_for_a_rank(hosts, tiny):
    """A rank that stands still while it loads is named when the deadline of the start is over."""
    with Job(hosts, *words(tiny, "--peer-timeout", 4, "--start-timeout", 20)) as job:
        told = job.log_dir / "rank-0.jsonl"
        assert wait_until(lambda: told.exists() and told.stat().st_size > 0, 60), job.said  # after the heartbeat was opened
        pid = next(iter(hosts.processes("retro", 1)))
        os.kill(pid, signal.SIGSTOP)
        job.pids = {1: pid}
        job.ends(60)
        cause = job.failure()
        assert cause["rank"] == 1 and cause["kind"] in ("stopped", "start")
        assert cause["phase"] in ("boot", "prepare", "open_device", "load_weights", "connect", "idle", "step")


def test_rank_that_never_comes():
    """One of two processes is another program: the other one does not wait for it in MPI_Init for ever."""
    begun = time.monotonic()
    done = subprocess.run(
        ["mpirun", "-n", "1", str(cli.RETRO), "generate", "--model", str(cli.REAL_MODEL), "--prompt", "x",
         "--start-timeout", "2", ":", "-n", "1", "sleep", "300"],
        capture_output=True, text=True, env={**os.environ, **cli.MPI_ENV}, timeout=300)
    assert done.returncode == 5 and time.monotonic() - begun < 60
    assert "rank 0 of 2 on" in done.stderr and "MPI did not start within 2 s" in done.stderr


@pytest.mark.parametrize("victim", [0, 2])
def test_rank_that_stands_still_before_the_heartbeat(tiny, tmp_path, victim):
    """Opening its log does not return, and then it is stopped: MPI runs, and no heartbeat yet."""
    os.mkfifo(tmp_path / f"rank-{victim}.jsonl")
    job = subprocess.Popen([*cli.DIES_WITH_US, "mpirun", "-n", "3", str(cli.RETRO), *map(str, words(tiny)), "--start-timeout", "8",
                            "--log-dir", str(tmp_path)], stderr=subprocess.PIPE, text=True, env={**os.environ, **cli.MPI_ENV})
    assert wait_until(lambda: len(list(tmp_path.iterdir())) == 3, 60)
    pids = map(int, Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split())
    ranks = {re.search(rb"OMPI_COMM_WORLD_RANK=(\d+)", Path(f"/proc/{p}/environ").read_bytes())[1]: p for p in pids}
    os.kill(ranks[b"%d" % victim], signal.SIGSTOP)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 5, said
    assert wait_until(lambda: not any(alive(p) for p in ranks.values()), 60)
    if victim == 0:
        assert any(f"rank {r} of 3 on" in said for r in (1, 2)) and "rank 0 of 3" not in said and "stands still" in said
    else:
        assert f"error: rank {victim} started MPI and did not come further within 8 s" in said


# Rank 1 dies where it would begin to use the memory that the ranks of a host share, or stands still where MPI ends.
MOMENTS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
static void here(const char *moment, int signal)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (rank && !strcmp(rank, "1") && !strcmp(getenv("MOMENT"), moment)) raise(signal);
}
int shm_open(const char *name, int flags, mode_t mode)
{
    if (!strncmp(name, "/retro-", 7)) here("shm_open", SIGKILL);
    return ((int (*)(const char *, int, mode_t))dlsym(RTLD_NEXT, "shm_open"))(name, flags, mode);
}
int MPI_Finalize(void)
{
    here("MPI_Finalize", SIGSTOP);
    return ((int (*)(void))dlsym(RTLD_NEXT, "MPI_Finalize"))();
}
"""


def ends_at(moment, folder, *arguments):
    """Of two ranks, of which one does not go beyond the moment."""
    (folder / "moments.c").write_text(MOMENTS)
    library = folder / "moments.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, folder / "moments.c", "-ldl"], check=True)
    env = {**os.environ, **cli.MPI_ENV, "LD_PRELOAD": str(library), "MOMENT": moment}
    return subprocess.run([*cli.DIES_WITH_US, "mpirun", "-n", "2", str(cli.RETRO), *map(str, arguments)], capture_output=True,
                          text=True, timeout=120, env=env)


def test_nothing_stays_in_shared_memory(tiny, tmp_path):
    before = set(Path("/dev/shm").glob("retro-*"))
    done = ends_at("shm_open", tmp_path, *words(tiny))
    assert done.returncode == 128 + 9 and "first cause: rank 1 on" in done.stderr, done.stderr
    assert wait_until(lambda: set(Path("/dev/shm").glob("retro-*")) <= before, 10)


def test_end_of_mpi_that_never_comes(tiny, tmp_path):
    """Behind the heartbeat, when everything is done."""
    done = ends_at("MPI_Finalize", tmp_path, "generate", "--model", tiny, "--prompt", "x", "--max-tokens", 3, "--start-timeout", 4)
    assert done.returncode == 5 and "rank 0 of 2 on" in done.stderr and "MPI did not end within" in done.stderr, done.stderr


def test_no_rank_outlives_mpirun(hosts, tiny):
    with Job(hosts, *words(tiny)) as job:
        job.runs()
        job.process.kill()
        assert wait_until(lambda: not hosts.processes("retro"), BOUND), hosts.processes()
