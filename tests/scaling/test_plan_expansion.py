"""From a plan to its runs: arms, axes, zip, exclude, seeds, names."""

from __future__ import annotations

import math
import os

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from models.settings import TokenizerSettings
from models.sizes import TransformerShape, parse_size
from scaling.plan import Plan, PlanError, parse_plan
from scaling.run_names import count_name, label, size_name
from scaling.sections import parse_count

HEAD = "plan: a\nextends: tiny@1\n"


def plan(text: str) -> Plan:
    return parse_plan(HEAD + text)


def names(text: str) -> list[str]:
    return [run.name for run in plan(text).runs]


def first_lines(text: str) -> list[str]:
    with pytest.raises(PlanError) as caught:
        plan(text)
    return [str(problem).splitlines()[0] for problem in caught.value.problems]


def test_a_plan_without_axes_is_one_run() -> None:
    assert names("") == ["base/64x3/64k/t0.g0"]
    assert plan("").axes == {}


def test_arms_cross_with_sizes_and_lengths_in_the_plans_order() -> None:
    text = """
tokenizer: {arms: {crt: {crt_weight: 0.1}, base: {}}}
generator: {images_seen: [32k, 16k], size: [64x3, 16x2]}
"""
    assert names(text) == [
        "crt/64x3/32k/t0.g0",
        "crt/64x3/16k/t0.g0",
        "crt/16x2/32k/t0.g0",
        "crt/16x2/16k/t0.g0",
        "base/64x3/32k/t0.g0",
        "base/64x3/16k/t0.g0",
        "base/16x2/32k/t0.g0",
        "base/16x2/16k/t0.g0",
    ]
    assert plan(text).axes == {
        "tokenizer.arm": ["crt", "base"],
        "generator.size": ["64x3", "16x2"],
        "generator.images_seen": [32000, 16000],
    }


def test_lists_without_arms_name_the_arm_by_their_values() -> None:
    runs = plan("tokenizer: {crt_weight: [0, 0.1], codebook_size: [64, 256]}").runs
    assert [run.arm for run in runs] == [
        "codebook_size=64,crt_weight=0",
        "codebook_size=64,crt_weight=0.1",
        "codebook_size=256,crt_weight=0",
        "codebook_size=256,crt_weight=0.1",
    ]
    assert [(run.tokenizer.codebook_size, run.tokenizer.crt_weight) for run in runs] == [
        (64, 0.0),
        (64, 0.1),
        (256, 0.0),
        (256, 0.1),
    ]


def test_lists_beside_arms_are_added_to_the_arms_name() -> None:
    runs = plan("tokenizer: {codebook_size: [64], arms: {base: {}, crt: {crt_weight: 0.1}}}").runs
    assert [run.arm for run in runs] == ["base,codebook_size=64", "crt,codebook_size=64"]


def test_further_axes_of_the_generator_follow_its_length_in_the_name() -> None:
    assert names("generator: {batch_images: [32, 64]}") == [
        "base/64x3/64k/batch_images=32/t0.g0",
        "base/64x3/64k/batch_images=64/t0.g0",
    ]


def test_an_arm_changes_only_what_it_names() -> None:
    text = "tokenizer: {lr: 2e-3, arms: {base: {}, crt: {crt_weight: 0.1, crt: {layers: 1}}}}"
    base, crt = (run.tokenizer for run in plan(text).runs)
    assert crt == base.model_copy(update={"crt_weight": 0.1, "crt": base.crt.model_copy(update={"layers": 1})})
    assert base.lr == 2e-3


def test_a_list_that_is_a_value_sweeps_nothing() -> None:
    (run,) = plan("tokenizer: {betas: [0.8, 0.9]}").runs
    assert run.tokenizer.betas == (0.8, 0.9)


def test_a_range_is_a_value() -> None:
    (run,) = plan("data: {scene: {objects: 1-3}}").runs
    assert run.data.scene.objects == (1, 3)


def test_arms_with_equal_settings_are_refused() -> None:
    assert first_lines("tokenizer: {arms: {base: {}, same: {crt_weight: 0}}}") == [
        "plan.yaml:3:30: tokenizer.arms.same: has the same settings as arm base; change or remove one"
    ]


@pytest.mark.parametrize(
    ("arms", "line"),
    [
        ("{base: {codebook_size: [64, 256]}}", "tokenizer.arms.base.codebook_size: takes one value here"),
        ("{base: {crt_weight: 1}}", "tokenizer.arms.base.crt_weight: is also a list axis of the section"),
        ("{'a/b': {}}", "tokenizer.arms.a/b: an arm's name has letters"),
        ("{base: {arms: {}}}", "tokenizer.arms.base.arms: unknown key"),
        ("{}", "tokenizer.arms: name at least one arm"),
        ("[base]", "tokenizer.arms: expected keys and values below it, got a list"),
    ],
)
def test_a_faulty_arm_is_refused(arms: str, line: str) -> None:
    (found,) = first_lines(f"tokenizer: {{crt_weight: [0, 0.1], arms: {arms}}}")
    assert line in found


def test_zipped_axes_go_together() -> None:
    text = "generator: {images_seen: [16k, 32k], warmup_images: [null, 2k], size: [16x2, 64x3]}\n"
    runs = plan(text + "zip: [[generator.images_seen, generator.warmup_images]]").runs
    assert [(r.generator.size.width, r.generator.images_seen, r.generator.warmup_images) for r in runs] == [
        (16, 16000, None),
        (16, 32000, 2000),
        (64, 16000, None),
        (64, 32000, 2000),
    ]


def test_axes_of_both_stages_may_be_zipped() -> None:
    text = "tokenizer: {tokens_per_image: [16, 64]}\ngenerator: {batch_images: [64, 16]}\n"
    runs = plan(text + "zip: [[tokenizer.tokens_per_image, generator.batch_images]]").runs
    assert [(r.tokenizer.tokens_per_image, r.generator.batch_images) for r in runs] == [(16, 64), (64, 16)]


@pytest.mark.parametrize(
    ("groups", "line"),
    [
        ("[[generator.images_seen, generator.size]]", "zip[0]: zipped lists must be equally long: "),
        ("[[generator.images_seen]]", "zip[0]: a group ties two axes or more"),
        ("[[generator.images_sen, generator.size]]", "is no list in this plan (did you mean generator.images_seen?)"),
        ("[[generator.batch_images, generator.size]]", "`generator.batch_images` is no list in this plan; lists are: "),
        ("[[generator.size, generator.size]]", "zip[0]: generator.size stands in zip twice"),
        ("[generator.images_seen, generator.size]", "zip: expected a list of groups"),
        ("[[generator.size, generator.warmup_images]]", "zip[0]: two rows of the zipped lists are equal"),
    ],
)
def test_a_faulty_zip_is_refused(groups: str, line: str) -> None:
    text = "generator: {images_seen: [16k, 32k, 64k], size: [64x3, {width: 64, layers: 3}], warmup_images: [1k, 1k]}\n"
    found = first_lines(f"{text}zip: {groups}")
    assert any(line in one for one in found)


def test_exclude_takes_keys_together_and_values_apart() -> None:
    text = """
tokenizer: {arms: {base: {}, crt: {crt_weight: 0.1}}}
generator: {size: [16x2, 32x2, 64x3], images_seen: [16k, 32k]}
exclude:
  - {generator.size: [32x2, {width: 64, layers: 3}], generator.images_seen: 16k}
  - {tokenizer.arm: crt, generator.size: 16x2}
"""
    assert names(text) == [
        "base/16x2/16k/t0.g0",
        "base/16x2/32k/t0.g0",
        "base/32x2/32k/t0.g0",
        "base/64x3/32k/t0.g0",
        "crt/32x2/32k/t0.g0",
        "crt/64x3/32k/t0.g0",
    ]


def test_a_condition_may_name_what_arms_vary() -> None:
    text = "tokenizer: {arms: {base: {}, crt: {crt_weight: 0.1}}}\nexclude: [{tokenizer.crt_weight: 0.1}]"
    assert names(text) == ["base/64x3/64k/t0.g0"]


def test_a_condition_may_name_one_setting_of_an_arm() -> None:
    text = "tokenizer: {codebook_size: [64, 256]}\nexclude: [{tokenizer.arm: codebook_size=64}]"
    assert names(text) == ["codebook_size=256/64x3/64k/t0.g0"]


@pytest.mark.parametrize(
    ("exclude", "line"),
    [
        ("[{generator.size: [16x2, 64x3]}]", "3:1: exclude: leaves no run; narrow a condition"),
        ("[{generator.size: 111M}]", "3:28: exclude[0].generator.size: no run has 111M; runs have 16x2, 64x3"),
        ("[{generator.size: big}]", "3:28: exclude[0].generator.size: size 'big' is neither"),
        ("[{generator.images_seen: x}]", "3:35: exclude[0].generator.images_seen: expected a whole number, got `x`"),
        (
            "[{tokenizer.arm: bass}]",
            "3:27: exclude[0].tokenizer.arm: no run has bass (did you mean base?)",
        ),
        ("[{generator.sise: 16x2}]", "3:12: exclude[0]: `generator.sise` is no axis; a condition takes tokenizer.arm"),
        ("[{tokenizer.betas: 0.9}]", "3:12: exclude[0]: `tokenizer.betas` is no axis"),
        ("[{}]", "3:11: exclude[0]: a condition names keys and values"),
        ("{generator.size: 16x2}", "3:1: exclude: expected a list of conditions"),
    ],
)
def test_a_faulty_exclude_is_refused(exclude: str, line: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan(f"exclude: {exclude}\ngenerator: {{size: [16x2, 64x3]}}")
    assert str(caught.value).startswith(f"plan.yaml:{line}")


def test_a_condition_that_no_run_fulfils_as_a_whole_is_refused() -> None:
    text = "tokenizer: {arms: {base: {}, crt: {crt_weight: 0.1}}}\n"
    (line,) = first_lines(text + "exclude: [{tokenizer.arm: base, tokenizer.crt_weight: 0.1}]")
    assert line == "plan.yaml:4:11: exclude[0]: no run fulfils this condition"


def test_seeds_of_both_stages_cross() -> None:
    assert names("seeds: {tokenizer: [0, 3], generator: [1, 2]}") == [
        "base/64x3/64k/t0.g1",
        "base/64x3/64k/t0.g2",
        "base/64x3/64k/t3.g1",
        "base/64x3/64k/t3.g2",
    ]


def test_one_seed_may_be_written_without_a_list() -> None:
    assert names("seeds: {tokenizer: 5}") == ["base/64x3/64k/t5.g0"]


def test_a_later_entry_adds_replicates_and_shares_what_is_there() -> None:
    text = """
tokenizer: {arms: {base: {}, crt: {crt_weight: 0.1}}}
seeds:
  - {tokenizer: [0], generator: [0, 1], evaluation: [7]}
  - {where: {tokenizer.arm: crt}, tokenizer: [0, 1], generator: [0]}
  - {where: {tokenizer.arm: crt}, tokenizer: [0], generator: [0], evaluation: [7, 8]}
"""
    found = {run.name: [one.seed for one in run.evaluations] for run in plan(text).runs}
    assert found == {
        "base/64x3/64k/t0.g0": [7],
        "base/64x3/64k/t0.g1": [7],
        "crt/64x3/64k/t0.g0": [7, 8],
        "crt/64x3/64k/t0.g1": [7],
        "crt/64x3/64k/t1.g0": [7],
    }


def test_guidance_and_evaluation_seeds_are_evaluations_of_one_run() -> None:
    (run,) = plan("evaluation: {guidance: [1, 1.5]}\nseeds: {evaluation: [0, 1]}").runs
    assert [(one.settings.guidance, one.seed) for one in run.evaluations] == [(1.0, 0), (1.0, 1), (1.5, 0), (1.5, 1)]


@pytest.mark.parametrize(
    ("seeds", "line"),
    [
        ("{tokenizer: [0, 0]}", "3:20: seeds.tokenizer: a seed is given twice"),
        ("{tokenizer: [-1]}", "3:20: seeds.tokenizer: a seed is a whole number from 0, got -1"),
        ("{tokenizer: []}", "3:20: seeds.tokenizer: give at least one seed"),
        ("{tokenizer: [a]}", "3:21: seeds.tokenizer: expected a whole number, got `a`"),
        ("{tokeniser: [0]}", "3:9: seeds.tokeniser: unknown key (did you mean tokenizer?)"),
        ("[{wher: {}}]", "3:10: seeds[0].wher: unknown key (did you mean where?)"),
        ("[{where: {tokenizer.arm: crt}}]", "3:33: seeds[0].where.tokenizer.arm: no run has crt"),
        ("[{where: {generator.size: 16x2}}]", "3:1: seeds: no entry gives seeds to base/64x3/64k (1 of 2 points"),
        ("[]", "3:1: seeds: an empty list makes no run"),
        ("", "3:1: seeds: empty section"),
    ],
)
def test_faulty_seeds_are_refused(seeds: str, line: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan(f"seeds: {seeds}\ngenerator: {{size: [16x2, 64x3]}}")
    assert str(caught.value).startswith(f"plan.yaml:{line}")


def test_extending_an_axis_keeps_the_names_and_settings_of_the_runs_there_were() -> None:
    small = plan("tokenizer: {arms: {base: {}}}\ngenerator: {size: [16x2], images_seen: [16k]}")
    large = plan(
        "tokenizer: {arms: {new: {width: 32}, base: {}}}\ngenerator: {size: [64x3, 16x2], images_seen: [16k, 32k]}\n"
        "seeds: {tokenizer: [0, 1]}"
    )
    assert set(small.runs) <= set(large.runs)


def test_resolved_is_a_plan_with_the_same_runs() -> None:
    text = """
data: {scene: {objects: 1-2}}
tokenizer: {codebook_size: [64, 256], lr: 1e-5, arms: {base: {}, crt: {crt_weight: 0.1, crt: {layers: 1}}}}
generator:
  size: [16x2, {width: 128, layers: 2, heads: 8}]
  images_seen: [16k, 32k]
  warmup_images: [null, 1k]
zip: [[generator.images_seen, generator.warmup_images]]
exclude: [{tokenizer.arm: crt, tokenizer.codebook_size: 64}]
seeds: [{generator: [0, 1]}, {where: {tokenizer.arm: crt}, tokenizer: [1]}]
evaluation: {guidance: [1, 1.5]}
resources: {device: {name: h100, mfu: 0.4}}
"""
    first = plan(text)
    again = parse_plan(yaml.safe_dump(first.resolved(), sort_keys=False))
    assert again.runs == first.runs
    assert again.resources == first.resources
    assert again.axes == first.axes
    assert again.resolved() == first.resolved()


def test_resolved_writes_out_defaults_that_no_preset_gives() -> None:
    resolved = parse_plan("plan: bare\n").resolved()
    assert resolved["generator"]["size"] == {"width": 64, "layers": 3, "heads": 4, "multiple_of": 16}
    assert resolved["resources"]["retries"] == 2
    assert resolved["evaluation"]["reference"] == {"split": "held-out", "images": 10_000}
    assert parse_plan(yaml.safe_dump(resolved)).runs == parse_plan("plan: bare\n").runs


def test_changing_what_resolved_returns_changes_no_plan() -> None:
    found = plan("tokenizer: {codebook_size: [64]}")
    found.resolved()["tokenizer"]["codebook_size"].append(1)
    assert found.resolved()["tokenizer"]["codebook_size"] == [64]


def test_where_data_lie_is_the_only_difference_of_two_locations(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "data: {source: npz, path: '${ROOT}/a.npz'}\nevaluation: {features: cnn}"
    found = []
    for root in ("/one", "/two"):
        monkeypatch.setitem(os.environ, "ROOT", root)
        found.append(plan(text))
    assert [one.data.path for one in found] == ["/one/a.npz", "/two/a.npz"]
    assert found[0].sha256 == found[1].sha256


WIDTHS = st.lists(st.sampled_from([16, 32, 48, 64, 80, 96, 112]), min_size=1, max_size=4, unique=True)
COUNTS = st.lists(st.integers(64, 10**8), min_size=1, max_size=4, unique=True)
CODES = st.lists(st.sampled_from([16, 64, 256, 1024]), min_size=1, max_size=3, unique=True)
SEEDS = st.lists(st.integers(0, 10**6), min_size=1, max_size=3, unique=True)


@given(widths=WIDTHS, lengths=COUNTS, codes=CODES, arms=st.integers(0, 3), seeds=SEEDS, guidance=CODES)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_the_grid_is_the_product_of_its_axes_and_every_name_is_its_own(
    widths: list[int], lengths: list[int], codes: list[int], arms: int, seeds: list[int], guidance: list[int]
) -> None:
    document: dict[str, object] = {"plan": "p", "seeds": {"tokenizer": seeds, "evaluation": seeds}}
    document["tokenizer"] = {"codebook_size": codes, "arms": {f"a{n}": {"crt_weight": n / 8} for n in range(arms)}}
    if not arms:
        document["tokenizer"] = {"codebook_size": codes}
    document["generator"] = {"size": [f"{width}x2" for width in widths], "images_seen": lengths}
    document["evaluation"] = {"guidance": guidance}
    found = parse_plan(yaml.safe_dump(document))
    assert len(found.runs) == math.prod(map(len, (widths, lengths, codes, seeds))) * max(1, arms)
    assert len({run.name for run in found.runs}) == len(found.runs)
    assert all(len(run.evaluations) == len(guidance) * len(seeds) for run in found.runs)
    settings_of: dict[str, TokenizerSettings] = {}
    for run in found.runs:
        assert settings_of.setdefault(run.arm, run.tokenizer) == run.tokenizer


@given(count=st.integers(1, 10**12))
@settings(derandomize=True)
def test_the_name_of_a_count_is_read_back_as_that_count(count: int) -> None:
    name = count_name(count)
    assert (int(name) if name.isdigit() else parse_count(name)) == count


@pytest.mark.parametrize(
    ("count", "name"), [(64_000, "64k"), (11_500_000, "11.5M"), (65_536, "65536"), (999, "999"), (2 * 10**9, "2G")]
)
def test_a_count_has_its_shortest_exact_name(count: int, name: str) -> None:
    assert count_name(count) == name


@pytest.mark.parametrize("text", ["11.5M", "1k", "1_000k", "0.5G", "2B"])
def test_a_suffix_is_a_power_of_ten(text: str) -> None:
    powers = {"k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
    assert parse_count(text) == float(text[:-1].replace("_", "")) * powers[text[-1]]


@pytest.mark.parametrize("size", ["52M", "111M", "775M", "16x2", "64x3", "128x4", "1024x2"])
def test_the_name_of_a_size_is_read_back_as_that_size(size: str) -> None:
    assert size_name(parse_size(size)) == size


def test_a_shape_that_no_rule_gives_is_named_in_full() -> None:
    assert size_name(TransformerShape(width=64, layers=3, heads=8)) == "64x3h8"
    assert size_name(TransformerShape(width=64, layers=3, heads=8, multiple_of=32)) == "64x3h8m32"
    assert size_name(TransformerShape(width=72, layers=3, heads=6)) == "72x3h6"


@pytest.mark.parametrize(
    ("value", "name"), [(4.0, "4"), (0.1, "0.1"), (1e-5, "1e-05"), (None, "default"), ("l2", "l2")]
)
def test_a_value_is_named_exactly(value: object, name: str) -> None:
    assert label(value) == name
