"""YAML 1.2 scalars, places of keys and values, and what of YAML is refused."""

from __future__ import annotations

import pytest

from scaling.yaml_nodes import PlanError, Problems, did_you_mean, read, resolve_scalar


def plain(text: str) -> object:
    problems = Problems()
    node = read(text, "plan.yaml", problems)
    problems.raise_any()
    assert node is not None
    return node.plain()


def refusal(text: str) -> str:
    with pytest.raises(PlanError) as caught:
        plain(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("3e-3", 0.003),
        ("1E5", 1e5),
        ("64_000", 64000),
        ("-7", -7),
        (".5", 0.5),
        ("1.", 1.0),
        ("010", 10),
        ("08", 8),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
    ],
)
def test_a_scalar_means_what_yaml_1_2_says(text: str, value: object) -> None:
    found = resolve_scalar(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "yes",
        "on",
        "off",
        "True",
        "NO",
        "y",
        "1:30",
        "0x10",
        "0o10",
        "64__000",
        "64_",
        "11.5M",
        "111M",
        "1-2",
        "1.0..4.0",
        ".nan",
        ".inf",
        "1e999",
        "2024-01-31",
        "e3",
        ".",
    ],
)
def test_what_is_no_number_stays_text(text: str) -> None:
    assert resolve_scalar(text) == text


def test_a_number_of_fifty_digits_stays_text() -> None:
    assert resolve_scalar("9" * 50) == "9" * 50


def test_a_quoted_number_is_text() -> None:
    assert plain("a: '64'") == {"a": "64"}


def test_every_key_and_value_knows_its_line_and_column() -> None:
    root = read("a:\n  b:  [1, x]\n", "plan.yaml", Problems())
    assert root is not None
    b = root.value["a"].value["b"]
    assert (b.key.line, b.key.column) == (2, 3)
    assert (b.mark.line, b.mark.column) == (2, 7)
    assert (b.value[1].mark.line, b.value[1].mark.column) == (2, 11)
    assert b.value[1].mark.excerpt() == "      b:  [1, x]\n              ^"


def test_a_caret_stands_under_its_column_behind_tabs() -> None:
    root = read("{a: '\t', b: 5}\n", "plan.yaml", Problems())
    assert root is not None
    assert root.value["b"].mark.excerpt() == "    {a: '\t', b: 5}\n         \t      ^"


def test_all_duplicate_keys_are_refused_with_both_lines() -> None:
    assert refusal("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n") == (
        "plan.yaml:4:3: b.c: duplicate key on line 4, first on line 3\n      c: 2\n      ^\n"
        "plan.yaml:5:1: a: duplicate key on line 5, first on line 1\n    a: 3\n    ^"
    )


def test_an_alias_is_read_as_its_anchor() -> None:
    assert plain("a: &x {k: 1}\nb: *x\n") == {"a": {"k": 1}, "b": {"k": 1}}


def test_an_alias_inside_its_own_anchor_is_refused() -> None:
    assert refusal("a: &x {b: *x}\n").startswith("plan.yaml:1:8: a.b: an alias to a value that contains it")


def test_aliases_that_multiply_without_end_are_refused() -> None:
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert "more than 200,000 values, aliases counted each time" in refusal("\n".join(["a0: &a0 [x]", *levels]))


def test_a_merge_key_is_refused() -> None:
    assert "plan.yaml:2:3: b.<<: merge keys are not read" in refusal("b:\n  <<: {k: 1}\n")


@pytest.mark.parametrize("tag", ["!!float", "!!str", "!custom", "!!python/object/apply:os.system"])
def test_a_tag_is_refused_and_never_acted_on(tag: str) -> None:
    assert "plan.yaml:1:4: a: tags are not read" in refusal(f"a: {tag} x\n")


def test_a_key_that_is_no_text_is_refused() -> None:
    assert "a key must be plain text" in refusal("a: {[1]: 2}\n")


@pytest.mark.parametrize(
    ("text", "place"),
    [("a: [1\nb: 2", "plan.yaml:2:2"), ("\ta: 1", "plan.yaml:1:1"), ("a: 1\nb\x00: 2", "plan.yaml:2:2"), ("a: *x", "")],
)
def test_text_that_is_no_yaml_is_refused_at_its_place(text: str, place: str) -> None:
    assert refusal(text).startswith(place)
    assert "not valid YAML" in refusal(text)


def test_two_documents_are_refused() -> None:
    assert "expected a single document" in refusal("a: 1\n---\nb: 2\n")


def test_nesting_too_deep_to_read_is_refused() -> None:
    assert refusal("[" * 5000) == "plan.yaml: nested too deeply to read"


def test_an_empty_text_has_no_root() -> None:
    assert read("# nothing\n", "plan.yaml", Problems()) is None


def test_the_same_fault_is_reported_once() -> None:
    problems = Problems()
    for _ in range(3):
        problems.add("wrong", "a.b")
    with pytest.raises(PlanError) as caught:
        problems.raise_any()
    assert [str(problem) for problem in caught.value.problems] == ["a.b: wrong"]


def test_a_near_word_is_suggested_and_a_far_one_is_not() -> None:
    assert did_you_mean("crt_wieght", ["crt_weight", "width"]) == " (did you mean crt_weight?)"
    assert did_you_mean("zzz", ["crt_weight", "width"]) == ""
