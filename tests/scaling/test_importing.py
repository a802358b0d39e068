"""From other people's files to the tidy table's columns: reading, matching, what is filled in and refused."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.table import BY_NAME, validate
from scaling.import_matching import ALIASES
from scaling.import_preview import fit_metric, render_preview, summary
from scaling.importing import Imported, ImportRefused, prepare

CHINCHILLA = Path(__file__).parents[2].parent / "shared" / "fitdata" / "epoch_chinchilla" / "svg_extracted_data.csv"
PLAIN = "N,D,loss\n1000,20000,3.5\n2000,40000,3.25\n"


@pytest.fixture
def take(tmp_path: Path) -> Any:
    """Import a text as a file of that name."""

    def run(text: str | bytes, *options: str, file: str = "table.csv", name: str = "theirs") -> Imported:
        path = tmp_path / file
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        maps = [one[4:] for one in options if one.startswith("map ")]
        sets = [one[4:] for one in options if one.startswith("set ")]
        return prepare(path, name, maps, sets)

    return run


@pytest.fixture
def refused(take: Any) -> Any:
    """The one line with which a text is refused."""

    def run(text: str | bytes, *options: str, **more: Any) -> str:
        with pytest.raises(ImportRefused) as error:
            take(text, *options, **more)
        assert "\n" not in str(error.value)
        return str(error.value)

    return run


# ------------------------------------------------------------------------------------------- matching


def test_every_alias_belongs_to_a_column_and_to_one_only() -> None:
    known = [alias for aliases in ALIASES.values() for alias in aliases]
    assert set(ALIASES) <= set(BY_NAME)
    assert len(known) == len(set(known))
    assert not set(known) & set(BY_NAME)


@pytest.mark.parametrize(
    ("title", "column"),
    [
        ("N", "params"),
        ("n_params", "params"),
        ("Model Size", "params"),
        ("Training FLOP", "compute"),
        ("training-flops", "compute"),
        ("D", "tokens_seen"),
        ("training_tokens", "tokens_seen"),
        ("Final Loss", "loss"),
        ("FID", "gfid"),
        ("rFID", "rfid"),
        ("K", "codebook_size"),
        ("T", "tokens_per_image"),
        ("lambda", "crt_weight"),
        ("TOKENIZER", "arm"),
        ("Epochs", "epochs"),
        *[(name, name) for name in BY_NAME if name not in ("plan", "state")],
    ],
)
def test_well_known_names_are_recognised(take: Any, title: str, column: str) -> None:
    metric = "gfid" if column == "loss" else "loss"
    table = take(f"{metric},{title}\n2.5,3\n") if column != metric else take(f"{title}\n3\n")
    assert table.mapping[column] == title
    assert table.columns[column] == (["3"] if BY_NAME[column].kind == "text" else [3])


def test_what_is_not_recognised_is_kept_under_its_own_name_with_its_type(take: Any) -> None:
    table = take("loss,depth,note,share\n3,12,a,0.5\n2,,7,1\n")
    assert table.columns["depth"] == [12, None]
    assert table.columns["note"] == ["a", "7"]
    assert table.columns["share"] == [0.5, 1.0]
    assert list(table.columns)[-3:] == ["depth", "note", "share"]


def test_a_mapped_column_beats_a_recognised_one_which_stays_as_an_extra(take: Any) -> None:
    table = take("loss,val_loss,clean\n3,2.5,9\n", "map loss=val_loss", "map gfid=clean")
    assert table.columns["loss"] == [2.5]
    assert table.columns["gfid"] == [9.0]
    assert table.columns["source_loss"] == [3.0]


def test_a_plan_in_the_file_is_kept_beside_the_import_s_own(take: Any) -> None:
    table = take("plan,loss\nold,3\n")
    assert "plan" not in table.columns
    assert table.columns["source_plan"] == ["old"]


def test_an_unknown_target_is_an_extra_column_with_a_warning(take: Any) -> None:
    table = take("loss,a,b\n3,4,5\n", "map parms=a", "set note=by hand")
    assert table.columns["parms"] == [4]
    assert table.columns["note"] == ["by hand"]
    said = " ".join(table.warnings)
    assert "parms is no column of the results' table (did you mean params?)" in said
    assert "note is no column" in said
    assert "did you mean tokens_per_image?" in take("loss\n3\n", "set T=16").warnings[0]


def test_settings_are_constants_texts_and_formulas_in_the_order_given(take: Any) -> None:
    table = take(
        "Model Size,C,loss\n2,24,3\n4,,2\n",
        "set params=params*1e6",
        "set tokens_seen=C/(6*params)*1e6",
        "set tokens_per_image=256",
        "set arm=base-b",
        "set twice=2*params",
        "set day=2024-10-15",
        "set quoted='1'",
        "set half=.5",
    )
    assert table.columns["params"] == [2_000_000, 4_000_000]
    assert table.columns["tokens_seen"] == [2, None]
    assert table.columns["tokens_per_image"] == [256, 256]
    assert table.columns["arm"] == ["base-b"] * 2
    assert table.columns["twice"] == [4_000_000, 8_000_000]
    assert table.columns["day"] == ["2024-10-15"] * 2
    assert table.columns["quoted"] == ["1"] * 2
    assert table.columns["half"] == [0.5] * 2
    assert table.origins["params"] == "--set params*1e6"


def test_a_setting_takes_the_place_of_a_recognised_column_which_stays_as_an_extra(take: Any) -> None:
    table = take("tokenizer,N,loss\nvq,2,3\n", "set arm=base", "set params=N*1e6")
    assert table.columns["arm"] == ["base"]
    assert table.columns["tokenizer"] == ["vq"]
    assert (table.columns["params"], table.columns["N"]) == ([2_000_000], [2])


# ------------------------------------------------------------------------------------------- filled in


def test_design_columns_are_filled_in_and_said(take: Any) -> None:
    table = take(PLAIN, file="a study.csv")
    assert table.columns["run"] == ["a study-1", "a study-2"]
    assert table.columns["state"] == ["done"] * 2
    assert table.columns["arm"] == ["all"] * 2
    assert table.columns["compute"] == table.columns["compute_6nd"] == [1.2e8, 4.8e8]
    assert table.columns["guidance"] == [1.0] * 2
    assert table.columns["protocol"] == ["imported: a study.csv"] * 2
    assert len(set(table.columns["protocol_hash"])) == 1
    said = "\n".join(table.derived)
    assert "compute is 6ND" in said
    for column in ("run", "state", "arm", "guidance", "protocol", "protocol_hash"):
        assert f"{column} = " in said
    validate(pd.DataFrame(table.columns), ("loss", "params", "tokens_seen", "compute"))


def test_what_the_file_has_is_not_filled_in(take: Any) -> None:
    table = take("run,state,arm,C,N,D,loss,protocol\nx,failed,b,7,2,3,4,mine\n,,,8,2,3,4,\n")
    assert table.columns["run"] == ["x", "table-2"]
    assert table.columns["state"] == ["failed", "done"]
    assert table.columns["arm"] == ["b", "all"]
    assert table.columns["compute"] == [7.0, 8.0]
    assert "compute_6nd" not in table.columns
    assert table.columns["protocol"] == ["mine", "imported: table.csv"]
    assert len(set(table.columns["protocol_hash"])) == 2


def test_tokens_come_from_images_and_tokens_an_image(take: Any) -> None:
    table = take("images_seen,T,gfid\n100,16,30\n", "set params=50")
    assert table.columns["tokens_seen"] == [1600]
    assert table.columns["compute"] == [480_000.0]


def test_a_metric_written_as_nan_or_infinite_is_a_diverged_run_and_one_left_out_a_pending_one(take: Any) -> None:
    table = take("N,loss,rfid\n1,3,\n1,nan,\n1,-inf,2\n1,NA,\n1,,2\n")
    assert table.columns["state"] == ["done", "diverged", "diverged", "pending", "done"]
    assert table.columns["loss"] == [3.0, None, None, None, None]
    assert (
        "state = done: 2, diverged: 2 (a metric is NaN or infinite), pending: 1 (no metric is given)" in table.derived
    )
    assert any("loss is missing in 1 rows that are done" in text for text in table.warnings)
    computed = take("ppl,N\n20,1\ninf,1\n", "set loss=log(ppl)")
    assert computed.columns["state"] == ["done", "diverged"]


def test_protocols_are_told_apart_by_text_and_by_file(take: Any) -> None:
    first, same = take(PLAIN, "set protocol=gFID, mine"), take(PLAIN, "set protocol=gFID, mine", file="other.csv")
    other_text, other_file = take(PLAIN), take(PLAIN + "1,2,3\n", "set protocol=gFID, mine")
    hashes = [table.columns["protocol_hash"][0] for table in (first, same, other_text, other_file)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


# --------------------------------------------------------------------------------------------- refusals


def test_all_that_is_wrong_is_said_in_one_line(refused: Any) -> None:
    line = refused("N,loss\n-5,x\n", "map gfid=gFDI", "set tokens_seen=a+b", name="no name")
    for part in ("--as 'no name'", "no column 'gFDI'", "--set tokens_seen=a+b: no column a", "loss is 'x' in row 1"):
        assert part in line
    assert "params is -5 in row 1; it must be above 0" in line


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        *[(text, (), "no rows") for text in ("", "N,loss\n", "\n\n")],
        ("a,b\n1,2\n", (), "no metric: none of loss, gfid, rfid is among its columns (a, b); say --map loss=COLUMN"),
        (PLAIN, ("map gfid=lss",), "no column 'lss' (did you mean loss?)"),
        (PLAIN, ("map gfid=zzz",), "no column 'zzz'; it has N, D, loss"),
        ("loss,void\n1,\n", ("map gfid=void",), "the column 'void' is empty"),
        (PLAIN, ("map gfid",), "--map 'gfid': write --map COLUMN=SOURCE"),
        (PLAIN, ("set =5",), "write --set COLUMN=VALUE"),
        (PLAIN, ("set plan=x",), "the column plan is the import's name"),
        (PLAIN, ("map loss=N", "map loss=D"), "loss has two sources, 'N' and 'D'"),
        (PLAIN, ("map params=N", "set params=5"), "params has two sources, --map params=N and --set params"),
        (PLAIN, ("set steps=5", "set steps=6"), "steps has two sources, --set steps is given twice"),
        ("loss,val_loss\n1,2\n", (), "loss has two sources, the file's 'loss' and 'val_loss'; say --map loss=loss"),
        ("loss,loss\n1,2\n", (), "two columns are called 'loss'"),
        ("N,loss\n1,2\n66M,3\n7B,3\n", (), "params is '66M' in row 2 (and 1 more), not a number; write plain numbers"),
        *[(f'N,loss\n"{text}",3\n', (), f"params is '{text}' in row 1") for text in ("1,000", "1_000")],
        ("N,loss\n0,2\n", (), "params is 0 in row 1; it must be above 0"),
        ("D,C,loss\n-3,0,2\n", (), "tokens_seen is -3 in row 1; it must be above 0; compute is 0 in row 1"),
        ("N,loss\ninf,2\n", (), "params is infinite in row 1; it must be finite"),
        ("steps,loss\n-1,2\n", (), "steps is -1 in row 1; it must be not negative"),
        ("gfid,run\n1,a\n2,b\n3,a\n", (), "run 'a' stands in rows 1 and 3"),
        ("state,loss\ndone,1\nfinished,2\n", (), "state is 'finished' in row 2; it must be one of done, diverged"),
        (PLAIN, ("set steps=parms",), "no column parms (did you mean params?)"),
        ("loss,note\n1,a\n", ("set steps=2*note",), "note is text, not a number"),
        (PLAIN, ("set steps=many",), "no column many"),
        (PLAIN, ("set steps=N.real",), "--set steps=N.real: 'N.real' is not allowed"),
        (PLAIN, ("set steps=1/0",), "--set steps=1/0: gives no finite number"),
        (PLAIN, ("set steps=log(N-1500)",), "--set steps=log(N-1500) gives no finite number in row 1"),
        ("a;b\n1;2\n", (), "save it with commas between cells"),
        ("N,loss\n1,2,3\n", (), "line 2 has 3 cells, the header 2"),
        ('N,loss\n"1,2\n', (), "line 2 cannot be read"),
        (b"N,loss\n\xff,2\n", (), "not text in UTF-8 (byte 7)"),
    ],
)
def test_a_table_that_cannot_be_imported_is_refused(
    refused: Any, text: str | bytes, options: tuple[str, ...], message: str
) -> None:
    line = refused(text, *options)
    assert line.startswith("table.csv: ")
    assert message in line


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "a/b", "a b", "ü", "a" * 81])
def test_a_name_that_is_no_name_is_refused(refused: Any, name: str) -> None:
    assert "a name is at most 80 letters, digits" in refused(PLAIN, name=name)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("t.xlsx", b"", "unknown kind of table; use .csv"),
        ("t.csv.gz", PLAIN.encode(), "truncated or no gzip file"),
        ("t.csv.gz", gzip.compress(PLAIN.encode())[:-12], "truncated or no gzip file"),
        ("t.json", b"{", "not readable as JSON"),
        ("t.json", b'{"loss": [1]}', "no list of records"),
        ("t.json", b"[]", "no rows"),
        ("t.json", b'[{"N": true, "loss": 1}]', "params is True in row 1, not a number"),
        ("t.json", b'[{"loss": 1, " loss": 1}]', "two columns are called 'loss'"),
    ],
)
def test_a_file_that_is_no_table_is_refused(refused: Any, file: str, content: bytes, message: str) -> None:
    line = refused(content, file=file)
    assert line.startswith(f"{file}: ")
    assert message in line


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused, match="no such file"):
        prepare(tmp_path / "t.csv", "x")
    with pytest.raises(ImportRefused, match="is a folder"):
        prepare(tmp_path, "x")


def test_repeats_of_a_run_are_rows_of_it(take: Any) -> None:
    for column in ("evaluation_seed", "guidance", "protocol"):
        assert len(take(f"run,gfid,{column}\na,1,1\na,2,2\n").rows) == 2


# ---------------------------------------------------------------------------------------- kinds of file


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("t.csv", PLAIN.encode()),
        ("t.CSV", b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").encode()),
        ("t.csv", PLAIN.replace(",", " , ").encode() + b"\n,,\n"),
        ("t.csv.gz", gzip.compress(PLAIN.encode())),
        ("t.tsv", PLAIN.replace(",", "\t").encode()),
        ("t.json", json.dumps([{"N": 1000, "D": 20000, "loss": 3.5}, {"N": 2000, "D": 4e4, "loss": "3.25"}]).encode()),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(take: Any, file: str, content: bytes) -> None:
    table = take(content, file=file)
    assert table.columns["run"] == ["t-1", "t-2"]
    assert table.columns["params"] == [1000, 2000]
    assert table.columns["tokens_seen"] == [20_000, 40_000]
    assert table.columns["loss"] == [3.5, 3.25]
    assert all(list(row) == list(table.columns) for row in table.rows)


def test_json_values_of_any_kind_are_kept_as_extra_columns(take: Any) -> None:
    rows = [{"loss": 1.5, "flag": True, "list": [1, 2], "n/a": None}, {"loss": math.nan, "flag": None, "late": "x"}]
    table = take(json.dumps(rows), file="t.json")
    assert table.columns["flag"] == [True, None]
    assert table.columns["list"] == ["[1, 2]", None]
    assert table.columns["late"] == [None, "x"]
    assert table.columns["state"] == ["done", "diverged"]
    assert "n/a" not in table.columns
    assert table.ignored == ["'n/a': an empty column"]


def test_parquet_is_read_or_the_user_is_told_what_to_install(take: Any, refused: Any, tmp_path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        assert "pip install 'scaling-lab[parquet]'" in refused(b"PAR1", file="t.parquet")
        return
    frame = pd.DataFrame({"N": [1000, 2000], "loss": [3.5, None]})
    frame.to_parquet(tmp_path / "made.parquet", index=False)
    table = take((tmp_path / "made.parquet").read_bytes(), file="t.parquet")
    assert table.columns["loss"] == [3.5, None]
    assert table.columns["state"] == ["done", "pending"]
    assert "not readable as Parquet" in refused(b"PAR1", file="t.parquet")


# ----------------------------------------------------------------------------------------------- preview


def test_the_preview_shows_source_unit_values_range_and_what_is_missing(take: Any) -> None:
    table = take("Model Size,loss,void,note\n52,3.5,,a\n775,,,a\n", "set tokens_per_image=256")
    text = render_preview(table)
    lines = {line.split()[0]: line.split() for line in text.splitlines()[1:] if line.startswith("  ")}
    assert text.startswith("table.csv: 2 rows, CSV, SHA-256 ")
    assert lines["params"] == ["params", "<-", "Model", "Size", "parameters", "52,", "775", "52..775", "0"]
    assert lines["loss"] == ["loss", "<-", "loss", "nats/token", "3.5", "3.5", "1"]
    assert lines["tokens_per_image"][:5] == ["tokens_per_image", "<-", "--set", "256", "tokens"]
    assert lines["note"] == ["note", "<-", "note", "extra", "a", "1", "value", "0"]
    assert "derived: arm = all: one arm" in text
    assert "ignored: 'void': an empty column" in text
    assert "warning: params 52..775: looks like millions; if so use --set params=params*1e6" in text
    found = json.loads(json.dumps(summary(table), allow_nan=False))
    assert found["rows"] == 2
    (params,) = [one for one in found["columns"] if one["column"] == "params"]
    assert (params["source"], params["min"], params["max"], params["missing"]) == ("Model Size", 52, 775, 0)


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("N,D,loss\n5e7,300,3\n", "tokens_seen 300..300: looks like billions"),
        ("N,C,loss\n5e7,6,3\n", "compute 6..6: looks like 1e18"),
        ("N,loss\n5e7,40\n", "of a perplexity use --set 'loss=log(loss)'"),
        ("N,D,C,loss\n5e7,1e9,3e14,3\n", "compute is 0.001 times 6 params tokens_seen"),
        (
            "N,C,loss\n5e7,3e17,3\n",
            "no tokens_seen, which laws need: give --map or --set 'tokens_seen=compute/(6*params)'",
        ),
        ("loss\n3\n", "no params and no tokens_seen and no compute, which laws need: give --map or --set"),
    ],
)
def test_what_looks_wrong_but_may_be_right_is_a_warning(take: Any, text: str, warning: str) -> None:
    assert any(warning in one for one in take(text).warnings)
    assert take("N,D,C,loss\n5e7,1e9,3e17,3\n").warnings == []


def test_the_metric_to_fit_is_the_table_s(take: Any) -> None:
    assert fit_metric(take(PLAIN)) == "loss"
    assert fit_metric(take("loss,gfid\n1,2\n")) == "fid"
    assert fit_metric(take("rFID\n1\n")) == "rfid"


def test_the_chinchilla_points_are_imported_as_the_page_says() -> None:
    if not CHINCHILLA.is_file():
        pytest.skip(f"{CHINCHILLA} is not on this machine")
    table = prepare(CHINCHILLA, "chinchilla", [], ["tokens_seen=compute/(6*params)"])
    frame = pd.DataFrame(table.columns)
    assert len(frame) == 245
    assert table.mapping["params"] == "Model Size"
    assert table.mapping["compute"] == "Training FLOP"
    np.testing.assert_allclose(frame["tokens_seen"] * 6 * frame["params"], frame["compute"], rtol=1e-12)
    assert table.warnings == []
    validate(frame, ("loss", "params", "tokens_seen", "compute"))
