"""The loop of both stages: resuming, accumulation, divergence, data order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from models.settings import GeneratorSettings, TokenizerSettings
from models.tasks import GeneratorTask, TokenizerTask, evaluate_generator, parameter_groups
from models.training import (
    Diverged,
    Hooks,
    Stopped,
    batch_indices,
    cooldown_rate,
    cosine_rate,
    part_of,
    restore,
    snapshot,
    train,
)

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (300, 3, 16, 16), dtype=np.uint8)
IDS = np.random.default_rng(1).integers(0, 16, (200, 16)).astype(np.uint16)
LABELS = np.random.default_rng(2).integers(0, 3, 200)


def tokenizer_task(**settings: Any) -> TokenizerTask:
    values = {"width": 16, "codebook_size": 16, "images_seen": 960, "batch_images": 16, "crt_weight": 0.1}
    chosen = TokenizerSettings(**(values | {"revive": {"every": 10}, "crt": {"flops_matched": False}} | settings))
    return TokenizerTask(
        chosen, 16, lambda rows, resolution: IMAGES[rows][..., :resolution, :resolution], len(IMAGES), 3, CPU
    )


def generator_task(**settings: Any) -> GeneratorTask:
    values = {"size": "16x2", "images_seen": 960, "batch_images": 16, "dropout": 0.1}
    return GeneratorTask(GeneratorSettings(**(values | settings)), 16, IDS, LABELS, 3, 5, CPU)


class Memory:
    """Hooks that keep states and rows in memory, and stop where told."""

    def __init__(self, due: Callable[[int], bool] = lambda step: False, stop_at: int | None = None) -> None:
        self.state: tuple[int, dict[str, torch.Tensor]] | None = None
        self.rows: dict[int, dict[str, float]] = {}
        self._due, self._stop_at, self._step = due, stop_at, 0

    def hooks(self) -> Hooks:
        return Hooks(self._save, lambda: self.state, self._report, self._should_stop, self._due)

    def _save(self, step: int, state: dict[str, torch.Tensor]) -> None:
        self.state = step, {name: tensor.clone() for name, tensor in state.items()}

    def _report(self, step: int, values: dict[str, float]) -> None:
        self.rows[step], self._step = values, step

    def _should_stop(self) -> bool:
        return self._stop_at is not None and self._step >= self._stop_at


@pytest.mark.parametrize("make", [tokenizer_task, generator_task])
def test_a_stopped_and_resumed_training_ends_bit_identical(make: Callable[[], Any]) -> None:
    whole = make()
    straight = Memory()
    train(whole, straight.hooks(), report_every=5)
    halves = Memory(stop_at=25)
    with pytest.raises(Stopped) as stopped:
        train(make(), halves.hooks(), report_every=5)
    assert stopped.value.step == 25
    halves._stop_at = None
    resumed = make()
    train(resumed, halves.hooks(), report_every=5)
    assert halves.rows == straight.rows
    expected, found = snapshot(whole), snapshot(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_another_seed_gives_another_model() -> None:
    one, other = generator_task(), generator_task()
    other.seed = 6
    for task in (one, other):
        train(task, Memory().hooks(), report_every=60)
    assert not torch.equal(one.module.head.weight, other.module.head.weight)


@pytest.mark.parametrize("make", [tokenizer_task, lambda: generator_task(dropout=0.0)])
def test_micro_batches_give_the_gradients_of_the_whole_batch(make: Callable[[], Any]) -> None:
    whole, parts = make(), make()
    loss, _ = whole.loss(0, 0, 1)
    loss.backward()
    for part in range(4):
        (parts.loss(0, part, 4)[0] / 4).backward()
    for (name, p), q in zip(whole.module.named_parameters(), parts.module.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_loss_that_is_no_number_ends_as_diverged_with_its_step() -> None:
    task = generator_task()
    with torch.no_grad():
        task.module.head.weight.fill_(float("nan"))
    with pytest.raises(Diverged) as diverged:
        train(task, Memory().hooks(), report_every=10)
    assert diverged.value.step == 10


def test_training_lowers_the_loss_of_data_that_can_be_learnt() -> None:
    ids = np.tile(np.arange(16, dtype=np.uint16), (200, 1))
    settings = GeneratorSettings(size="16x2", images_seen=6400, batch_images=32)
    task = GeneratorTask(settings, 16, ids, LABELS, 3, 0, CPU)
    before = evaluate_generator(task.module, ids[:64], LABELS[:64], CPU).mean()
    train(task, Memory().hooks(), report_every=50)
    after = evaluate_generator(task.module, ids[:64], LABELS[:64], CPU).mean()
    assert before == pytest.approx(np.log(16), rel=0.01)
    assert after < 0.3


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order() -> None:
    first = np.concatenate([batch_indices(0, step, 50, 200) for step in range(4)])
    second = np.concatenate([batch_indices(0, step, 50, 200) for step in range(4, 8)])
    assert sorted(first) == sorted(second) == list(range(200))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.concatenate([batch_indices(1, step, 50, 200) for step in range(4)]))


def test_a_batch_that_spans_two_epochs_is_whole() -> None:
    rows = np.concatenate([batch_indices(0, step, 64, 100) for step in range(25)])
    assert np.bincount(rows, minlength=100).tolist() == [16] * 100


def test_parts_that_do_not_divide_a_batch_are_refused() -> None:
    assert part_of(12, 2, 3) == slice(8, 12)
    with pytest.raises(ValueError, match="do not divide"):
        part_of(10, 0, 3)


def test_schedules_warm_up_and_come_down() -> None:
    cosine = [cosine_rate(step, 100, 10) for step in range(100)]
    assert cosine[0] == pytest.approx(0.1)
    assert max(cosine) == cosine[10] == 1.0
    assert cosine[-1] < 0.01
    falling = [cooldown_rate(step, 100, 10, 0.2) for step in range(100)]
    assert falling[10:80] == [1.0] * 70
    assert falling[-1] == pytest.approx(0.05)


def test_hidden_matrices_learn_slower_in_wider_models_and_gains_do_not_decay() -> None:
    rates = {}
    for size in ("32x2", "128x2"):
        task = generator_task(size=size)
        hidden, outer, gains = parameter_groups(task.module, task.settings)
        rates[size] = hidden["lr"]
        assert outer["lr"] == gains["lr"] == task.settings.lr.peak
        assert gains["weight_decay"] == 0
        assert hidden["lr"] * hidden["weight_decay"] == pytest.approx(task.settings.lr.peak * 0.1)
    assert rates["32x2"] == pytest.approx(4 * rates["128x2"])


def test_revived_codes_forget_their_optimiser_moments() -> None:
    task = tokenizer_task()
    train(task, Memory(stop_at=None).hooks(), report_every=60)
    moments = task.optimizers["autoencoder"].state[task.module.quantizer.codebook]
    task.module.quantizer.use[3] = 0.0
    moments["exp_avg"][3] = 1.0
    torch.manual_seed(0)
    task.after_step(9)
    assert not moments["exp_avg"][3].any()
    assert task.module.quantizer.use[3] == pytest.approx(1 / 16)


def test_crt_weight_rises_over_its_warm_up() -> None:
    task = tokenizer_task(crt={"flops_matched": False, "warmup_steps": 10}, crt_weight=0.4)
    assert [task.crt_weight(step) for step in (0, 5, 10, 50)] == pytest.approx([0, 0.2, 0.4, 0.4])


def test_a_state_of_other_shapes_is_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        restore(generator_task(), snapshot(generator_task(size="32x2")))
