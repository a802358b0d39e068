"""`scaling fit` as a user meets it: its laws and options, what it stores, what it says of earlier fits and mistakes."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import Command

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "analysis"))
from synthetic_sweep import LAWS, sweep

from scaling.store import FitRow, RunRecord, StageRecord, Store

PAIR = {name: LAWS[name] for name in ("base", "crt")}
ALL = {**PAIR, "t9": {**LAWS["base"], "T": 9, "E": 29}, "t36": {**LAWS["more-tokens"], "E": 20}}
MEASURED = ("loss", "loss_per_image", "bits_per_pixel", "rfid", "gfid", "gkid", "seconds")
QUICK = ("--bootstrap", "50", "--no-figures")


def table(laws: Any = PAIR, **options: Any) -> pd.DataFrame:
    made = sweep(laws=laws, **options)
    return made.assign(seconds=made["compute"] * 1e-9)


def key(run: str) -> str:
    return hashlib.sha256(run.encode()).hexdigest()


def record(store: Store, rows: pd.DataFrame, done: Any = True) -> None:
    """Runs of a plan, each one stage; those of `done` (a mask) with their results."""
    values = rows.to_dict("records")
    with store.transaction():
        number = store.record_plan("synthetic", "a" * 64, "", {}, {})
        store.record_stages(number, [StageRecord(key(row["run"]), "generator", row["run"], {}, 1) for row in values])
        runs = []
        for row in values:
            static = {k: v for k, v in row.items() if k not in (*MEASURED, "plan", "run", "state")}
            runs.append(RunRecord(row["run"], static, {"generator": key(row["run"])}))
        store.record_runs(number, runs)
    finish(store, rows[np.broadcast_to(done, len(rows))])


def finish(store: Store, rows: pd.DataFrame, status: str = "done") -> None:
    with store.transaction():
        for row in rows.to_dict("records"):
            summary = {name: row[name] for name in MEASURED if name in row}
            store.record_result(key(row["run"]), status, 1, {}, summary, [])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def scaling(folder: Path, command: Command) -> Command:
    """A command run in the folder."""
    return command


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of a finished plan: two arms, four sizes, three lengths."""
    path = tmp_path_factory.mktemp("filled") / "results.db"
    with Store.open(path, create=True) as store:
        record(store, table())
    return path


@pytest.fixture(scope="module")
def filled_wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with four arms, of which three differ in the tokens of an image alone."""
    path = tmp_path_factory.mktemp("wide") / "results.db"
    with Store.open(path, create=True) as store:
        record(store, table(ALL))
    return path


@pytest.fixture
def results(folder: Path, filled: Path) -> Path:
    return Path(shutil.copy(filled, folder / "results.db"))


@pytest.fixture
def wide(folder: Path, filled_wide: Path) -> Path:
    return Path(shutil.copy(filled_wide, folder / "results.db"))


def fits(folder: Path) -> list[FitRow]:
    with Store.open(folder / "results.db", create=False, readonly=True) as store:
        return store.fits()


# --------------------------------------------------------------------------------------- laws by name


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), ["OPTIMUM BY GENERATOR COMPUTE", "OPTIMUM ALONG T 9, 16, 36", "COMPUTE MULTIPLIER over base"]),
        (("--law", "paper"), ["gFID = Lmin + C^-alpha e^lambda (arXiv 2412.16326)", "joint exponent [95%]"]),
        (("--law", "kaplan"), ["Kaplan et al. 2020", "y = [(A N^-alpha)^(1/beta) + (B D^-beta)^(1/beta)]^beta"]),
        (("--law", "surface"), ["y = E + R T^-r + A C^-a T^s", "OPTIMUM ALONG T"]),
        (("--law", "auto"), ["Hoffmann et al. 2022", "chinchilla ("]),
        (("--law", "chinchilla", "--objective", "huber"), ["Hoffmann et al. 2022", "uber"]),
        (("--law", "power_floor"), ["gFID = E + A compute^-alpha", "BEYOND THE DATA"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_each_law_prints_its_answer_and_is_stored(
    scaling: Command, folder: Path, arguments: tuple[str, ...], says: list[str]
) -> None:
    said = scaling("fit", *arguments, *QUICK)
    assert (said.code, said.err) == (0, "")
    for words in says:
        assert words in said.words
    assert said.words.endswith("FIGURES none asked for stored as fit 1 (48 points)")
    (fit,) = fits(folder)
    asked = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert fit.options["law"] == asked.get("--law", "chinchilla")
    assert (fit.plan, fit.metric) == ("synthetic", "fid")


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize("law", ["power", "power_floor", "shifted", "m4", "broken", "paper", "auto"])
def test_each_law_of_one_input_takes_a_column(scaling: Command, law: str) -> None:
    robust = () if law in ("paper", "auto") else ("--objective", "huber")
    x = "compute" if law == "paper" else "tokens_seen"
    said = scaling("fit", "--law", law, "--x", x, "--where", "arm=base", *robust, *QUICK)
    assert (said.code, said.err) == (0, "")
    assert f" x {x}" in said.words
    assert [line for line in said.out.splitlines() if line.startswith("base ")]
    assert ("Pareto frontier over compute" in said.words) == (law == "paper")


@pytest.mark.usefixtures("results")
def test_x_may_be_a_symbol_and_a_law_need_not_be_named(scaling: Command) -> None:
    said = scaling("fit", "--x", "N", *QUICK)
    assert said.code == 0
    assert "x params [parameters]: N: body and head of the generator, no embeddings" in said.words
    assert "gFID = E + A params^-alpha" in said.words
    assert "several training lengths on one curve" in said.words


@pytest.mark.usefixtures("wide")
def test_by_groups_runs_and_cautions_where_it_pools_arms(scaling: Command) -> None:
    said = scaling("fit", "--by", "T", *QUICK)
    assert said.code == 0
    assert [line.split()[0] for line in said.out.splitlines() if line.startswith("T=")][:3] == ["T=16", "T=9", "T=36"]
    assert "--by T: T=16 pools base, crt. What differs between them counts as noise of the law." in said.words
    several = scaling("fit", "--by", "T,lambda", *QUICK)
    assert "T=16, lambda=0.1" in several.out
    assert "pools" not in several.out
    curves = scaling("fit", "--x", "compute", "--by", "T", *QUICK)
    assert "in 3 of 3 groups by tokens_per_image" in curves.out
    assert "16 holds 2 arms (base, crt)" in curves.words


@pytest.mark.usefixtures("wide")
def test_curves_by_several_columns_have_a_group_a_setting(scaling: Command) -> None:
    said = scaling("fit", "--x", "compute", "--by", "T,lambda", *QUICK)
    assert (said.code, said.err) == (0, "")
    assert "in 4 of 4 groups" in said.out
    assert "T=16, lambda=0.1" in said.out


@pytest.mark.usefixtures("wide")
def test_where_chooses_the_runs_that_count(scaling: Command, folder: Path) -> None:
    said = scaling("fit", "--where", "arm=base,crt", "--where", "size!=16x2", *QUICK)
    assert said.code == 0
    assert said.out.startswith("synthetic   18 of 18 runs")
    assert said.out.rstrip().endswith("stored as fit 1 (18 points)")
    (fit,) = fits(folder)
    assert fit.options["where"] == ["arm=base,crt", "size!=16x2"]
    run = fit.points["columns"].index("run")
    assert {row[run].split("-")[0] for row in fit.points["rows"]} == {"base", "crt"}
    assert "16x2" not in {row[run].split("-")[1] for row in fit.points["rows"]}


@pytest.mark.usefixtures("results")
def test_the_frontier_is_fitted_to_its_inner_points_alone(scaling: Command) -> None:
    """Trap 5 of shared/reference/traps.md: edge points are left out, intervals choose the points again."""
    said = scaling("fit", "--law", "power_floor", "--points", "frontier", *QUICK)
    assert said.code == 0
    assert "on the Pareto frontier, edge sizes left out" in said.words
    assert "runs on the frontier" in said.words
    found = json.loads(scaling("fit", "--law", "power_floor", "--points", "frontier", "--json", *QUICK).out)
    for group in found["groups"]:
        assert group["points"] < group["runs"] == 12


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize("metric", ["fid", "loss", "rfid"])
def test_the_first_line_counts_the_runs_of_every_metric(scaling: Command, metric: str) -> None:
    said = scaling("fit", "--metric", metric, *QUICK)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("synthetic   24 of 24 runs, 0 diverged, 0 degenerate")
    if metric != "fid":
        assert "COMPUTE MULTIPLIER" not in said.out


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize(
    "options", [("--law", "kaplan"), ("--x", "compute"), ("--law", "paper"), ("--hold-out", "largest")]
)
def test_rfid_has_no_generator_axis_and_no_law_of_it_is_fitted(scaling: Command, options: tuple[str, ...]) -> None:
    """Trap 8 of shared/reference/traps.md: rFID has no generator axis."""
    said = scaling("fit", "--metric", "rfid", *options, *QUICK)
    assert said.code == 2
    assert "rFID has no generator axis" in said.line


@pytest.mark.usefixtures("wide")
def test_the_loss_of_different_tokenizers_is_fitted_and_not_compared(scaling: Command) -> None:
    """Trap 8 of shared/reference/traps.md: nats a token do not compare across codes."""
    for options in ((), ("--x", "compute")):
        said = scaling("fit", "--metric", "loss", *options, *QUICK)
        assert said.code == 0
        assert "do not compare" in said.words
        assert "MULTIPLIER over" not in said.out


@pytest.mark.usefixtures("results")
def test_the_base_and_the_generators_that_share_a_tokenizer_may_be_chosen(scaling: Command) -> None:
    """Trap 4 of shared/reference/traps.md: amortise only by an explicit option."""
    said = scaling("fit", "--base", "crt", "--amortize-over", "20", *QUICK)
    assert "COMPUTE MULTIPLIER over crt" in said.out
    assert "Counting one full tokenizer over 20 generators" in said.words
    assert "By wall time" in said.words
    assert "generators" not in scaling("fit", *QUICK).words.split("Counting one full tokenizer")[1].split("WARN")[0]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ((), ["fid-compute", "fid-knobs", "fid-optimum"]),
        (("--law", "paper"), ["fid-compute-paper"]),
        (("--x", "N", "--law", "power"), ["fid-params-power"]),
    ],
    ids=lambda value: " ".join(value) or "none",
)
def test_figures_are_drawn_where_asked(
    scaling: Command, folder: Path, wide: Path, options: tuple[str, ...], names: list[str]
) -> None:
    said = scaling("fit", *options, "--bootstrap", "50")
    assert (said.code, said.err) == (0, "")
    assert sorted(path.name for path in (folder / "plots").iterdir()) == sorted(
        f"{name}.{suffix}" for name in names for suffix in ("png", "svg")
    )
    last = said.out.splitlines()[-1]
    assert all(f"plots/{name}.svg" in last for name in names)


# ------------------------------------------------------------------------------------------------ hold-out


def largest(rows: pd.DataFrame) -> pd.Series:
    return rows["size"] == "64x3"


def test_a_prediction_stored_before_the_largest_was_trained_is_scored_as_such(scaling: Command, folder: Path) -> None:
    """Trap 22 of shared/reference/traps.md: what is said before the runs cannot be chosen after them."""
    rows = table()
    with Store.open(folder / "results.db", create=True) as store:
        record(store, rows, ~largest(rows))
    first = scaling("fit", "--hold-out", "largest", *QUICK)
    assert first.code == 0
    assert "6 predictions of the largest size are in this fit; none of its runs is done yet" in first.words
    (stored,) = fits(folder)
    assert len(stored.result["predictions"]) == 6
    assert stored.result["score"] is None
    assert len(stored.points["rows"]) == 18

    with Store.open(folder / "results.db", create=False) as store:
        finish(store, rows[largest(rows) & (rows["images_seen"] <= 16_000)])
    half = scaling("fit", "--hold-out", "largest", *QUICK)
    assert " of 2 runs inside the 95% band" in half.words
    assert "as fit 1 said at " in half.words
    assert "UTC, before the first of these runs ended." in half.words
    assert "the points changed since fit 1 (" in half.words
    assert "): 2 new." in half.words

    with Store.open(folder / "results.db", create=False) as store:
        finish(store, rows[largest(rows) & (rows["images_seen"] > 16_000)])
    whole = scaling("fit", "--hold-out", "largest", "--json", *QUICK)
    score = json.loads(whole.out)["score"]
    assert (score["total"], score["before"], score["number"]) == (6, True, 1)
    assert score["stored"] == stored.created
    assert score["inside"] >= 4


def test_the_score_is_of_what_was_said_then_and_not_of_a_law_fitted_since(scaling: Command, folder: Path) -> None:
    rows = table()
    with Store.open(folder / "results.db", create=True) as store:
        record(store, rows, ~largest(rows))
    scaling("fit", "--hold-out", "largest", *QUICK)
    said = {(one["arm"], one["images_seen"]): one for one in fits(folder)[0].result["predictions"]}
    spoilt = rows.assign(gfid=rows["gfid"].where(largest(rows), rows["gfid"] * 1.3))
    with Store.open(folder / "results.db", create=False) as store:
        finish(store, spoilt)
    found = json.loads(scaling("fit", "--hold-out", "largest", "--json", *QUICK).out)
    inside, missed = 0, []
    for run in rows[largest(rows)].to_dict("records"):
        one = said[run["arm"], run["images_seen"]]
        inside += one["low"] <= run["gfid"] <= one["high"]
        missed.append(np.log(run["gfid"] / one["value"]))
    assert found["score"]["inside"] == inside
    assert found["score"]["error"] == pytest.approx(float(np.sqrt(np.mean(np.square(missed)))))
    assert found["predictions"][0]["value"] > 1.2 * said["base", found["predictions"][0]["images_seen"]]["value"]


@pytest.mark.usefixtures("results")
def test_without_a_fit_from_before_the_score_is_after_the_fact(scaling: Command) -> None:
    said = scaling("fit", "--hold-out", "largest", *QUICK)
    assert " of 6 runs inside the 95% band" in said.words
    assert "after the fact: no fit without this size was stored before its first run ended." in said.words
    score = json.loads(scaling("fit", "--hold-out", "largest", "--json", *QUICK).out)["score"]
    assert (score["before"], score["stored"], score["number"]) == (False, None, None)


@pytest.mark.parametrize("other", [("--guidance", "1"), ("--where", "size!=16x2"), ()], ids=["same", "where", "none"])
def test_only_a_fit_that_was_asked_the_same_counts_as_said_before(
    scaling: Command, folder: Path, other: tuple[str, ...]
) -> None:
    rows = table()
    with Store.open(folder / "results.db", create=True) as store:
        record(store, rows, ~largest(rows))
    scaling("fit", *(("--hold-out", "largest") if other else ()), *other, *QUICK)
    with Store.open(folder / "results.db", create=False) as store:
        finish(store, rows[largest(rows)])
    said = scaling("fit", "--hold-out", "largest", *QUICK)
    expected = "as fit 1 said at" if other[:1] == ("--guidance",) else "after the fact"
    assert expected in said.words


# -------------------------------------------------------------------------------------- what fits remember


def test_a_fit_keeps_its_options_points_protocol_and_numbers_in_full_precision(
    scaling: Command, folder: Path, results: Path
) -> None:
    said = json.loads(scaling("fit", "--base", "crt", "--json", *QUICK).out)
    (fit,) = fits(folder)
    assert fit.protocol == "gFID, shapes-cnn@1 (64-d), held-out 10,000, N = 2,000, guidance 1.0"
    assert fit.options["base"] == "crt"
    assert fit.options["resamples"] == 50
    assert fit.options["points"] == "all"
    assert fit.result == said
    rows = table().set_index("run")
    columns = fit.points["columns"]
    assert columns == [
        "run",
        "evaluation_seed",
        "guidance",
        "protocol_hash",
        "params",
        "tokens_seen",
        "compute",
        "gfid",
    ]
    for point in fit.points["rows"]:
        named = dict(zip(columns, point, strict=True))
        for name in ("params", "tokens_seen", "compute", "gfid", "guidance"):
            assert named[name] == rows.loc[named["run"], name]
    assert len(fit.points["sha256"]) == 64


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize(
    "arguments",
    [(), ("--hold-out", "largest"), ("--law", "paper"), ("--law", "kaplan"), ("--x", "N"), ("--metric", "rfid")],
    ids=" ".join,
)
def test_json_is_one_object_without_nan_on_standard_output(scaling: Command, arguments: tuple[str, ...]) -> None:
    said = scaling("fit", *arguments, "--json", *QUICK)
    assert (said.code, said.err) == (0, "")
    found = json.loads(said.out, parse_constant=pytest.fail)
    assert found["plan"] == "synthetic"
    assert found["cautions"] == []


def test_points_that_changed_since_the_last_such_fit_are_counted(scaling: Command, folder: Path, results: Path) -> None:
    rows = table()
    assert "the points changed" not in scaling("fit", *QUICK).words
    assert "the points changed" not in scaling("fit", *QUICK).words, "silent when equal"
    with Store.open(results, create=False) as store:
        changed = rows.iloc[[0, 1, 2]].assign(gfid=lambda t: t["gfid"] * (1 + 1e-12))
        finish(store, changed)
        store.set_state(key(rows["run"].iloc[5]), "failed")
    said = scaling("fit", *QUICK)
    assert "the points changed since fit 2 (" in said.words
    assert "UTC): 1 gone, 3 changed." in said.words
    assert said.out.index("WARNINGS") < said.out.index("the points changed") < said.out.index("FIGURES")
    with Store.open(results, create=False) as store:
        finish(store, rows.iloc[[5]])
    assert "the points changed since fit 3 (" in (again := scaling("fit", *QUICK)).words
    assert "UTC): 1 new." in again.words


@pytest.mark.parametrize(
    "other",
    [("--where", "size!=16x2"), ("--law", "kaplan"), ("--metric", "rfid"), ("--hold-out", "largest")],
    ids=" ".join,
)
def test_fits_that_were_asked_something_else_are_not_compared(
    scaling: Command, folder: Path, results: Path, other: tuple[str, ...]
) -> None:
    scaling("fit", *QUICK)
    with Store.open(results, create=False) as store:
        finish(store, table().iloc[[0]].assign(gfid=40.0, rfid=30.0))
    assert "the points changed" not in scaling("fit", *other, *QUICK).words


def test_a_fit_with_nothing_to_warn_of_still_says_that_points_changed(
    scaling: Command, folder: Path, results: Path
) -> None:
    scaling("fit", "--metric", "rfid", *QUICK)
    with Store.open(results, create=False) as store:
        finish(store, table().iloc[[0]].assign(rfid=30.0))
    said = scaling("fit", "--metric", "rfid", *QUICK)
    assert said.out.count("WARNINGS") == 1
    assert "): 1 changed." in said.words


@pytest.mark.usefixtures("results")
def test_rows_in_another_order_are_the_same_points(scaling: Command, folder: Path, results: Path) -> None:
    scaling("fit", *QUICK)
    with Store.open(results, create=False) as store:
        plan = store.plan("synthetic")
        assert plan is not None
        store.record_runs(plan.id, store.runs(plan.id)[::-1])
    assert "the points changed" not in scaling("fit", *QUICK).words
    assert len({fit.points["sha256"] for fit in fits(folder)}) == 1


# --------------------------------------------------------------------------------------- a user's mistakes


@pytest.mark.usefixtures("results")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metric", "kid"), "metric 'kid' is none of fid, loss, rfid"),
        (("--law", "chinchila"), "'chinchila'"),
        (("--law", "nothing", "--x", "compute"), "a curve takes a law of one input"),
        (("--x", "comptue"), "--x: the table has no column 'comptue'; did you mean compute?"),
        (("--by", "codebok_size"), "--by: the table has no column 'codebok_size'; did you mean codebook_size?"),
        (("--by", "siz", "--x", "compute"), "--by: the table has no column 'siz'; did you mean size?"),
        (("--where", "parms>=1e5"), "--where: the table has no column 'parms'; did you mean params?"),
        (("--where", "params>=many"), "'many' is no number"),
        (("--where", "params"), "is no condition"),
        (("--where", "params>=1e12"), "leaves no run"),
        (("--hold-out", "smallest"), "only `largest` can be held out"),
        (("--hold-out", "largest", "--law", "kaplan"), "--hold-out goes with the joint law"),
        (("--hold-out", "largest", "--x", "compute"), "--hold-out goes with the joint law"),
        (("--hold-out", "largest", "--objective", "huber"), "--hold-out goes with the joint law"),
        (("--hold-out", "largest", "--where", "size=32x2"), "base, crt has one size; there is nothing smaller to fit"),
        (("--points", "some"), "--points 'some' is neither `all` nor `frontier`"),
        (("--points", "frontier"), "--points frontier goes with a law of one input"),
        (("--points", "frontier", "--law", "kaplan"), "--points frontier goes with a law of one input"),
        (("--points", "frontier", "--law", "surface"), "--points frontier goes with a law of one input"),
        (("--points", "frontier", "--objective", "huber"), "--points frontier goes with a law of one input"),
        (("--points", "frontier", "--law", "power", "--objective", "huber"), "least squares of ln y alone"),
        (("--law", "kaplan", "--x", "compute"), "--x goes with a law of one input"),
        (("--amortize-over", "0.5"), "--amortize-over 0.5 must be 1 generator or more"),
        (("--amortize-over", "nan"), "--amortize-over nan must be 1 generator or more"),
        (("--amortize-over", "inf"), "--amortize-over inf must be 1 generator or more"),
        (("--objective", "hubber"), "hubber"),
        (("--objective", "hubber", "--x", "compute"), "hubber"),
        (("--residual", "logs"), "logs"),
        (("--guidance", "4"), "no run was evaluated at guidance 4 (found: 1)"),
        (("--guidance", "nan"), "no run was evaluated at guidance nan"),
        (("--x", "compute", "--base", "nobody"), "base 'nobody' is none of the groups"),
        (("--law", "surface"), "three values of tokens_per_image, codebook_size or crt_weight"),
        (("--x", "protocol"), "--x protocol: no run has a number above 0 there"),
        (("--law", "paper", "--x", "nothing"), "--x: the table has no column 'nothing'"),
        (("--x", "params", "--where", "size=32x2"), "no law: base, crt (3 runs: 1 distinct values of params"),
        (("--law", "kaplan", "--where", "size=32x2"), "no law: base, crt (3 runs: 1 distinct values of params"),
        (("--law", "paper", "--where", "size=32x2"), "no law: base, crt ("),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_option_that_cannot_be_met_is_one_line_code_2_and_no_fit(
    scaling: Command, folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    said = scaling("fit", *arguments, *QUICK)
    assert said.code == 2
    assert message in said.line
    assert fits(folder) == []


def imported(folder: Path, rows: pd.DataFrame) -> None:
    columns = {name: rows[name].astype(object).where(rows[name].notna(), None).tolist() for name in rows}
    columns.pop("plan", None)
    with Store.open(folder / "results.db", create=True) as store:
        store.record_import("theirs", "b" * 64, "t.csv", {}, {}, columns)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(protocol_hash=np.where(t.index % 2, "a", "b")), "2 protocols in one table"),
        (lambda t: t.drop(columns="gfid"), "missing from the table: gfid"),
        (lambda t: t.drop(columns=["compute", "params"]), "missing from the table: "),
        (lambda t: t.assign(gfid=t["gfid"].where(t.index != 3)), "gfid of run 'base-32x2-16000-s0' is missing"),
        (lambda t: t.assign(params=t["params"].where(t.index != 3)), "params of run 'base-32x2-16000-s0' is missing"),
        (lambda t: t.assign(gfid=t["gfid"].where(t.index != 3, -1.0)), "gfid of run 'base-32x2-16000-s0' is -1"),
        (lambda t: t.assign(gfid=t["gfid"].where(t.index != 3, np.inf)), "gfid of run 'base-32x2-16000-s0' is inf"),
        (lambda t: t.assign(state="pending"), "none of 24 runs is done; nothing to fit yet"),
        (lambda t: t.assign(state="ready"), "none of 24 runs is done"),
    ],
)
@pytest.mark.parametrize("law", ["chinchilla", "power_floor"])
def test_a_table_that_cannot_be_fitted_is_one_line_and_code_2(
    scaling: Command, folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame], message: str, law: str
) -> None:
    imported(folder, change(table()))
    said = scaling("fit", "--law", law, *QUICK)
    assert said.code == 2
    assert message in said.line
    assert fits(folder) == []


def test_of_mixed_protocols_one_is_chosen_by_where_and_the_other_asked_for_its_opinion(
    scaling: Command, folder: Path
) -> None:
    """Trap 25 of shared/reference/traps.md: the optimum must hold under a second feature space."""
    rows = table()
    worse = rows["gfid"].where(rows["arm"] != "crt", rows["gfid"] * 2)
    other = rows.assign(gfid=worse * 3, protocol="gFID, dinov2", protocol_hash="dino")
    imported(folder, pd.concat([rows, other], ignore_index=True))
    said = scaling("fit", "--where", "protocol_hash=abc123", *QUICK)
    assert said.code == 0
    assert "24 of 24 runs" in said.out
    assert "gFID, dinov2 puts another arm first: base at" in said.words


def test_a_small_table_imported_from_csv_is_fitted_like_a_plan(scaling: Command, folder: Path) -> None:
    names = ["arm", "params", "tokens_seen", "compute", "gfid", "size", "images_seen", "tokens_per_image"]
    table()[[*names, "codebook_size"]].to_csv(folder / "t.csv", index=False)
    assert scaling("import", "t.csv", "--as", "theirs", "--set", "protocol=their FID").code == 0
    said = scaling("fit", *QUICK)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("theirs      24 of 24 runs")
    assert "protocol    their FID" in said.out
    assert "OPTIMUM BY GENERATOR COMPUTE" in said.out
    assert fits(folder)[0].plan == "theirs"
    held = scaling("fit", "--hold-out", "largest", *QUICK)
    assert "after the fact" in held.words, "an import does not say when its runs ended"


def test_tokens_alone_are_lengths_of_training(scaling: Command, folder: Path) -> None:
    table()[["arm", "params", "tokens_seen", "compute", "loss"]].to_csv(folder / "t.csv", index=False)
    scaling("import", "t.csv", "--as", "theirs")
    said = scaling("fit", "--metric", "loss", *QUICK)
    assert (said.code, said.err) == (0, "")
    assert "compute FLOPs as imported" in said.words
    assert "exact matmul" not in said.out
