"""The whole quickstart on Ray, killed with SIGKILL at random times and restarted, against one left alone."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.end_to_end.conftest import ROOT, Study, kill

KILLS = 3
SEED = 20260101


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, float]:
    """The finished quickstart and the seconds it took."""
    study = _quickstart(tmp_path_factory.mktemp("undisturbed"))
    started = time.monotonic()
    done = study.run("sweep", "quickstart.yaml", timeout=3000)
    assert done.returncode == 0, done.stderr
    return study, time.monotonic() - started


def _quickstart(folder: Path) -> Study:
    shutil.copy(ROOT / "sweeps" / "quickstart.yaml", folder / "quickstart.yaml")
    return Study(folder)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(5400)
def test_a_quickstart_killed_three_times_ends_with_the_same_digits(
    undisturbed: tuple[Study, float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    study = _quickstart(tmp_path)
    moments = random.Random(SEED)
    for _ in range(KILLS):
        process = study.start("sweep", "quickstart.yaml")
        try:
            process.wait(timeout=moments.uniform(0.05, 0.3) * seconds)
        except subprocess.TimeoutExpired:
            kill(process)
        else:
            pytest.fail("the sweep ended before it was killed")
    done = study.run("sweep", "quickstart.yaml", timeout=3000)
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(study.table(), expected.table(), check_exact=True)
    assert study.metrics() == expected.metrics()
    assert study.weights() == expected.weights()
    assert study.attempts() > expected.attempts()


def _falls(fid: pd.Series) -> bool:
    """Whether FID falls from first to last, no step rising by more than two trainings differ by at two deviations.

    Another processor rounds otherwise and so trains other weights: 1.3% between trainings, as between seeds.
    """
    steps = np.diff(np.log(fid.to_numpy()))
    return bool((steps < 2 * 2**0.5 * 0.013).all() and steps.sum() < -0.1)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_the_quickstart_shows_the_orderings_that_any_sane_study_must(undisturbed: tuple[Study, float]) -> None:
    table = undisturbed[0].table()
    assert (table["state"] == "done").all()
    by_arm = table.groupby("arm").first()
    assert by_arm.loc["base", "rfid"] > by_arm.loc["more-tokens", "rfid"]
    losses = table.pivot_table(index=["arm", "images_seen"], columns="params_body", values="loss")
    longest = losses.xs(table["images_seen"].max(), level="images_seen")
    for ordered in (longest, losses.groupby("arm").mean()):
        assert (ordered.diff(axis=1).iloc[:, 1:] < 0).all(axis=None)
    for _, runs in table.groupby("arm"):
        by_size = runs[runs["images_seen"] == runs["images_seen"].max()].sort_values("params")["gfid"]
        by_length = runs[runs["params"] == runs["params"].max()].sort_values("images_seen")["gfid"]
        assert _falls(by_size)
        assert _falls(by_length)
        assert runs["gfid"].corr(runs["compute"], method="spearman") < -0.6
    fit = undisturbed[0].run("fit", "--metric", "fid", timeout=300)
    assert fit.returncode == 0, fit.stderr
    assert "OPTIMUM BY GENERATOR COMPUTE" in fit.stdout
