"""Stage folders, attempts and bytes on disk: what a kill, a torn line or a flipped bit may not do."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from scaling import artifacts
from scaling.artifacts import AttemptFolder, CorruptArtifact, Fenced, Layout

FINGERPRINT = "0123456789abcdef" * 4


@pytest.fixture
def weird_tmp_path(tmp_path: Path) -> Path:
    """A folder whose name has a space, both quotes, a newline, a glob and a non-ASCII letter (submitit's idea)."""
    path = tmp_path / 'it\'s "a"\nfolder [*] ü'
    path.mkdir()
    return path


@pytest.fixture
def stage(weird_tmp_path: Path) -> Path:
    stage = Layout(weird_tmp_path).stage("tokenizer", "base", FINGERPRINT)
    artifacts.write_json(Layout.config(stage), {"fingerprint": FINGERPRINT})
    return stage


def begin(stage: Path, number: int) -> AttemptFolder:
    token = artifacts.new_token()
    artifacts.grant_lease(stage, number, token)
    return AttemptFolder(stage, number, token)


def state(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(6.0).reshape(2, 3) + step, "step": torch.tensor(step)}


# ----------------------------------------------------------------------------------------------- bytes


def test_a_writer_killed_at_any_moment_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    target = tmp_path / "file"
    code = (
        "import sys, pathlib; from scaling.files import write_atomic\n"
        "for i in range(10**6): write_atomic(pathlib.Path(sys.argv[1]), bytes([i % 256]) * 300_000, sync=False)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(target)])
    deadline = time.monotonic() + 20
    while not target.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    for _ in range(20):
        content = target.read_bytes()
        assert content == content[:1] * 300_000
    child.send_signal(signal.SIGKILL)
    child.wait()
    content = target.read_bytes()
    assert content == content[:1] * 300_000


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    artifacts.write_atomic(target, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        artifacts.write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_json_stays_strict_and_keeps_values_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    artifacts.write_json(path, {"a": math.nan, "b": -math.inf, "c": [torch.tensor(0.5)], "d": None})
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    value = artifacts.read_json(path)
    assert math.isnan(value.pop("a"))
    assert value == {"b": -math.inf, "c": [0.5], "d": None}


def test_a_json_file_that_is_none_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": ')
    with pytest.raises(CorruptArtifact, match=r"x\.json: not readable as JSON") as error:
        artifacts.read_json(path)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------- tensors


def test_tensors_come_back_exactly_with_types_shapes_and_meta(weird_tmp_path: Path) -> None:
    shared = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    tensors = {
        "float": shared,
        "tied": shared,
        "transposed": shared.t(),
        "bf16": shared.bfloat16(),
        "scalar": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.tensor([math.nan, math.inf])),
    }
    path = weird_tmp_path / "t.safetensors"
    artifacts.save_tensors(path, tensors, {"rng": [1, 2], "nested": {"lr": 1e-3, "loss": math.inf}})
    loaded, meta = artifacts.load_tensors(path)
    assert meta == {"rng": [1, 2], "nested": {"lr": 1e-3, "loss": math.inf}}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].nan_to_num(), tensor.detach().nan_to_num())


def test_equal_content_is_an_equal_file_and_an_equal_digest(tmp_path: Path) -> None:
    meta = {"a": 1, "b": {"c": 2.5}}
    digests = {artifacts.save_tensors(tmp_path / f"{i}", state(1), meta) for i in range(5)}
    files = {artifacts.sha256_file(tmp_path / f"{i}") for i in range(5)}
    assert len(digests) == len(files) == 1
    assert artifacts.save_tensors(tmp_path / "other", state(2), meta) not in digests


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "t.safetensors"
    artifacts.save_tensors(path, state(3), {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptArtifact, match=r"t\.safetensors: truncated") as error:
        artifacts.load_tensors(path)
    assert "\n" not in str(error.value)


def test_a_flipped_bit_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    artifacts.save_tensors(path, state(3), {"lr": 0.5})
    whole = path.read_bytes()
    silent = []
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            tensors, meta = artifacts.load_tensors(path)
        except CorruptArtifact:
            continue
        same = meta == {"lr": 0.5} and all(torch.equal(tensors[name], value) for name, value in state(3).items())
        if not same:
            silent.append(position)
    assert silent == []


def test_a_tensor_file_of_another_tool_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state(1), tmp_path / "foreign.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptArtifact, match="no tensor file of this tool"):
        artifacts.load_tensors(tmp_path / "foreign.safetensors")


# --------------------------------------------------------------------------------------------- folders


def test_a_renamed_stage_keeps_its_folder(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    first = layout.stage("generator", "crt/64x3/32k", FINGERPRINT)
    assert first.name == f"crt_64x3_32k-{FINGERPRINT[:12]}"
    assert not first.exists()
    artifacts.write_json(Layout.config(first), {"fingerprint": FINGERPRINT})
    assert layout.stage("generator", "renamed", FINGERPRINT) == first
    assert layout.stage("generator", "renamed", "f" * 64) != first
    assert list(layout.stages()) == [first]


def test_a_stage_made_by_another_process_is_found_however_late(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    mine = layout.stage("tokenizer", "mine", "a" * 64)
    mine.mkdir(parents=True)
    for age in (0, 60):  # a folder in use, and one that has settled and is remembered
        os.utime(mine.parent, (time.time() - age,) * 2)
        key = f"{age:064d}"[::-1]
        other = layout.stage("tokenizer", "other", key)
        assert layout.stage("tokenizer", "again", key).name == f"again-{key[:12]}"
        other.mkdir()
        assert layout.stage("tokenizer", "again", key) == other


@pytest.mark.parametrize("name", ["../../etc", ".hidden", "a\nb", "x" * 500, "", "K=64,λ=0.1"])
def test_any_name_becomes_one_folder_inside_artifacts(tmp_path: Path, name: str) -> None:
    stage = Layout(tmp_path).stage("tokenizer", name, FINGERPRINT)
    assert stage.resolve().parent == (tmp_path / "artifacts" / "tokenizer").resolve()
    assert not stage.name.startswith(".")
    assert len(stage.name.encode()) < 200
    stage.mkdir(parents=True)


# -------------------------------------------------------------------------------------------- attempts


def test_an_attempt_that_lost_its_lease_can_write_nothing(stage: Path) -> None:
    old = begin(stage, 1)
    old.save_checkpoint(1, state(1), {})
    begin(stage, 2)
    before = sorted(stage.rglob("*"))
    writes = [
        lambda: old.save_checkpoint(2, state(2), {}),
        lambda: old.append_metrics([{"step": 2, "loss": 1.0}]),
        lambda: old.heartbeat({}),
        lambda: old.output("weights"),
        lambda: old.finish({}, "done"),
    ]
    for write in writes:
        with pytest.raises(Fenced, match="attempt 1 may not write, attempt 2 holds its lease"):
            write()
    assert sorted(stage.rglob("*")) == before


def test_the_same_number_with_another_token_is_fenced(stage: Path) -> None:
    begin(stage, 1)
    with pytest.raises(Fenced):
        AttemptFolder(stage, 1, "token of a lost database").heartbeat({})


def test_without_a_lease_nothing_is_written(stage: Path) -> None:
    with pytest.raises(Fenced, match="no lease"):
        AttemptFolder(stage, 1, "t").append_metrics([{"step": 1}])


def test_the_newest_two_checkpoints_stay_and_the_newest_is_loaded(stage: Path) -> None:
    attempt = begin(stage, 1)
    assert attempt.load_checkpoint() is None
    for step in (100, 200, 300):
        attempt.save_checkpoint(step, state(step), {"cursor": step})
    assert [path.stem for path in sorted(Layout.checkpoints(stage, 1).iterdir())] == ["step-00000200", "step-00000300"]
    loaded = attempt.load_checkpoint()
    assert loaded is not None
    step, tensors, meta = loaded
    assert (step, meta) == (300, {"cursor": 300})
    assert torch.equal(tensors["weight"], state(300)["weight"])


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    stage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = begin(stage, 1)
    first.save_checkpoint(100, state(100), {})
    first.save_checkpoint(200, state(200), {})
    newest = Layout.checkpoint(stage, 1, 200)
    newest.write_bytes(newest.read_bytes()[:-3])
    loaded = begin(stage, 2).load_checkpoint()
    assert loaded is not None
    assert loaded[0] == 100
    assert "step-00000200.safetensors" in caplog.text


def test_metrics_of_interrupted_attempts_join_to_those_of_an_undisturbed_run(stage: Path) -> None:
    def train(attempt: AttemptFolder, until: int) -> None:
        loaded = attempt.load_checkpoint()
        for step in range(loaded[0] + 1 if loaded else 1, until + 1):
            attempt.append_metrics(
                [{"step": step, "loss": 1 / step}, *([{"step": step, "rfid": 9.0}] if step == 7 else [])]
            )
            if step % 4 == 0:
                attempt.save_checkpoint(step, state(step), {})

    train(begin(stage, 1), 6)
    train(begin(stage, 2), 10)
    path = Layout.metrics(stage, 2)
    path.write_bytes(path.read_bytes()[:-4])
    train(begin(stage, 3), 12)
    expected = [{"step": s, "loss": 1 / s} | ({"rfid": 9.0} if s == 7 else {}) for s in range(1, 13)]
    assert artifacts.read_stage_metrics(stage, 3) == expected
    assert [row["step"] for row in artifacts.read_metrics(Layout.metrics(stage, 3))] == [9, 10, 11, 12]


def test_an_attempt_that_began_from_nothing_takes_no_rows_over(stage: Path) -> None:
    begin(stage, 1).append_metrics([{"step": 1, "loss": 5.0}])
    second = begin(stage, 2)
    assert second.load_checkpoint() is None
    second.append_metrics([{"step": 1, "loss": 4.0}])
    assert artifacts.read_stage_metrics(stage, 2) == [{"step": 1, "loss": 4.0}]


def test_a_line_torn_in_the_middle_costs_that_line_only(stage: Path, caplog: pytest.LogCaptureFixture) -> None:
    attempt = begin(stage, 1)
    attempt.append_metrics([{"step": 1, "loss": math.nan}])
    with open(Layout.metrics(stage, 1), "ab") as file:
        file.write(b'{"step": 2, "lo')
    assert [row["step"] for row in artifacts.read_metrics(Layout.metrics(stage, 1))] == [1]
    assert caplog.text == ""
    attempt.append_metrics([{"step": 3, "loss": 2.0}])
    rows = artifacts.read_metrics(Layout.metrics(stage, 1))
    assert [row["step"] for row in rows] == [1, 3]
    assert math.isnan(rows[0]["loss"])
    assert "metrics.jsonl:2: torn line left out" in caplog.text


def test_the_stop_flag_and_the_heartbeat_pass_between_driver_and_worker(stage: Path) -> None:
    attempt = begin(stage, 1)
    assert not attempt.should_stop()
    artifacts.request_stop(stage, 1)
    assert attempt.should_stop()
    attempt.heartbeat({"step": 5})
    beat = artifacts.read_json(Layout.heartbeat(stage, 1))
    assert (beat["step"], beat["pid"]) == (5, os.getpid())


def test_an_output_name_may_not_leave_the_attempt(stage: Path) -> None:
    with pytest.raises(ValueError, match="outside"):
        begin(stage, 1).output("../../result.json")


# ---------------------------------------------------------------------------------------------- commit


def finished(stage: Path, number: int = 1, status: str = "done") -> AttemptFolder:
    attempt = begin(stage, number)
    attempt.output("weights.bin").write_bytes(b"w" * 1000)
    attempt.output("images/0.png").write_bytes(b"png")
    attempt.finish({"rfid": 12.5}, status)
    return attempt


def test_a_stage_is_committed_only_by_the_driver_and_last(stage: Path) -> None:
    finished(stage)
    assert artifacts.committed(stage) is None
    mark = artifacts.commit(stage, 1, git="abc")
    assert artifacts.committed(stage, verify=True) == mark
    assert mark["fingerprint"] == FINGERPRINT
    assert mark["summary"] == {"rfid": 12.5}
    assert mark["git"] == "abc"
    assert mark["files"]["images/0.png"]["bytes"] == 3
    assert artifacts.commit(stage, 1, git="abc") == mark


def test_what_a_dead_driver_left_finished_is_adoptable(stage: Path) -> None:
    assert artifacts.adoptable(stage) is None
    finished(stage, 1, "failed")
    assert artifacts.adoptable(stage) is None
    finished(stage, 2, "diverged")
    begin(stage, 3).append_metrics([{"step": 1}])
    assert artifacts.adoptable(stage) == 2
    assert artifacts.last_attempt(stage) == 3


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_an_attempt_without_a_result_cannot_be_committed(stage: Path, status: str) -> None:
    finished(stage, 1, status)
    with pytest.raises(CorruptArtifact, match=f"ended as {status}"):
        artifacts.commit(stage, 1)
    begin(stage, 2)
    with pytest.raises(CorruptArtifact, match="attempt 2 did not finish"):
        artifacts.commit(stage, 2)


def test_a_committed_stage_with_a_missing_or_changed_file_counts_as_none(stage: Path) -> None:
    finished(stage)
    artifacts.commit(stage, 1)
    weights = Layout.output(stage, 1) / "weights.bin"
    weights.write_bytes(b"w" * 999 + b"x")
    assert artifacts.committed(stage) is not None
    assert artifacts.committed(stage, verify=True) is None
    assert "SHA-256 differs" in artifacts.damage(stage, verify=True)[0]
    weights.write_bytes(b"w" * 10)
    assert artifacts.committed(stage) is None
    weights.unlink()
    assert "missing" in artifacts.damage(stage)[0]
    Layout.result(stage).write_text("{")
    assert artifacts.committed(stage) is None


def test_dropping_checkpoints_keeps_the_result(stage: Path) -> None:
    attempt = begin(stage, 1)
    attempt.save_checkpoint(1, state(1), {})
    attempt.output("weights.bin").write_bytes(b"w")
    attempt.finish({}, "done")
    artifacts.commit(stage, 1)
    size = Layout.checkpoint(stage, 1, 1).stat().st_size
    assert artifacts.drop_checkpoints(stage) == size
    assert artifacts.drop_checkpoints(stage) == 0
    assert artifacts.committed(stage, verify=True) is not None


def test_a_withdrawn_result_is_neither_committed_nor_adopted(stage: Path) -> None:
    finished(stage)
    artifacts.commit(stage, 1)
    artifacts.withdraw(stage)
    assert artifacts.committed(stage) is None
    assert artifacts.adoptable(stage) is None
    assert artifacts.last_attempt(stage) == 1
    artifacts.withdraw(stage)
