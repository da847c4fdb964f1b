"""Several hosts on one machine: each a set of network, host-name, process and mount namespaces.

Hosts h0, h1, ... have own addresses (10.77.0.10, .11, ...), names, /etc/hosts, /dev/shm, /tmp and process tables. A
bridge in a namespace of its own joins them; no route leaves it. Nothing has a name on the machine: when the first
processes of the hosts are gone, so is everything else, and they die with this process.

What is run as on h0 with `head` has h0's network and name but the machine's processes, because a remote shell must
enter the other hosts. Needs root, iproute2 and util-linux.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

NET = "10.77.0."
PR_SET_PDEATHSIG = 1
TOOLS = ("ip", "nsenter", "unshare", "mount")


def _die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _run(*words):
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    return done.stdout


def why_impossible():
    """None, or why there can be no hosts here."""
    if os.geteuid() != 0:
        return "not root"
    for tool in TOOLS:
        if not shutil.which(tool):
            return f"{tool} is not installed"
    words = ["unshare", "--net", "--uts", "--pid", "--mount", "--fork", "--mount-proc", "ip", "link", "add", "x",
             "type", "veth", "peer", "name", "y"]
    done = subprocess.run(words, capture_output=True, text=True)
    return None if done.returncode == 0 else f"no namespaces or virtual network here: {done.stderr.strip()}"


class Hosts:
    def __init__(self, n, visible=(), names=None):
        """`visible`: folders below /tmp that every host must see (its own /tmp is empty)."""
        self.mark = f"RETRO_TEST_HOSTS={uuid.uuid4().hex}"
        self.folder = Path(tempfile.mkdtemp(prefix="retro-hosts-"))
        self.visible = [Path(v) for v in visible if str(v).startswith("/tmp/")] + [self.folder]
        self.names = names or [f"h{i}" for i in range(n)]
        self.inits = {}
        lines = ["127.0.0.1 localhost"] + [f"{self.address(h)} {h}" for h in self.names]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        try:
            self._start("switch")
            self._in_switch("ip", "link", "set", "lo", "up")
            self._in_switch("ip", "link", "add", "br0", "type", "bridge")
            self._in_switch("ip", "link", "set", "br0", "up")
            for h in self.names:
                self.start(h)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def address(self, host):
        return NET + str(10 + self.names.index(host))

    def environment(self, more=None):
        key, value = self.mark.split("=")
        return {**os.environ, key: value, "HOSTS_FOLDER": str(self.folder), **(more or {})}

    # ---- hosts begin and end

    def _start(self, host):
        out = "".join(f"mkdir /run/retro-hosts/{i}; mount --bind '{v}' /run/retro-hosts/{i}\n"
                      for i, v in enumerate(self.visible))
        back = "".join(f"mkdir -p '{v}'; mount --bind /run/retro-hosts/{i} '{v}'\n"
                       for i, v in enumerate(self.visible))
        script = f"""
            hostname {host}; mount -t tmpfs tmpfs /dev/shm; mount --bind {self.folder}/hosts /etc/hosts
            mkdir -p /run/retro-hosts; mount -t tmpfs tmpfs /run/retro-hosts
            {out}
            mount -t tmpfs tmpfs /tmp
            {back}
            ip link set lo up; echo up > {self.folder}/up.{host}; sleep infinity & wait"""
        up = self.folder / f"up.{host}"
        up.unlink(missing_ok=True)
        outer = subprocess.Popen(
            ["unshare", "--net", "--uts", "--pid", "--mount", "--fork", "--kill-child=KILL", "--mount-proc",
             "--propagation", "private", "sh", "-ec", script],
            preexec_fn=_die_with_parent, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=open(self.folder / f"log.{host}", "w"), env=self.environment(),
        )
        wait_until(lambda: up.exists() or outer.poll() is not None, 120)
        if not up.exists():
            raise RuntimeError(f"{host}: {(self.folder / f'log.{host}').read_text()}")
        child = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()[0])
        self.inits[host] = (outer, child)

    def start(self, host):
        self._start(host)
        self.heal(host)

    def pid(self, host):
        return self.inits[host][1]

    def power_cut(self, host):
        """Every process of the host is gone at once; so is its network."""
        outer, child = self.inits.pop(host)
        os.kill(child, signal.SIGKILL)
        outer.wait()

    def close(self):
        for host in list(self.inits):
            self.power_cut(host)
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- the network

    def _in_switch(self, *words):
        return _run("nsenter", "--target", self.pid("switch"), "--net", *words)

    def _port(self, host):
        return f"port{self.names.index(host)}"

    def heal(self, host):
        """Plugs the host in."""
        self._in_switch("ip", "link", "add", self._port(host), "type", "veth", "peer", "name", "eth0", "netns",
                        self.pid(host))
        self._in_switch("ip", "link", "set", self._port(host), "master", "br0", "up")
        # IPv6 off: Open MPI would connect over link-local addresses too.
        Path("/proc/sys/net/ipv6").exists() and self.run(
            host, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; "
            "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
        self.run(host, "ip", "addr", "add", self.address(host) + "/24", "dev", "eth0")
        self.run(host, "ip", "link", "set", "eth0", "up")

    def cut(self, host):
        """Cable and network card are gone."""
        self._in_switch("ip", "link", "del", self._port(host))

    def black_hole(self, host):
        """The link is up, what is sent vanishes."""
        self._in_switch("ip", "link", "set", self._port(host), "nomaster")

    def black_hole_between(self, a, b):
        """Only what these two send each other vanishes: each has a wrong hardware address of the other."""
        for here, there in ((a, b), (b, a)):
            self.run(here, "ip", "neigh", "replace", self.address(there), "lladdr", "02:00:00:00:00:99", "dev",
                     "eth0", "nud", "permanent")

    # ---- processes

    def enter(self, host, folder=None):
        """The words that run a command on a host, in a folder (the current one)."""
        return ["nsenter", "--target", str(self.pid(host)), "--net", "--uts", "--mount", "--pid",
                f"--wdns={folder or os.getcwd()}", "--"]

    def head(self):
        """The words that run a command as on the first host, from where it can reach into the others."""
        bind = f"mount --bind {self.folder}/hosts /etc/hosts && exec \"$@\""
        return ["nsenter", "--target", str(self.pid(self.names[0])), "--net", "--uts", "--", "unshare", "--mount", "sh", "-c",
                bind, "sh"]

    def run(self, host, *words):
        return _run(*self.enter(host), *words)

    def remote_shell(self):
        """A program for plm_rsh_agent: AGENT HOST COMMAND..."""
        agent = self.folder / "agent"
        cases = "\n".join(f"{h}|{self.address(h)}) set -- {' '.join(self.enter(h))} sh -c \"$*\";;"
                          for h in self.names)
        agent.write_text(f"#!/bin/sh\nwhile case $1 in -*) true;; *) false;; esac; do shift; done\nh=$1; shift\n"
                         f"case $h in\n{cases}\n*) echo \"no host $h\" >&2; exit 2;;\nesac\nexec \"$@\"\n")
        agent.chmod(0o755)
        return agent

    def processes(self, name=None, rank=None):
        """Living processes that were started through these hosts, but their first ones: {pid: command name}."""
        found = {}
        inits = {p for outer, child in self.inits.values() for p in (outer.pid, child)}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) in inits:
                continue
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
                stat = (folder / "stat").read_text()
            except OSError:
                continue
            comm, state = stat[stat.index("(") + 1:stat.rindex(")")], stat[stat.rindex(")") + 2]
            if self.mark.encode() not in environment or state == "Z" or int(folder.name) == os.getpid():
                continue
            if (comm == "sleep" and int(stat[stat.rindex(")") + 2:].split()[1]) in inits):
                continue
            if name and comm != name:
                continue
            if rank is not None and f"OMPI_COMM_WORLD_RANK={rank}".encode() not in environment and \
                    f"PMIX_RANK={rank}".encode() not in environment:
                continue
            found[int(folder.name)] = comm
        return found


def wait_until(condition, seconds, step=0.02):
    """True as soon as the condition holds, False when the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(step)
    return bool(condition())


if __name__ == "__main__":
    print(why_impossible() or "hosts are possible")
    sys.exit(0)
