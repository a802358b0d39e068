"""Each form: its derivatives, its coordinates, and that a fit finds it again."""

import numpy as np
import pandas as pd
import pytest

from analysis.fitting import FitError, fit_law
from analysis.laws import LAWS, envelope_exponent
from analysis.surface import Surface, best_knob

FORMS = [
    *LAWS.values(),
    Surface(("tokens_per_image",)),
    Surface(("tokens_per_image", "codebook_size", "crt_weight"), 0.1),
]


def some(law, rows=3, points=7):
    rng = np.random.default_rng(0)
    return np.exp(rng.uniform(0, 4, (points, len(law.inputs)))), rng.uniform(0.3, 1.2, (rows, len(law.parameters)))


@pytest.mark.parametrize("law", FORMS, ids=lambda law: f"{law.name}-{len(law.inputs)}")
def test_the_gradient_is_that_of_the_value(law):
    x, theta = some(law)
    gradient = law.gradient(x, theta)
    for i in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[:, i] = 1e-6
        slope = (law.value(x, theta + step) - law.value(x, theta - step)) / 2e-6
        np.testing.assert_allclose(gradient[..., i], slope, rtol=1e-6, atol=1e-8 * np.abs(gradient).max())


@pytest.mark.parametrize("law", FORMS, ids=lambda law: f"{law.name}-{len(law.inputs)}")
def test_centred_and_natural_parameters_are_the_same_curve(law):
    x, theta = some(law)
    logs, centre = np.log(x), np.full(len(law.inputs), 1.7)
    unit = np.array([2.0, 1.0, 0.5])
    inner = law.centred(theta, centre, unit)
    np.testing.assert_allclose(law.curve(logs - centre, inner)[0] * unit[:, None], law.value(x, theta), rtol=1e-10)
    np.testing.assert_allclose(law.natural(inner, centre, unit), theta, rtol=1e-12)


def test_every_law_says_what_its_parameters_are_and_where_it_comes_from():
    for law in FORMS:
        assert law.formula.startswith("y = ")
        assert law.source
        for parameter in law.parameters:
            assert parameter.unit in ("y", "x", "1")
            assert parameter.meaning
            assert parameter.name in law.formula or (law.name, parameter.name) == ("paper", "A")  # e^lambda


FORMULAS = {
    "power": lambda x, p: p["A"] * x ** -p["alpha"],
    "power_floor": lambda x, p: p["E"] + p["A"] * x ** -p["alpha"],
    "shifted": lambda x, p: p["E"] + p["A"] * (x + p["s"]) ** -p["alpha"],
    "m4": lambda x, p: p["E"] + p["A"] / (1 + (x / p["s"]) ** p["alpha"]),
    "broken": lambda x, p: (
        p["E"] + p["A"] * x ** -p["a1"] * (1 + (x / p["s"]) ** (1 / p["f"])) ** ((p["a1"] - p["a2"]) * p["f"])
    ),
}
TRUTHS = {
    "power": {"A": 5, "alpha": 0.4},
    "power_floor": {"E": 2, "A": 10, "alpha": 0.4},
    "shifted": {"E": 2, "A": 30, "alpha": 0.6, "s": 20},
    "m4": {"E": 2, "A": 8, "alpha": 0.7, "s": 40},
    "broken": {"E": 1, "A": 8, "a1": 0.2, "a2": 0.7, "s": 100, "f": 0.5},
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_noiseless_law_of_one_input_is_found_by_its_written_formula(name):
    x = np.geomspace(1, 1e4, 10)
    y = FORMULAS[name](x, TRUTHS[name])
    fit = fit_law(pd.DataFrame({"x": x, "y": y}), name, "x", "y")
    assert fit.params == pytest.approx(TRUTHS[name], rel=1e-3)
    np.testing.assert_allclose(fit.fitted, y, rtol=1e-7)


def test_kaplans_law_is_found_with_its_constants():
    """L = [(Nc/N)^(aN/aD) + Dc/D]^aD with Kaplan et al.'s numbers."""
    n, d = (one.ravel() for one in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 5)))
    y = ((6.4e13 / n) ** (0.076 / 0.103) + 1.8e13 / d) ** 0.103
    fit = fit_law(pd.DataFrame({"N": n, "D": d, "loss": y}), "kaplan")
    assert fit.params["alpha"] == pytest.approx(0.076, rel=1e-4)
    assert fit.params["beta"] == pytest.approx(0.103, rel=1e-4)
    assert fit.params["A"] ** (1 / fit.params["alpha"]) == pytest.approx(6.4e13, rel=1e-2)
    assert fit.params["B"] ** (1 / fit.params["beta"]) == pytest.approx(1.8e13, rel=1e-2)


def test_the_envelope_exponent_is_the_slope_of_the_best_reachable_value():
    compute = np.geomspace(1e8, 1e12, 9)
    best = [min(30 * n**-0.4 + 90 * (c / n) ** -0.35 for n in np.geomspace(1, c, 4001)) for c in compute]
    slope = np.polyfit(np.log(compute), np.log(best), 1)[0]
    assert -slope == pytest.approx(float(envelope_exponent(0.4, 0.35)), abs=1e-4)


# ------------------------------------------------------------------------------------------- surface


def valley(noise=0.0, weights=False, seed=0):
    """gFID = E + R T^-r K^-q M^v + A C^-a T^s K^u M^-w over a full grid."""
    axes = [np.geomspace(1e9, 1e12, 6), np.array([9, 16, 25, 36, 64.0]), np.array([64, 256, 1024.0])]
    axes += [np.array([0, 0.1, 0.4, 1.6])] if weights else []
    c, t, k, *rest = (one.ravel() for one in np.meshgrid(*axes, indexing="ij"))
    lam = rest[0] if rest else np.zeros_like(c)
    m = 1 + lam / 0.1
    y = 1.5 + 120 * t**-0.8 * k**-0.15 * m**0.05 + 900 * c**-0.3 * t**0.5 * k**0.1 * m**-0.12
    y = y * np.exp(noise * np.random.default_rng(seed).standard_normal(len(c)))
    return pd.DataFrame({"compute": c, "tokens_per_image": t, "codebook_size": k, "crt_weight": lam, "gfid": y})


def test_a_noiseless_surface_is_found_and_its_optimum_is_the_least_value():
    table = valley()
    fit = fit_law(table, "surface", ["C", "T", "K"], "gfid")
    expected = {"E": 1.5, "R": 120, "A": 900, "a": 0.3, "r": 0.8, "q": 0.15, "s": 0.5, "u": 0.1}
    assert {name: fit.params[name] for name in expected} == pytest.approx(expected, rel=1e-3)
    assert fit.params["move_T"] == pytest.approx(0.3 / 1.3, rel=1e-3)
    compute = np.array([1e10, 1e11])
    found = best_knob(fit.law, fit.solution.theta, "tokens_per_image", compute, {"codebook_size": 256.0})
    assert found.exponent[0] == pytest.approx(0.3 / 1.3, rel=1e-3)
    tokens = np.geomspace(4, 400, 20_001)
    for c, best in zip(compute, found.value[0], strict=True):
        y = 1.5 + 120 * tokens**-0.8 * 256**-0.15 + 900 * c**-0.3 * tokens**0.5 * 256**0.1
        assert best == pytest.approx(tokens[np.argmin(y)], rel=1e-3)


def test_a_weight_of_zero_is_a_value_like_any_other_on_the_surface():
    fit = fit_law(valley(noise=0.005, weights=True), "surface", ["C", "T", "K", "lambda"], "gfid")
    assert fit.params["w"] == pytest.approx(0.12, abs=0.03)
    assert fit.residual == pytest.approx(0.005, rel=0.1)
    zero = pd.DataFrame({"C": [1e10], "T": [16.0], "K": [256.0], "lambda": [0.0]})
    assert fit.predict(zero)[0] == pytest.approx(
        float(
            valley(weights=True)
            .query("compute > 3e9 and tokens_per_image == 16 and codebook_size == 256 and crt_weight == 0")["gfid"]
            .max()
        ),
        rel=2,
    )


def test_without_a_balance_a_knob_has_no_interior_optimum():
    law = Surface(("tokens_per_image",))
    harder_and_worse = np.array([[1.0, 50, 900, 0.3, -0.2, 0.5]])
    found = best_knob(law, harder_and_worse, "tokens_per_image", np.array([1e10]), {})
    assert np.isnan(found.value).all()
    assert np.isnan(found.exponent).all()


@pytest.mark.parametrize("x", [["C", "images_seen"], ["C"], ["C", "T", "T"]])
def test_a_surface_over_something_else_is_refused(x):
    with pytest.raises(FitError, match="a surface takes compute and then some of"):
        fit_law(valley().assign(images_seen=1.0), "surface", x, "gfid")
