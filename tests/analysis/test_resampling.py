import numpy as np
import pytest
from synthetic_sweep import LAWS, sweep, true_value

from analysis.fitting import fit_law, interval
from analysis.resampling import Noise, case_weights, estimate_noise, noise_values


def test_case_weights_keep_the_number_of_rows():
    weights = case_weights(np.random.default_rng(0), np.zeros(12), 50)
    assert weights.shape == (50, 12)
    assert (weights.sum(axis=1) == 12).all()


def test_noise_without_clusters_is_the_residual_spread_on_its_degrees_of_freedom():
    r = np.array([0.01, -0.02, 0.015, -0.005, 0.0, 0.0])
    (noise,) = estimate_noise([r], [np.zeros(6)], [5])
    assert noise.run == pytest.approx(np.sqrt(r @ r))
    assert (noise.run_dof, noise.between_dof, noise.cluster) == (1, 0, 0.0)


def test_the_cluster_effect_is_told_apart_from_the_run_noise():
    rng = np.random.default_rng(0)
    residuals, clusters = [], []
    for _ in range(20):
        shift = 0.05 * rng.standard_normal(4)
        residuals.append((shift[:, None] + 0.01 * rng.standard_normal((4, 12))).ravel())
        residuals[-1] -= residuals[-1].mean()
        clusters.append(np.repeat(np.arange(4), 12))
    noise = estimate_noise(residuals, clusters, [5] * 20)
    assert noise[0].cluster == pytest.approx(0.05, rel=0.2)
    assert np.mean([one.run for one in noise]) == pytest.approx(0.01, rel=0.1)


def test_runs_of_one_cluster_move_together():
    noise = Noise(run=0.001, run_dof=1000, between=12 * 0.05**2, between_dof=1000, size=12)
    clusters = np.repeat([0, 1], 6)
    logs = np.log(noise_values(np.random.default_rng(0), np.ones(12), clusters, noise, 2000))
    together = np.corrcoef(logs.T)
    assert together[0, 5] > 0.99
    assert abs(together[0, 6]) < 0.1
    assert logs.std() == pytest.approx(0.05, rel=0.1)


def test_noise_drawn_on_few_degrees_of_freedom_has_student_tails():
    values = noise_values(np.random.default_rng(0), np.ones(1), np.zeros(1), Noise(0.01, 7), 100_000)
    assert np.quantile(np.log(values), 0.975) == pytest.approx(0.01 * 2.365, rel=0.03)


@pytest.mark.parametrize("tokenizer_seeds", [1, 3])
def test_intervals_of_a_small_grid_cover_the_truth_about_as_often_as_they_say(tokenizer_seeds):
    """60 sweeps of 4 sizes x 3 lengths: with three tokenizer seeds, their spread counts as noise too."""
    law, covered = {"base": LAWS["base"]}, []
    for seed in range(60):
        rows = sweep(seed=seed, laws=law, tokenizer_seeds=tokenizer_seeds, seed_noise=0.02 * (tokenizer_seeds > 1))
        fit = fit_law(rows, y="gfid", cluster="tokenizer_seed")
        draws = fit.draws(100, seed).solution
        inside, edge = np.array([[60_000, 40_000 * 16.0]]), np.array([[164_000, 64_000 * 16.0]])
        for x in (inside, edge):
            values = fit.law.value(x, draws.theta)[:, 0]
            low, high = interval(values)
            covered.append(low <= true_value(LAWS["base"], x[0, 0], x[0, 1]) <= high)
    assert 0.88 <= np.mean(covered) <= 0.995
