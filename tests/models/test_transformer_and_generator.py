"""The causal stack and the generator: causality, cache, sampling, counts."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.generator import Generator, invert, sampling_noise
from models.settings import GeneratorSettings
from models.sizes import PAPER_SIZES, parse_size
from models.transformer import rotary_table

GRID, CODES, CLASSES = 4, 32, 3


def make(size: str = "32x2", seed: int = 0, **settings: object) -> Generator:
    torch.manual_seed(seed)
    module = Generator(GeneratorSettings(size=size, **settings), CODES, CLASSES, GRID)
    torch.nn.init.normal_(module.head.weight, std=0.3)  # the zero start would make every test of logits trivial
    return module.eval()


def tokens(batch: int = 5, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(CODES, (batch, GRID**2), generator=generator)
    return ids, torch.randint(CLASSES, (batch,), generator=generator)


def test_changing_a_token_leaves_the_logits_up_to_it_alone() -> None:
    module, (ids, classes) = make(), tokens()
    changed = ids.clone()
    changed[:, 6] = (changed[:, 6] + 1) % CODES
    before, after = module(ids, classes), module(changed, classes)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_the_cached_steps_give_the_logits_of_the_full_forward() -> None:
    module, (ids, classes) = make("48x3"), tokens()
    full = module(ids, classes)
    x = module.class_embedding(classes)[:, None]
    caches = module.stack.caches(len(ids), x)
    for position in range(GRID**2):
        logits = module.head(module.stack.step(x, position, caches))[:, 0]
        torch.testing.assert_close(logits, full[:, position], rtol=1e-4, atol=1e-5)
        x = module.embedding(ids[:, position])[:, None]


def test_the_class_changes_the_first_token_and_the_null_class_is_one_more() -> None:
    module, (ids, _) = make(), tokens()
    first = [module(ids, torch.full((len(ids),), c))[:, 0] for c in range(CLASSES + 1)]
    assert not torch.allclose(first[0], first[CLASSES])
    with pytest.raises(IndexError):
        module(ids, torch.full((len(ids),), CLASSES + 1))


def test_a_sampled_image_does_not_depend_on_its_batch() -> None:
    module = make()
    noise = torch.from_numpy(sampling_noise(7, np.arange(10), GRID**2))
    classes = torch.arange(10) % CLASSES
    together = module.sample(classes, noise)
    assert torch.equal(together[4:5], module.sample(classes[4:5], noise[4:5]))
    assert torch.equal(together[7:], module.sample(classes[7:], noise[7:]))


def test_guidance_of_one_is_plain_sampling_and_more_changes_it() -> None:
    module = make()
    noise, classes = torch.from_numpy(sampling_noise(0, np.arange(8), GRID**2)), torch.arange(8) % CLASSES
    plain = module.sample(classes, noise)
    assert torch.equal(plain, module.sample(classes, noise, guidance=1.0))
    assert not torch.equal(plain, module.sample(classes, noise, guidance=4.0))


def test_samples_follow_the_model_s_distribution() -> None:
    module = make()
    count = 4000
    noise = torch.from_numpy(sampling_noise(3, np.arange(count), GRID**2))
    drawn = module.sample(torch.zeros(count, dtype=torch.long), noise)[:, 0]
    with torch.no_grad():
        expected = torch.softmax(
            module(torch.zeros(1, GRID**2, dtype=torch.long), torch.zeros(1, dtype=torch.long))[0, 0], -1
        )
    observed = torch.bincount(drawn, minlength=CODES) / count
    error = (expected * (1 - expected) / count).sqrt()
    assert ((observed - expected).abs() < 5 * error + 1e-4).all()


def test_inversion_never_draws_an_impossible_token() -> None:
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).repeat(3, 1)
    drawn = invert(probabilities, torch.tensor([0.0, 0.5, 1 - 1e-16], dtype=torch.float64))
    assert drawn.tolist() == [1, 3, 3]


def test_sampling_noise_is_uniform_and_a_function_of_seed_and_index_alone() -> None:
    noise = sampling_noise(0, np.arange(2000), 16)
    assert np.array_equal(noise[100:105], sampling_noise(0, np.arange(100, 105), 16))
    assert not np.array_equal(noise, sampling_noise(1, np.arange(2000), 16))
    assert abs(noise.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.1
    assert abs(np.corrcoef(noise[:-1, 0], noise[1:, 0])[0, 1]) < 0.1


@pytest.mark.parametrize("size", ["16x2", "64x3", "128x4"])
def test_counts_of_parameters_and_flops_are_those_of_the_built_model(size: str) -> None:
    settings = GeneratorSettings(size=size)
    with torch.device("meta"):
        module = Generator(settings, CODES, CLASSES, GRID)
    assert module.count_params() == settings.params(CODES, CLASSES)
    ids = torch.zeros(2, GRID**2, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        module(ids, ids[:, 0])
    assert counter.get_total_flops() == 2 * sum(settings.forward_flops(CODES, GRID**2).values())


@pytest.mark.parametrize("name", PAPER_SIZES)
def test_the_paper_s_sizes_have_the_paper_s_counts(name: str) -> None:
    # paper Table 2, which counts 12 l d^2 + 2 K d; SwiGLU's rounding and norms differ from it by under 2%
    total = sum(GeneratorSettings(size=name).params(16_384, 1000).values())
    assert total == pytest.approx(float(name.removesuffix("M")) * 1e6, rel=0.02)
    module_settings = GeneratorSettings(size=name)
    with torch.device("meta"):
        module = Generator(module_settings, 16_384, 1000, 16)
    assert sum(module.count_params().values()) == total


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("64by3", "WIDTHxLAYERS"),
        ("60x2", "multiple"),
        ({"width": 64}, "width and layers"),
        ({"width": None, "layers": 2}, "whole numbers"),
        ({"width": 64, "layers": 2, "heads": 5}, "divide"),
    ],
)
def test_a_size_that_cannot_be_is_refused_with_a_reason(size: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_size(size)  # type: ignore[arg-type]


def test_rotary_angles_tell_rows_from_columns_and_leave_the_class_alone() -> None:
    table = rotary_table(3, 16)
    assert table.shape == (9, 8)
    assert not table[0].any()
    assert torch.equal(table[1, :4], table[2, :4])  # same row
    assert torch.equal(table[1, 4:], table[4, 4:])  # same column
    assert not torch.equal(table[1], table[4])
