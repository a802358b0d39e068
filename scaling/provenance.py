"""Where a number came from: code, versions, machine; and whether the process that claimed something still lives.

Imports no torch and no Ray: versions are read from package metadata.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from scaling import __version__

PACKAGES = ("torch", "numpy", "ray", "scipy", "pandas", "torch-fidelity", "safetensors", "sqlalchemy", "pydantic")


@dataclass(frozen=True)
class Owner:
    """A process: host name, process id, and the id of the boot it lives in (empty where the system has none)."""

    host: str
    pid: int
    boot_id: str


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def owner() -> Owner:
    """This process."""
    return Owner(socket.gethostname(), os.getpid(), _boot_id())


def alive(owner: Owner) -> bool | None:
    """Whether a process still runs; None where it is on another host and cannot be asked."""
    if owner.host != socket.gethostname():
        return None
    if owner.boot_id != _boot_id() or owner.pid <= 0:
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(owner.pid)


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and only waits for its parent to notice."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return state[:1] == ["Z"]


def provenance() -> dict[str, Any]:
    """Git commit and whether tracked files differ from it (None outside a repository), versions, host."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no") if commit else None
    versions = {"scaling": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "git_commit": commit,
        "dirty": None if changes is None else bool(changes),
        "versions": versions,
        "host": socket.gethostname(),
        "platform": platform.platform(),
    }


def _git(*arguments: str) -> str | None:
    """What git says about the current directory; None without git, repository or answer. Takes no lock."""
    try:
        answer = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
