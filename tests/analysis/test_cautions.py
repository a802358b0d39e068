"""Each caution appears where its cause is in the table, and only there."""

import numpy as np
import pandas as pd
import pytest
from synthetic_sweep import LAWS, sweep

from analysis.render import render_text
from analysis.report import fit_report

PAIR = {name: LAWS[name] for name in ("base", "crt")}


def warnings(table: pd.DataFrame) -> str:
    return "\n".join(fit_report(table, resamples=40).warnings)


def test_one_tokenizer_seed_is_said_and_two_are_not():
    assert "1 tokenizer seed an arm: intervals hold for THESE tokenizers" in warnings(sweep())
    assert "tokenizer seed" not in warnings(sweep(tokenizer_seeds=2, laws=PAIR))
    some = sweep(tokenizer_seeds=2, laws=PAIR)
    assert "1 tokenizer seed for crt:" in warnings(some[(some["arm"] == "base") | (some["tokenizer_seed"] == 0)])


def test_a_held_out_error_of_twice_the_residual_is_said():
    table = sweep(laws=PAIR, noise=0.004)
    assert "held-out" not in warnings(table)
    table.loc[(table["size"] == "64x3") & (table["arm"] == "base"), "gfid"] *= 1.1
    assert "base: held-out error is 3 times the residual; do not extrapolate it." in warnings(table)


def test_the_heads_share_is_said_where_codebooks_differ():
    said = warnings(sweep())
    assert "head is 36% of FLOPs at 16x2, K = 256 (12% at K = 64)" in said
    assert "head is" not in warnings(sweep(laws=PAIR))


def test_an_unchecked_learning_rate_is_said_until_it_is_probed():
    assert "learning rate unchecked across arms." in warnings(sweep(laws=PAIR))
    probed = sweep(laws=PAIR).assign(learning_rate=np.tile([1e-3, 2e-3, 4e-3], 8))
    assert "learning rate" not in warnings(probed)


def test_an_axis_with_two_values_is_said_and_one_with_three_is_not():
    assert "crt_weight has 2 values: no optimum along that axis." in warnings(sweep(laws=PAIR))
    three = PAIR | {"more": LAWS["crt"] | {"lam": 0.3}}
    assert "crt_weight" not in warnings(sweep(laws=three))


def test_a_lead_below_the_bias_floor_is_said():
    assert "below FID's bias floor (10)" in warnings(sweep(laws=PAIR).assign(bias_floor=10.0))
    assert "bias floor" not in warnings(sweep(laws=PAIR).assign(bias_floor=1e-6))


def test_lost_runs_are_counted_and_above_a_tenth_no_optimum_is_named():
    table = sweep()
    table.loc[[12], "state"] = "diverged"
    some = fit_report(table, resamples=20)
    assert any("diverged or degenerate: small-codebook 8%" in text for text in some.warnings)
    assert some.optimum
    table.loc[[13], "state"] = "degenerate"
    over = fit_report(table, resamples=20)
    text = render_text(over)
    assert "46 of 48 runs, 1 diverged, 1 degenerate" in text
    assert over.optimum == []
    assert over.leaders is None
    assert "none named: small-codebook lost 17% of its runs" in text
    assert "small-codebook" not in [one.arm for one in over.multipliers]


def test_repeated_data_is_said_above_four_epochs():
    assert "repeat their data" not in warnings(sweep(laws=PAIR))
    assert "24 runs repeat their data more than 4 times (up to 9.8)" in warnings(sweep(laws=PAIR).assign(epochs=9.8))


def test_another_winner_by_kid_is_flagged():
    assert "KID" not in warnings(sweep(laws=PAIR))
    table = sweep(laws=PAIR)
    table.loc[table["arm"] == "crt", "gkid"] *= 2
    report = fit_report(table, resamples=20)
    assert {one.best for one in report.optimum} == {"crt"}
    assert any(text.startswith("KID puts another arm first: base at") for text in report.warnings)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.drop(columns="gkid"), "no KID was measured"),
        (lambda t: t.assign(gkid=t["gkid"].where(t.index > 0, -0.001)), "KID is not positive in 1 runs"),
    ],
)
def test_an_optimum_by_fid_alone_is_said(change, reason):
    assert f"the optimum is by FID alone: {reason}" in warnings(change(sweep(laws=PAIR)))


def test_a_floor_that_may_be_zero_is_said():
    zero = {"base": LAWS["base"] | {"E": 0.5}, "crt": LAWS["crt"] | {"E": 0.5}}
    assert "floor not identified" in warnings(sweep(laws=zero))
    wide = sweep(laws={"more-tokens": LAWS["more-tokens"]}, noise=0.001)
    assert "floor not identified" not in warnings(wide)


def test_few_sizes_and_lengths_are_said():
    assert "4 sizes x 3 lengths an arm" in warnings(sweep(laws=PAIR))
    grid = sweep(
        laws=PAIR,
        sizes=((16, 2), (24, 2), (32, 2), (48, 3), (64, 3)),
        lengths=(8_000, 16_000, 32_000, 64_000, 128_000),
    )
    assert "sizes x" not in warnings(grid)
