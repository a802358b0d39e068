"""What a plan's author reads: every fault at once, each at its key."""

from __future__ import annotations

import pytest

from scaling.plan import PlanError, parse_plan

HEAD = "plan: a\nextends: tiny@1\n"


def refusal(text: str, head: str = HEAD) -> str:
    with pytest.raises(PlanError) as caught:
        parse_plan(head + text)
    return str(caught.value)


def lines(text: str, head: str = HEAD) -> list[str]:
    """The first line of each fault, without its excerpt."""
    with pytest.raises(PlanError) as caught:
        parse_plan(head + text)
    return [str(problem).splitlines()[0] for problem in caught.value.problems]


def test_all_faults_are_reported_at_once_in_the_order_of_the_text() -> None:
    text = """plan: my study
extend: tiny@1
tokenizer:
  crt_wieght: 4
  codebook_size: [64, 16k, 1]
  betas: [0.9]
  width: 12
  crt: {flops_matched: yes}
  arms:
    base:
generator:
  size: [64y3, {width: 64, layers: 3, heads: 5}]
  crt_weight: 0.1
  clip: [1, 2]
  lr: 0.1
  clip: 1
evaluation:
resources:
  workers: 0
  each: {gpus: 0.4}
  device: {name: h100}
  executor: slurm
"""
    forms = "WIDTHxLAYERS (64x3), a name (52M, 81M, 111M, 212M, 343M, 517M, 775M), nor {width, layers, heads}"
    assert (
        refusal(text, head="")
        == f"""plan.yaml:1:7: plan: a plan's name has letters, digits, `.`, `_` and `-` only
    plan: my study
          ^
plan.yaml:2:1: extend: unknown key (did you mean extends?)
    extend: tiny@1
    ^
plan.yaml:4:3: tokenizer.crt_wieght: unknown key (did you mean crt_weight?)
      crt_wieght: 4
      ^
plan.yaml:5:23: tokenizer.codebook_size: expected a whole number, got `16k` \
(k, M, G and B are read for images and samples only: write the number out)
      codebook_size: [64, 16k, 1]
                          ^
plan.yaml:5:28: tokenizer.codebook_size: must be at least 2, got 1
      codebook_size: [64, 16k, 1]
                               ^
plan.yaml:6:10: tokenizer.betas: has too few values
      betas: [0.9]
             ^
plan.yaml:7:10: tokenizer.width: must be a multiple of 8, got 12
      width: 12
             ^
plan.yaml:8:24: tokenizer.crt.flops_matched: expected true or false, got `yes` (only true and false are booleans)
      crt: {{flops_matched: yes}}
                           ^
plan.yaml:10:5: tokenizer.arms.base: empty arm; write `base: {{}}` for one without changes
        base:
        ^
plan.yaml:12:10: generator.size: size '64y3' is neither {forms}
      size: [64y3, {{width: 64, layers: 3, heads: 5}}]
             ^
plan.yaml:12:16: generator.size: 5 heads do not divide width 64
      size: [64y3, {{width: 64, layers: 3, heads: 5}}]
                   ^
plan.yaml:13:3: generator.crt_weight: unknown key (it belongs to tokenizer)
      crt_weight: 0.1
      ^
plan.yaml:14:9: generator.clip: takes one value, not a list (this key is not an axis)
      clip: [1, 2]
            ^
plan.yaml:15:3: generator.lr: expected keys and values below it, got `0.1`
      lr: 0.1
      ^
plan.yaml:16:3: generator.clip: duplicate key on line 16, first on line 14
      clip: 1
      ^
plan.yaml:17:1: evaluation: empty section; indent its keys below it, or remove it
    evaluation:
    ^
plan.yaml:19:12: resources.workers: must be auto or at least 1, got 0
      workers: 0
               ^
plan.yaml:20:16: resources.each.gpus: gpus below 1 is 1/k such as 0.5, 0.33 or 0.25, got 0.4
      each: {{gpus: 0.4}}
                   ^
plan.yaml:21:3: resources.device.mfu: missing, and it has no default
      device: {{name: h100}}
      ^
plan.yaml:22:13: resources.executor: expected ray or inline, got `slurm`
      executor: slurm
                ^"""
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "tokenizer: {lr: 1-2}",
            "3:17: tokenizer.lr: expected a number, got `1-2` (a range is a value, never an axis: write a list)",
        ),
        ("tokenizer: {blocks: true}", "3:21: tokenizer.blocks: expected a whole number, got `true`"),
        ("tokenizer: {blocks: '2'}", "3:21: tokenizer.blocks: expected a whole number, got `2` in quotes"),
        ("tokenizer: {blocks: 2.5}", "3:21: tokenizer.blocks: expected a whole number, got `2.5`"),
        ("tokenizer: {blocks: .inf}", "3:21: tokenizer.blocks: expected a whole number, got `.inf`"),
        ("tokenizer: {lr: .nan}", "3:17: tokenizer.lr: expected a number, got `.nan`"),
        ("tokenizer: {blocks: {a: 1}}", "3:13: tokenizer.blocks: expected a whole number, got a mapping"),
        ("tokenizer: {blocks: }", "3:13: tokenizer.blocks: empty; expected a whole number"),
        (
            "tokenizer: {codebook_size: []}",
            "3:28: tokenizer.codebook_size: an empty list sweeps nothing; give at least one value",
        ),
        ("tokenizer: {codebook_size: [[64]]}", "3:29: tokenizer.codebook_size: takes one value, not a list"),
        ("tokenizer: {betas: 0.9}", "3:20: tokenizer.betas: expected a list, got `0.9`"),
        ("tokenizer: {betas: [0.9, 0.95, 0.99]}", "3:20: tokenizer.betas: takes 2 values, got 3"),
        ("tokenizer: {betas: [0.9, x]}", "3:26: tokenizer.betas: expected a number, got `x`"),
        ("tokenizer: {lr: 0}", "3:17: tokenizer.lr: must be greater than 0, got 0"),
        ("tokenizer: {cooldown: 2}", "3:23: tokenizer.cooldown: must be at most 1, got 2"),
        (
            "tokenizer: {precision: fp23}",
            "3:24: tokenizer.precision: expected fp32 or bf16, got `fp23` (did you mean fp32?)",
        ),
        ("tokenizer: {tokens_per_image: 15}", "3:13: tokenizer: tokens_per_image 15 is not a square number"),
        ("tokenizer: {layers: 2}", "3:13: tokenizer.layers: unknown key (did you mean tokenizer.crt.layers?)"),
        ("tokenizer: {crt: {wdth: 2}}", "3:19: tokenizer.crt.wdth: unknown key (did you mean width?)"),
        ("tokenizer: {images_seen: 10}", "3:26: tokenizer.images_seen: 10 images are less than one batch of 64"),
        ("tokenizer: [1]", "3:1: tokenizer: expected keys and values below it, got a list"),
        ("codebook_size: 64", "3:1: codebook_size: unknown key (it belongs to tokenizer)"),
        ("data: {scene: {objects: 1-9}}", "3:16: data.scene: objects must be a range within 1-3, got 1-9"),
        ("data: {source: npz}\nevaluation: {features: cnn}", "3:8: data: source npz needs `path`"),
        ("generator: {images_seen: 1.23456k}", "3:26: generator.images_seen: expected a whole number, got `1.23456k`"),
        ("generator: {size: 64}", "3:19: generator.size: size '64' is neither"),
        ("generator: {size: {width: 64, depth: 3}}", "3:31: generator.size.depth: unknown key"),
        (
            "generator: {warmup_images: 1M}",
            "3:28: generator.warmup_images: 1000000 images are more than",
        ),
        ("generator: {size: [64x3, {width: 64, layers: 3}]}", "3:26: generator.size: 64x3 stands twice on this axis"),
        ("generator: {images_seen: [1k, 1_000]}", "3:31: generator.images_seen: 1000 stands twice on this axis"),
        ("evaluation: {guidance: [1, 1.0]}", "3:28: evaluation.guidance: 1 stands twice on this axis"),
        ("evaluation: {guidance: -1}", "3:24: evaluation.guidance: must be at least 0, got -1"),
        ("evaluation: {metrics: [fid, is]}", "3:29: evaluation.metrics: expected fid or kid, got `is`"),
        (
            "resources: {each: {gpus: 1.5}}",
            "3:26: resources.each.gpus: gpus is 0, a whole number, or 1/k such as 0.5, got 1.5",
        ),
        ("resources: {workers: fast}", "3:22: resources.workers: expected auto or a whole number, got `fast`"),
    ],
)
def test_a_fault_is_one_line_at_its_place(text: str, line: str) -> None:
    found = lines(text)
    assert len(found) == 1
    assert found[0].startswith(f"plan.yaml:{line}")


def test_a_value_that_could_not_be_read_brings_no_second_fault() -> None:
    assert lines("resources:\n  device: {name: h100, mfu: abc}") == [
        "plan.yaml:4:29: resources.device.mfu: expected a number, got `abc`"
    ]
    text = "generator: {images_seen: [1k, 2x], warmup_images: [1, 2]}\n"
    text += "zip: [[generator.images_seen, generator.warmup_images]]"
    assert lines(text) == ["plan.yaml:3:31: generator.images_seen: expected a whole number, got `2x`"]


def test_a_fault_of_keys_together_is_reported_at_the_users_key_not_the_presets() -> None:
    assert lines("data: {resolution: 18}\nevaluation: {features: cnn}") == [
        "plan.yaml:3:8: tokenizer: downsample 4 does not divide the resolution 18"
    ]


def test_a_tokenizer_that_cannot_train_is_reported_at_the_key_of_its_arm() -> None:
    text = "tokenizer:\n  arms:\n    base: {}\n    crt: {crt_weight: 1, crt: {width: 128}}\n"
    (line,) = lines(text)
    assert line.startswith("plan.yaml:6:32: tokenizer.arms.crt: the CRT predictor costs ")


def test_a_setting_that_cannot_train_may_be_excluded() -> None:
    text = "tokenizer: {tokens_per_image: [16, 36], tokens_by: [resolution, downsample]}\n"
    assert "tokens_per_image 36 by downsample needs a stride of 16/6" in refusal(text)
    exclude = "exclude: [{tokenizer.tokens_per_image: 36, tokenizer.tokens_by: downsample}]"
    assert len(parse_plan(HEAD + text + exclude).runs) == 3


def test_shipped_features_are_refused_for_other_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGES", "/somewhere")
    text = "data: {source: image_folder, path: '${IMAGES}/train'}\n"
    (line,) = lines(text)
    assert line.startswith(
        "plan.yaml:3:8: evaluation.features: shapes-cnn@1 knows the source shapes only, not image_folder"
    )
    plan = parse_plan(HEAD + text + "evaluation: {features: cnn}")
    assert plan.data.path == "/somewhere/train"


def test_shipped_features_are_refused_at_another_resolution() -> None:
    (line,) = lines("data: {resolution: 32}\nevaluation: {features: shapes-cnn@1}")
    assert line.startswith(
        "plan.yaml:4:14: evaluation.features: shapes-cnn@1 measures at 16 pixels, data.resolution is 32"
    )


def test_an_unset_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGES", raising=False)
    text = "data: {source: npz, path: '${IMAGES}/a.npz'}\nevaluation: {features: cnn}"
    assert lines(text) == [
        "plan.yaml:3:27: data.path: environment variable IMAGES is not set; export it before the run"
    ]


def test_a_variable_outside_a_location_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE", "0.1")
    (line,) = lines("tokenizer: {lr: '${RATE}'}")
    assert line.startswith("plan.yaml:3:17: tokenizer.lr: ${VAR} may stand only where something lies")


def test_a_malformed_variable_is_refused() -> None:
    assert "a variable is written ${NAME}" in refusal("resources: {address: '${A-B}'}")


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("tiny", "1:10: extends: no preset `tiny` (did you mean tiny@1?); presets: tiny@1"),
        ("tiny@9", "1:10: extends: no preset `tiny@9` (did you mean tiny@1?); presets: tiny@1"),
        ("zzz", "1:10: extends: no preset `zzz`; presets: tiny@1"),
    ],
)
def test_an_unknown_preset_is_refused_with_those_there_are(extends: str, message: str) -> None:
    assert lines(f"extends: {extends}\nplan: a\n", head="") == [f"plan.yaml:{message}"]


def test_a_plan_without_a_name_is_refused() -> None:
    assert lines("extends: tiny@1\n", head="") == ["plan.yaml:1:1: plan: give the plan a name, as in plan: quickstart"]


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_an_empty_plan_is_refused(text: str) -> None:
    assert "the plan is empty" in refusal(text, head="") or "a plan is keys and values" in refusal(text, head="")


def test_a_list_is_no_plan() -> None:
    assert lines("- 1\n", head="") == ["plan.yaml:1:1: a plan is keys and values (plan, data, tokenizer, ...)"]


def test_a_grid_beyond_all_reason_is_refused_before_it_is_expanded() -> None:
    many = ", ".join(str(n) for n in range(64, 464))
    text = f"tokenizer: {{codebook_size: [{many}]}}\ngenerator: {{images_seen: [{many}]}}\n"
    (line,) = lines(text)
    assert line == "the grid has 160,000 cells, more than 100,000; shorten an axis or use zip"
