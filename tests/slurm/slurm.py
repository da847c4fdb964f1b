"""A real Slurm over namespace hosts: h0 is controller and login node, h1.. compute. Debian's slurmctld, slurmd, munge.

Everything it writes lies in the hosts' folder, munge has a key and a socket of its own: nothing of the machine's is used
or changed.
"""

import os
import shutil
import subprocess

from hosts import Hosts, wait_until

CONF = """
ClusterName=retro
SlurmctldHost=h0({head})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={d}/munge.socket
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool/%n
SlurmctldPidFile={d}/slurmctld.pid
SlurmdPidFile={d}/slurmd.%n.pid
SlurmctldLogFile={d}/slurmctld.log
SlurmdLogFile={d}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=pmix
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
BatchStartTimeout=20
MessageTimeout=15
TCPTimeout=2
InactiveLimit=0
MinJobAge=3600
KillWait=5
WaitTime=5
CompleteWait=0
JobRequeue=1
UnkillableStepTimeout=15
RebootProgram=/bin/true
NodeName=DEFAULT CPUs=2 RealMemory=1000 State=UNKNOWN
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# slurmd asks for a cgroup plugin even where none is used, and looks in vain for a mount inside a namespace.
CGROUP_CONF = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace=no\nConstrainDevices=no\n"
PROGRAMS = ("/usr/sbin/slurmctld", "/usr/sbin/slurmd", "/usr/sbin/munged", "sbatch", "srun", "scontrol", "squeue")


def why_impossible():
    missing = [p for p in PROGRAMS if not shutil.which(p)]
    return f"not installed: {' '.join(missing)}" if missing else None


class Slurm:
    def __init__(self, n, visible):
        self.hosts = Hosts(n + 1, visible=visible)
        self.let_go = {}  # job: which of its restarts
        d = self.folder = self.hosts.folder / "slurm"
        for name in ("state", "spool"):
            (d / name).mkdir(parents=True)
        os.chmod(self.hosts.folder, 0o755)
        nodes = "\n".join(f"NodeName=h{i} NodeAddr={self.hosts.address(f'h{i}')}" for i in range(1, n + 1))
        (d / "slurm.conf").write_text(CONF.format(d=d, head=self.hosts.address("h0"), nodes=nodes))
        (d / "cgroup.conf").write_text(CGROUP_CONF)
        (d / "munge.key").write_bytes(os.urandom(1024))
        os.chmod(d / "munge.key", 0o400)
        try:
            self.on("h0", "/usr/sbin/munged", "--force", f"--socket={d}/munge.socket", f"--key-file={d}/munge.key",
                    f"--pid-file={d}/munged.pid", f"--log-file={d}/munged.log", f"--seed-file={d}/munged.seed")
            self.on("h0", "/usr/sbin/slurmctld", "-c")
            for i in range(1, n + 1):
                self.on(f"h{i}", "/usr/sbin/slurmd")
            ready = wait_until(lambda: set(self.on("h0", "sinfo", "-h", "-N", "-o", "%T").split()) == {"idle"}, 90, 0.3)
            assert ready, (d / "slurmctld.log").read_text()
        except BaseException:
            self.close()
            raise

    def close(self):
        self.hosts.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def environment(self, more=None):
        env = self.hosts.environment({
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_btl_tcp_if_include": "eth0",
            "OMPI_MCA_plm_base_verbose": "1",  # what srun says of daemons that it cannot start
            **(more or {}),
        })
        env.pop("TMPDIR", None)
        return env

    def on(self, host, *words, cwd=None, env=None, check=True, timeout=300):
        """Standard output of a command on a host; CompletedProcess when not `check`."""
        done = subprocess.run([*self.hosts.enter(host, cwd), *map(str, words)], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=timeout, env=self.environment(env))
        if not check:
            return done
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *words, cwd, env=None):
        """Number of the new job."""
        return self.on("h0", "sbatch", "--parsable", "--export=ALL", *words, cwd=cwd, env=env).strip().split(";")[0]

    def fields(self, job):
        """`scontrol show job` of one job as a dict; the last of them for an array."""
        text = self.on("h0", "scontrol", "show", "job", job)
        return dict(w.split("=", 1) for w in text.split() if "=" in w)

    def state(self, job):
        return self.fields(job)["JobState"]

    def wait(self, job, *states, seconds=120):
        """Until the job is in one of the states. One that waits after a requeue is let go after three seconds; Slurm would
        hold it back for two minutes, and a node refuses what it was told to end in the same second."""
        def there():
            f = self.fields(job)
            if f["JobState"] in states:
                return True
            if f["JobState"] == "PENDING" and f.get("Reason") == "BeginTime" and self.let_go.get(job) != f["Restarts"]:
                self.let_go[job] = f["Restarts"]
                self.on("h0", "scontrol", "update", f"JobId={job}", "StartTime=now+3")
            return False
        assert wait_until(there, seconds, 0.5), (self.fields(job), self.log())

    def tasks_end(self, job, seconds=180):
        """Every task of an array: {index: exit code}."""
        def codes():
            text = self.on("h0", "scontrol", "show", "job", job)
            rows = [dict(w.split("=", 1) for w in part.split() if "=" in w) for part in text.split("\n\n") if part.strip()]
            if all(r["JobState"] in ("COMPLETED", "FAILED", "CANCELLED") for r in rows):
                return {int(r["ArrayTaskId"]): r["ExitCode"] for r in rows}
            return None
        assert wait_until(codes, seconds, 0.5), self.log()
        return codes()

    def nodes(self, job):
        """The nodes of a running job, the batch host first."""
        text = self.on("h0", "scontrol", "show", "hostnames", self.fields(job)["NodeList"])
        return text.split()

    def power_on(self, host):
        """A host whose power was cut comes back, with its slurmd: the controller has heard of it, and every other host can
        reach it, too."""
        self.hosts.start(host)
        self.on(host, "/usr/sbin/slurmd")
        assert wait_until(lambda: set(self.on("h0", "sinfo", "-h", "-N", "-o", "%T").split()) == {"idle"}, 90, 0.5), self.log()

    def log(self):
        """The ends of what the controller and the nodes told."""
        return "".join(f"--- {p.name}\n{p.read_text(errors='replace')[-3000:]}\n" for p in sorted(self.folder.glob("slurm*.log")))

