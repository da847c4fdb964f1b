"""The texts of the fidelity study: from Debian packages, unpacked into build/study and never committed.

A text is a package, a file in it and a way to read it. Packages are downloaded with apt-get and unpacked with
dpkg-deb, nothing is installed. Another release of Debian may hold another edition: results carry the hash of the text
and are averaged only with their like.
"""

import gzip
import hashlib
import html
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "study"
PREFIX_CHARACTERS = 120_000  # far more than 8,192 tokens


class Missing(Exception):
    """A text that cannot be had here; one line says why."""


def packed(data):
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def plain(data, folder):
    return packed(data).decode("utf-8", "replace")


def from_html(data, folder):
    text = packed(data).decode("utf-8", "replace")
    text = re.sub(r"(?s)<(script|style|head).*?</\1>", "", text)
    text = re.sub(r"(?s)<[^>]*>", "", re.sub(r"(?i)<(p|br|li|h[1-6]|tr|div)[^>]*>", "\n", text))
    return re.sub(r"\n\s*\n\s*", "\n\n", re.sub(r"[ \t]+", " ", html.unescape(text)))


def gospel(data, folder):
    """The King James Bible is in a format of its own; the package's program reads it. Verse numbers go."""
    done = subprocess.run(
        [folder / "usr/bin/bible", "-p", folder / "usr/lib/", "-l10000", "Mark 1:1-Mark 16:20"],
        capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL,
    )
    return re.sub(r"(?m)^ *(Mark \d+\n|\d+ )", "", done.stdout)


# name: (kind, packages, file, reader, first character)
TEXTS = {
    "mark": ("book", ["bible-kjv", "bible-kjv-text"], "usr/lib/bible.data", gospel, 0),
    "jargon": ("book", ["dict-jargon"], "usr/share/dictd/jargon.dict.dz", plain, 200_000),
    "anarchism": ("book", ["anarchism"], "usr/share/doc/anarchism/html/secH3.html", from_html, 2_000),
    "perlfunc": ("manual", ["perl-doc"], "usr/share/perl/5.*/pod/perlfunc.pod", plain, 20_000),
    "debian-reference": ("manual", ["debian-reference-en"], "usr/share/debian-reference/debian-reference.en.txt.gz",
                         plain, 60_000),
    "policy": ("manual", ["debian-policy"], "usr/share/doc/debian-policy/policy.txt.gz", plain, 40_000),
    "decimal": ("code", ["libpython3.11-stdlib"], "usr/lib/python3.*/_pydecimal.py", plain, 20_000),
    "cc-engine": ("code", ["emacs-el"], "usr/share/emacs/*/lisp/progmodes/cc-engine.el.gz", plain, 20_000),
    "gpl-3": ("manual", ["base-files"], "usr/share/common-licenses/GPL-3", plain, 0),
}


def unpack(package):
    """The package's files, under build/study/PACKAGE."""
    folder = CACHE / "packages" / package
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["apt-get", "download", "-q", package], cwd=folder, capture_output=True, text=True)
        found = sorted(folder.glob("*.deb"))
        if done.returncode or not found:
            last = (done.stderr.strip() or "nothing came").splitlines()[-1]
            raise Missing(f"package {package}: {last} (apt-get update may help)")
        subprocess.run(["dpkg-deb", "-x", found[-1], folder], check=True)
        (folder / "done").touch()
    return folder


def read_text(name):
    kind, packages, pattern, reader, first = TEXTS[name]
    folders = [unpack(p) for p in packages]
    merged = folders[0]
    for folder in folders[1:]:
        subprocess.run(["cp", "-a", f"{folder}/.", f"{merged}/"], check=True)
    found = sorted(merged.glob(pattern))
    if not found:
        raise Missing(f"package {packages[0]}: holds no {pattern}")
    text = reader(found[-1].read_bytes(), merged)[first : first + PREFIX_CHARACTERS]
    if first:
        text = text[text.index("\n") + 1 :]
    return text


def ids_of(name, retro, model):
    """(file of token ids, how many, hash of the text)."""
    path = CACHE / f"{name}.ids"
    source = CACHE / f"{name}.txt"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        source.write_text(read_text(name), encoding="utf-8")
        done = subprocess.run([retro, "tokenize", "--model", model], stdin=source.open("rb"), capture_output=True)
        if done.returncode:
            raise Missing(f"{name}: {done.stderr.decode(errors='replace').strip()}")
        path.write_bytes(done.stdout)
    n = len(path.read_bytes().split())
    return path, n, hashlib.sha256(source.read_bytes()).hexdigest()[:16]


def names(wanted):
    chosen = wanted.split(",") if wanted else list(TEXTS)
    for name in chosen:
        if name not in TEXTS:
            print(f"fidelity: --texts {name}: no such text; there are {', '.join(TEXTS)}", file=sys.stderr)
            sys.exit(2)
    return chosen
