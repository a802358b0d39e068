"""Fingerprints, the graph of a plan, what its stages cost, and how long a graph takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.fields import Settings, later
from models.settings import DataSettings
from scaling import stages
from scaling.plan import Plan, parse_plan
from scaling.runs import Run
from scaling.stages import KINDS, Graph, Stage, build_graph, critical_path, fingerprint, makespan

SOURCE = {"source": "shapes", "recipe": 1}
BASE = """
plan: a
extends: tiny@1
data: {train_images: 4096, validation_images: 512}
tokenizer: {codebook_size: 64, images_seen: 6400, crt: {flops_matched: false}, arms: {base: {}}}
generator: {size: 16x2, images_seen: 3200}
evaluation: {samples: 100, reference: {split: held-out, images: 200}}
"""


def plan(changes: Mapping[str, str] | None = None, text: str = BASE) -> Plan:
    """A plan with words replaced: plan({"16x2": "32x2"})."""
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    return parse_plan(text)


def graph(
    changes: Mapping[str, str] | None = None, text: str = BASE, *, source: Mapping[str, Any] = SOURCE, classes: int = 5
) -> Graph:
    return build_graph(plan(changes, text), source, classes, "weights")


def keys(graph: Graph) -> dict[str, list[str]]:
    """Fingerprints by kind, evaluations by their target."""
    found: dict[str, list[str]] = {}
    for key, stage in graph.stages.items():
        kind = stage.identity["settings"].get("target", stage.kind)
        found.setdefault(kind, []).append(key)
    return found


def changed(before: Graph, after: Graph) -> set[str]:
    """Kinds of which no stage stayed."""
    old, new = keys(before), keys(after)
    assert set(old) == set(new)
    return {kind for kind in old if not set(old[kind]) & set(new[kind])}


TOKENIZER_ON = {"tokenizer", "tokens", "generator", "reconstruction", "generation"}
GENERATOR_ON = {"generator", "generation"}
EVERYTHING = {"features"} | TOKENIZER_ON


# --------------------------------------------------------------------------------------- fingerprints


def test_the_order_of_keys_is_no_part_of_a_fingerprint() -> None:
    one = {"kind": "tokens", "settings": {"a": 1, "b": [1, 2]}}
    other = {"settings": {"b": [1, 2], "a": 1}, "kind": "tokens"}
    assert fingerprint(one) == fingerprint(other)
    assert len(fingerprint(one)) == 64
    assert fingerprint({**one, "settings": {"a": 1, "b": [2, 1]}}) != fingerprint(one)


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, object(), b"bytes"])
def test_what_json_cannot_say_exactly_has_no_fingerprint(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        fingerprint({"settings": value})


def test_equal_plans_make_equal_graphs() -> None:
    assert list(graph().stages) == list(graph().stages)
    assert changed(graph(), graph()) == set()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("codebook_size: 64", "codebook_size: 128", TOKENIZER_ON),
        ("images_seen: 6400", "images_seen: 12800", TOKENIZER_ON),
        ("arms: {base: {}}", "arms: {base: {crt_weight: 0.1}}", TOKENIZER_ON),
        ("arms: {base: {}}", "arms: {base: {lr: 2e-3}}", TOKENIZER_ON),
        ("arms: {base: {}}", "arms: {base: {downsample: 2, tokens_per_image: 64}}", TOKENIZER_ON),
        ("arms: {base: {}}", "arms: {base: {}}, precision: bf16", TOKENIZER_ON),
        ("arms: {base: {}}", "arms: {base: {}}, revive: {every: 7}", TOKENIZER_ON),
        ("train_images: 4096", "train_images: 8192", TOKENIZER_ON),
        ("validation_images: 512", "validation_images: 1024", TOKENIZER_ON),
        ("evaluation:", "seeds: {tokenizer: [1]}\nevaluation:", TOKENIZER_ON),
        ("arms: {base: {}}", "arms: {base: {tokens_per_image: 36}}", TOKENIZER_ON - {"tokenizer"}),
        ("size: 16x2", "size: 16x3", GENERATOR_ON),
        ("images_seen: 3200", "images_seen: 6400", GENERATOR_ON),
        ("size: 16x2", "size: 16x2, lr: {peak: 1e-3}", GENERATOR_ON),
        ("size: 16x2", "size: 16x2, batch_images: 32", GENERATOR_ON),
        ("size: 16x2", "size: 16x2, warmup_images: 640", GENERATOR_ON),
        ("evaluation:", "seeds: {generator: [1]}\nevaluation:", GENERATOR_ON),
        ("evaluation:", "seeds: {evaluation: [1]}\nevaluation:", {"generation"}),
        ("samples: 100", "samples: 100, guidance: 1.5", {"generation"}),
        ("samples: 100", "samples: 100, temperature: 0.9", {"generation"}),
        ("samples: 100", "samples: 101", {"reconstruction", "generation"}),
        ("samples: 100", "samples: 100, metrics: [fid]", {"reconstruction", "generation"}),
        ("images: 200", "images: 201", {"features", "reconstruction", "generation"}),
        ("split: held-out", "split: train", {"features", "reconstruction", "generation"}),
        ("evaluation: {", "evaluation: {features: cnn, ", {"features", "reconstruction", "generation"}),
    ],
)
def test_a_setting_changes_the_stages_whose_results_it_changes_and_no_other(
    old: str, new: str, expected: set[str]
) -> None:
    assert changed(graph(), graph({old: new})) == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("plan: a", "plan: another-name"),
        ("base: {}", "other-arm: {}"),
        ("evaluation:", "resources: {executor: inline, workers: 7, retries: 0}\nevaluation:"),
        ("evaluation:", "resources: {each: {cpus: 2, gpus: 1}, checkpoint_seconds: 1}\nevaluation:"),
        ("train_images: 4096", "source: image_folder, path: /somewhere, train_images: 4096"),
    ],
)
def test_names_paths_and_resources_change_no_fingerprint(old: str, new: str) -> None:
    text = BASE.replace("evaluation: {", "evaluation: {features: cnn, ")
    assert set(graph(text=text).stages) == set(graph({old: new}, text).stages)


@pytest.mark.parametrize("kind", KINDS)
def test_a_raised_recipe_changes_its_stages_and_all_that_stand_on_them(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = graph()
    monkeypatch.setattr(stages, "RECIPES", {**stages.RECIPES, kind: 2})
    below = {
        "features": {"features", "reconstruction", "generation"},
        "tokenizer": TOKENIZER_ON,
        "tokens": {"tokens", "generator", "generation"},
        "generator": GENERATOR_ON,
        "evaluation": {"reconstruction", "generation"},
    }
    assert changed(before, graph()) == below[kind]


def test_other_images_change_everything_other_classes_what_is_drawn_by_class() -> None:
    before = graph()
    assert changed(before, graph(source={**SOURCE, "recipe": 2})) == EVERYTHING
    assert changed(before, graph(classes=6)) == GENERATOR_ON
    other = build_graph(plan(), SOURCE, 5, "other weights")
    assert changed(before, other) == {"features", "reconstruction", "generation"}


def test_a_field_added_later_leaves_the_fingerprint_alone_at_its_default() -> None:
    class Before(Settings):
        width: int = 8

    class After(Before):
        dropout: float = later(0.0, "added after results existed")

    old = fingerprint({"settings": Before().identity()})
    assert fingerprint({"settings": After().identity()}) == old
    assert fingerprint({"settings": After(dropout=0.0).identity()}) == old
    assert fingerprint({"settings": After(dropout=0.1).identity()}) != old


# ---------------------------------------------------------------------------------------------- graph


def test_a_plan_with_one_run_has_one_stage_of_each_kind_and_two_evaluations() -> None:
    found = graph()
    assert {kind: len(of) for kind, of in keys(found).items()} == dict.fromkeys(EVERYTHING, 1)
    by_kind = {kind: of[0] for kind, of in keys(found).items()}
    (run,) = found.runs
    assert run.stages == {
        "tokenizer": by_kind["tokenizer"],
        "tokens": by_kind["tokens"],
        "generator": by_kind["generator"],
        "reconstruction": by_kind["reconstruction"],
        "evaluations": [by_kind["generation"]],
    }
    assert run.evaluations == ({"evaluation_seed": 0, "guidance": 1.0},)


def test_edges_are_the_parents_of_each_stage() -> None:
    found = graph()
    kind = {key: name for name, of in keys(found).items() for key in of}
    assert {(kind[child], kind[parent]) for child, parent in found.edges()} == {
        ("tokens", "tokenizer"),
        ("generator", "tokens"),
        ("reconstruction", "tokenizer"),
        ("reconstruction", "features"),
        ("generation", "generator"),
        ("generation", "tokenizer"),
        ("generation", "features"),
    }
    children = found.children()
    assert {(child, parent) for parent, many in children.items() for child in many} == set(found.edges())


def test_parents_come_before_their_children_in_every_graph() -> None:
    found = graph({"size: 16x2": "size: [16x2, 32x2]", "evaluation:": "seeds: {tokenizer: [0, 1]}\nevaluation:"})
    order = list(found.stages)
    assert all(order.index(parent) < order.index(child) for child, parent in found.edges())


def test_runs_share_every_stage_that_is_equal() -> None:
    found = graph({"size: 16x2": "size: [16x2, 32x2, 48x2]", "evaluation:": "seeds: {generator: [0, 1]}\nevaluation:"})
    assert len(found.runs) == 6
    counts = {kind: len(of) for kind, of in keys(found).items()}
    assert counts == {
        "features": 1,
        "tokenizer": 1,
        "tokens": 1,
        "reconstruction": 1,
        "generator": 6,
        "generation": 6,
    }


def test_more_tokens_by_resolution_share_the_tokenizer_and_encode_larger_images() -> None:
    found = graph({"arms: {base: {}}": "arms: {base: {}, more: {tokens_per_image: 36}}"})
    base, more = found.runs
    assert base.stages["tokenizer"] == more.stages["tokenizer"]
    assert base.stages["tokens"] != more.stages["tokens"]
    settings_of = [found.stages[run.stages["tokens"]].identity["settings"] for run in (base, more)]
    assert [one["input_resolution"] for one in settings_of] == [16, 24]
    assert [one["tokens_per_image"] for one in settings_of] == [16, 36]


def test_more_tokens_by_downsample_train_a_tokenizer_of_their_own() -> None:
    arms = "arms: {base: {}, finer: {tokens_per_image: 64}}, tokens_by: downsample"
    base, finer = graph({"arms: {base: {}}": arms}).runs
    assert base.stages["tokenizer"] != finer.stages["tokenizer"]


def test_one_stride_is_one_tokenizer_however_the_plan_arrived_at_it() -> None:
    by_downsample = graph({"arms: {base: {}}": "arms: {base: {}}, tokens_by: downsample"})
    assert keys(by_downsample)["tokenizer"] == keys(graph())["tokenizer"]


def test_guidance_and_evaluation_seeds_are_evaluations_of_one_generator() -> None:
    changes = {
        "samples: 100": "samples: 100, guidance: [1.0, 2.0]",
        "evaluation:": "seeds: {evaluation: [0, 1]}\nevaluation:",
    }
    found = graph(changes)
    (run,) = found.runs
    assert len(keys(found)["generator"]) == 1
    assert len(set(run.stages["evaluations"])) == 4
    assert sorted((one["evaluation_seed"], one["guidance"]) for one in run.evaluations) == [
        (0, 1.0),
        (0, 2.0),
        (1, 1.0),
        (1, 2.0),
    ]
    names = [found.stages[key].name for key in run.stages["evaluations"]]
    assert sum(name.endswith(".cfg2") for name in names) == 2


def test_a_stage_carries_seed_parameters_and_flops_as_the_settings_count_them() -> None:
    read = plan({"evaluation:": "seeds: {tokenizer: [3], generator: [4]}\nevaluation:"})
    found = build_graph(read, SOURCE, 5, "weights")
    run: Run = read.runs[0]
    by_kind = {kind: found.stages[of[0]] for kind, of in keys(found).items()}
    tokenizer, generator = by_kind["tokenizer"], by_kind["generator"]
    assert (tokenizer.seed, generator.seed, by_kind["tokens"].seed) == (3, 4, 0)
    assert tokenizer.flops == run.tokenizer.training_flops(16)
    assert tokenizer.params == sum(run.tokenizer.params(4).values())
    assert generator.flops == run.generator.training_flops(64, 16)
    assert generator.params == sum(run.generator.params(64, 5).values())
    assert all(stage.seconds > 0 for stage in found.stages.values())
    assert tokenizer.seconds > tokenizer.flops / stages.CORE_FLOPS


def test_guidance_costs_a_second_pass_of_the_generator() -> None:
    plain = graph()
    guided = graph({"samples: 100": "samples: 100, guidance: 2.0"})
    forward = sum(plan().runs[0].generator.forward_flops(64, 16).values())
    cost = [found.stages[keys(found)["generation"][0]].flops for found in (plain, guided)]
    assert cost[1] - cost[0] == 100 * forward


# -------------------------------------------------------------------------------------------- columns


def test_columns_are_the_settings_own_counts() -> None:
    read = plan()
    run = read.runs[0]
    columns = build_graph(read, SOURCE, 5, "weights").runs[0].columns
    generator, tokenizer = run.generator, run.tokenizer
    assert columns["compute"] == generator.training_flops(64, 16)
    assert columns["tokenizer_compute"] == tokenizer.training_flops(16)
    assert columns["compute_total"] == columns["compute"] + columns["tokenizer_compute"]
    assert columns["compute_6nd"] == generator.compute_6nd(64, 16)
    assert columns["compute_paper"] == generator.compute_paper(64, 16)
    assert columns["params"] == generator.scaling_params(64)
    assert columns["params_total"] == sum(generator.params(64, 5).values())
    assert (columns["steps"], columns["tokens_seen"]) == (50, 3200 * 16)
    assert columns["epochs"] == 3200 / 4096
    assert (columns["arm"], columns["size"], columns["codebook_size"]) == ("base", "16x2", 64)


def test_a_crt_arm_counts_its_predictor_in_the_tokenizer_and_not_in_the_generator() -> None:
    found = graph({"arms: {base: {}}": "arms: {base: {}, crt: {crt_weight: 0.1}}"})
    base, crt = (run.columns for run in found.runs)
    assert crt["compute"] == base["compute"]
    assert crt["tokenizer_compute"] > base["tokenizer_compute"]


def test_images_that_make_no_whole_batch_count_as_they_are_trained() -> None:
    columns = graph({"images_seen: 3200": "images_seen: 3210"}).runs[0].columns
    assert columns["images_seen"] == 3210
    assert columns["tokens_seen"] == columns["steps"] * 64 * 16 == 50 * 64 * 16


# ----------------------------------------------------------------------------------------------- time


def toy(**parents: str) -> Graph:
    """A graph of stages by name, parents as words: toy(a="", b="a", c="a b")."""
    made = {}
    for name, of in parents.items():
        links = {f"parent{number}": parent for number, parent in enumerate(of.split())}
        made[name] = Stage("tokens", name, name, {}, links, 0, 0, 0.0, 1.0, DataSettings())
    return Graph(made, ())


def test_the_critical_path_is_the_longest_way_to_the_end() -> None:
    found = critical_path(toy(a="", b="a", c="a", d="b c", e=""), {"a": 1, "b": 10, "c": 2, "d": 3, "e": 4})
    assert found == {"a": 14, "b": 13, "c": 5, "d": 3, "e": 4}


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        (1, 20.0),  # the sum
        (2, 14.0),  # a, then b beside c and e, then d: the longest path
        (9, 14.0),
    ],
)
def test_the_makespan_of_a_diamond_by_hand(workers: int, expected: float) -> None:
    seconds = {"a": 1, "b": 10, "c": 2, "d": 3, "e": 4}
    assert makespan(toy(a="", b="a", c="a", d="b c", e=""), seconds, "abcde", workers) == expected


def test_the_makespan_counts_only_what_is_left_to_do() -> None:
    seconds = {"a": 100, "b": 10, "c": 2}
    chain = toy(a="", b="a", c="b")
    assert makespan(chain, seconds, ["b", "c"], 4) == 12.0
    assert makespan(chain, seconds, ["c"], 4) == 2.0
    assert makespan(chain, seconds, [], 4) == 0.0
    assert makespan(chain, seconds, "abc", 0) == 112.0, "fewer than one worker is one"


def test_independent_stages_share_the_workers_by_longest_first() -> None:
    seconds = {"a": 3, "b": 3, "c": 2, "d": 2, "e": 2}
    assert makespan(toy(a="", b="", c="", d="", e=""), seconds, "abcde", 2) == 7.0


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graph, dict[str, float], list[str]]:
    count = draw(st.integers(1, 9))
    names = [f"s{number}" for number in range(count)]
    parents = {
        name: " ".join(draw(st.lists(st.sampled_from(names[:number]), unique=True, max_size=3)) if number else [])
        for number, name in enumerate(names)
    }
    seconds = {name: draw(st.floats(0.1, 50)) for name in names}
    return toy(**parents), seconds, draw(st.lists(st.sampled_from(names), unique=True))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(graphs(), st.integers(1, 4))
def test_the_makespan_lies_between_its_bounds(made: tuple[Graph, dict[str, float], list[str]], workers: int) -> None:
    found, seconds, todo = made
    time = makespan(found, seconds, todo, workers)
    work = sum(seconds[name] for name in todo)
    left = {name: seconds[name] if name in todo else 0.0 for name in seconds}
    # a parent that is done cuts the way through it
    longest: dict[str, float] = {}
    for name, stage in found.stages.items():
        above = [longest[parent] for parent in stage.parents.values() if parent in todo]
        longest[name] = left[name] + max(above, default=0.0) if name in todo else 0.0
    path = max(longest.values())
    slack = 1e-9 * (1 + work)
    assert max(path, work / workers) - slack <= time <= work + slack
    # Graham 1969: list scheduling takes at most work/m + (1 - 1/m) times the longest path
    assert time <= work / workers + (1 - 1 / workers) * path + slack
