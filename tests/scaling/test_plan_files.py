"""Finding plans and presets, what ships, the plan's page, and what importing a plan costs."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scaling.plan import (
    SECTIONS,
    PlanError,
    ResourceSettings,
    load_plan,
    parse_plan,
    presets,
    shipped_plans,
    starter_plan,
)
from scaling.plan_keys import leaves
from scaling.plan_reference import MARKER, page, plan_reference

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "plan.md"


def message(path_or_name: str | Path) -> str:
    with pytest.raises(PlanError) as caught:
        load_plan(path_or_name)
    return str(caught.value)


@pytest.mark.parametrize("name", shipped_plans())
def test_every_shipped_plan_loads_by_name(name: str) -> None:
    plan = load_plan(name)
    assert plan.name == name
    assert plan.runs


def test_the_quickstart_is_four_arms_four_sizes_and_three_lengths() -> None:
    plan = load_plan("quickstart")
    assert [len(values) for values in plan.axes.values()] == [4, 4, 3]
    assert len(plan.runs) == 48
    assert plan.data.train_images == max(run.generator.images_seen for run in plan.runs)


def test_the_starter_plan_loads_and_explains_itself() -> None:
    text = starter_plan()
    plan = parse_plan(text)
    assert len(plan.runs) == 27
    assert text.count("#") > 20


@pytest.mark.parametrize("name", presets())
def test_a_preset_writes_out_every_value_that_changes_a_result(name: str) -> None:
    written = yaml.safe_load((ROOT / "sweeps" / "presets" / f"{name}.yaml").read_text(encoding="utf-8"))
    left_out = {"data.path", "tokenizer.crt.warmup_steps", "generator.warmup_images", "evaluation.batch_images"}
    for section in ("data", "tokenizer", "generator", "evaluation"):
        for path in leaves(SECTIONS[section]):
            value = written[section]
            for key in path.split("."):
                value = value.get(key) if isinstance(value, dict) else None
            assert value is not None or f"{section}.{path}" in left_out, f"{section}.{path}"


def test_a_plan_is_found_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "a plan's file.yaml"
    path.write_text("plan: mine\r\nextends: tiny@1\r\n", encoding="utf-8-sig", newline="")
    plan = load_plan(path)
    assert plan.path == path
    assert plan.sha256 == hashlib.sha256(plan.text.encode()).hexdigest()


def test_a_file_comes_before_a_shipped_plan_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quickstart").write_text("plan: mine\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_plan("quickstart").name == "mine"


def test_an_unknown_plan_is_refused_with_those_that_ship(tmp_path: Path) -> None:
    assert message("quikstart") == (
        "no plan quikstart: no such file (did you mean quickstart?); shipped plans: " + ", ".join(shipped_plans())
    )
    assert message(tmp_path / "none.yaml").startswith(f"no plan {tmp_path}/none.yaml: no such file; shipped plans: ")


def test_a_folder_is_no_plan(tmp_path: Path) -> None:
    assert message(tmp_path) == f"{tmp_path} is a folder; give the plan file in it"


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_bytes(b"plan: a\xff\xfe")
    assert message(path) == f"{path} is not a text file in UTF-8 (byte 7)"


def test_faults_name_the_file_as_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("plan: a\nseed: 1\n", encoding="utf-8")
    assert message(path) == f"{path}:2:1: seed: unknown key (did you mean seeds?)\n    seed: 1\n    ^"


def test_a_plan_wins_over_its_preset_key_by_key() -> None:
    (run,) = parse_plan("plan: a\nextends: tiny@1\ntokenizer: {crt: {layers: 1}, betas: [0.5, 0.6]}\n").runs
    (preset,) = parse_plan("plan: a\nextends: tiny@1\n").runs
    assert run.tokenizer.crt == preset.tokenizer.crt.model_copy(update={"layers": 1})
    assert run.tokenizer.betas == (0.5, 0.6)
    assert run.generator == preset.generator


def test_a_list_or_a_size_replaces_that_of_the_preset() -> None:
    (run,) = parse_plan("plan: a\nextends: tiny@1\ngenerator: {size: {width: 32, layers: 1}}\n").runs
    assert (run.generator.size.width, run.generator.size.heads) == (32, 2)


def test_resources_have_the_documented_defaults() -> None:
    resources = ResourceSettings()
    assert (resources.executor, resources.workers, resources.each.cpus, resources.each.gpus) == ("ray", "auto", 1, 0)
    assert (resources.retries, resources.checkpoint_seconds, resources.budget.hours) == (2, 20, None)


@pytest.mark.parametrize("gpus", ["0", "1", "8", "0.5", "0.25", "0.33", "0.1"])
def test_gpus_are_whole_or_shared_evenly(gpus: str) -> None:
    assert parse_plan(f"plan: a\nresources: {{each: {{gpus: {gpus}}}}}\n").resources.each.gpus == float(gpus)


@pytest.mark.parametrize("gpus", ["0.4", "0.34", "0.7", "1.5", "-1"])
def test_gpus_that_cannot_be_shared_evenly_are_refused(gpus: str) -> None:
    with pytest.raises(PlanError, match=r"resources\.each\.gpus: "):
        parse_plan(f"plan: a\nresources: {{each: {{gpus: {gpus}}}}}\n")


def test_reading_a_plan_imports_neither_torch_nor_ray() -> None:
    code = "import sys; from scaling.plan import load_plan; load_plan('quickstart'); print(*sorted(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "ray", "pandas", "sqlalchemy"} & set(found.split())


def test_the_committed_page_has_the_tables_of_the_schema() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page(text), "run: python -m scaling.plan_reference docs/plan.md"


def test_the_reference_has_a_row_for_every_key() -> None:
    rows = set(re.findall(r"^\| `([^`]+)` \|", plan_reference(), re.MULTILINE))
    assert rows >= {path for model in SECTIONS.values() for path in leaves(model)} | {
        "plan",
        "extends",
        "zip",
        "exclude",
    }


def test_a_page_without_its_marker_is_refused() -> None:
    with pytest.raises(ValueError, match="marks where its tables begin"):
        page("# The plan file\n")


def test_the_first_example_of_the_page_is_the_plan_it_describes() -> None:
    above = PAGE.read_text(encoding="utf-8").split(MARKER)[0]
    example = re.findall(r"```yaml\n(.*?)```", above, re.DOTALL)[0]
    plan = parse_plan(example)
    assert f"{len(plan.runs)} runs, {['no', 'one', 'two'][len({run.arm for run in plan.runs})]} trained" in above
