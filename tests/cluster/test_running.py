"""docs/running.md, followed word by word: the laptop, the node and the cluster (Slurm: tests/slurm)."""

import os
import shutil

import pytest

import cli
import hosts as hosts_module
import page

CONTAINER = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
             "OMPI_MCA_rmaps_base_oversubscribe": "1"}

pytestmark = pytest.mark.skipif("RETRO_BUILD" in os.environ, reason="the page says build/retro")


def test_laptop():
    page.follow("A laptop", {**os.environ}, timeout=900)


def test_node():
    page.follow("One node", {**os.environ, **CONTAINER})


def test_cluster():
    reason = hosts_module.why_impossible()
    if reason:
        pytest.skip(reason)
    shutil.rmtree(cli.ROOT / "build" / "logs", ignore_errors=True)
    with hosts_module.Hosts(3, visible=[cli.ROOT], names=["node1", "node2", "node3"]) as h:
        env = h.environment({**CONTAINER, "OMPI_MCA_plm_rsh_agent": str(h.remote_shell())})
        page.follow("A cluster of hosts", env, launcher=h.head())
