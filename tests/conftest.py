"""What every test shares: one thread a process, one Ray for the whole session, a folder with an awkward name."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# before torch or NumPy is imported: their pools read these once
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

if TYPE_CHECKING:
    from scaling.executors import RayExecutor


@pytest.fixture
def weird_tmp_path(tmp_path: Path) -> Path:
    """A folder whose name has a space, both quotes, a newline, a glob and a non-ASCII letter (submitit's idea)."""
    path = tmp_path / 'it\'s "a"\nfolder [*] ü'
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def ray_executor() -> Iterator["RayExecutor"]:
    """Ray on two processors, started once; a test sets `_run` to what the tasks shall do. Mark such tests `ray`."""
    from scaling.executors import RayExecutor

    executor = RayExecutor(cpus=2)
    executor._quiet.restore()  # or pytest's own output would be lost under -s
    yield executor
    executor.close()
