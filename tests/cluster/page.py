"""The commands of docs/running.md: each ```sh block runs as it stands, and the lines of the ```text block after it must
appear in what it prints, in that order."""

import re
import subprocess

import cli

PAGE = cli.ROOT / "docs" / "running.md"


def blocks(section):
    """[(commands, expected lines)] of the section with this title."""
    text = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.S | re.M)
    assert text, f"{PAGE.name} has no section {section}"
    found = re.findall(r"^```sh\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", text.group(1), re.S | re.M)
    assert found, f"{section}: no commands"
    return [(commands, expected.splitlines()) for commands, expected in found]


def follow(section, env, launcher=(), timeout=300):
    for commands, expected in blocks(section):
        done = subprocess.run([*launcher, "bash", "-e", "-c", commands], cwd=cli.ROOT, env=env, capture_output=True,
                              stdin=subprocess.DEVNULL, text=True, timeout=timeout)
        printed = done.stdout + done.stderr
        assert done.returncode == 0, f"{commands}\n{printed}"
        at = 0
        for line in expected:
            assert line in printed[at:], f"{line!r} is not printed by\n{commands}\n{printed}"
            at = printed.index(line, at) + len(line)
