"""Stage 1: shapes, quantiser, revival, and the causal regulariser's gradients."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models.crt import CausalPredictor, crt_loss, predictability, scale_gradient
from models.quantizer import CHUNK, VectorQuantizer, code_statistics
from models.settings import CrtSettings, TokenizerSettings
from models.tokenizer import Tokenizer


def make(resolution: int = 16, **settings: object) -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(TokenizerSettings(width=16, codebook_size=32, **settings), resolution)


@pytest.mark.parametrize(("size", "expected"), [(8, 4), (16, 16), (24, 36), (32, 64)])
def test_one_tokenizer_takes_inputs_of_every_size_its_stride_divides(size: int, expected: int) -> None:
    module = make()
    ids = module.encode(torch.rand(2, 3, size, size) * 2 - 1)
    assert ids.shape == (2, expected)
    assert int(ids.max()) < 32
    images = module.decode(ids)
    assert images.shape == (2, 3, size, size)
    assert float(images.abs().max()) <= 1


def test_ids_are_in_raster_order() -> None:
    module = make()
    images = torch.zeros(1, 3, 32, 32)
    changed = images.clone()
    changed[..., 20:24, 4:8] = 1.0
    latents = [F.normalize(module.encoder(x).flatten(2).transpose(1, 2), dim=-1) for x in (images, changed)]
    moved = (latents[0] - latents[1]).norm(dim=-1)[0].argmax()
    assert int(moved) == 5 * 8 + 1


@pytest.mark.parametrize("stride", [2, 4, 8, 16])
def test_counts_of_parameters_and_flops_are_those_of_the_built_tokenizer(stride: int) -> None:
    settings = TokenizerSettings(width=24, codebook_size=64, downsample=stride)
    with torch.device("meta"):
        module = Tokenizer(settings, 32)
    assert module.count_params() == settings.params(stride)
    grid = 32 // stride
    expected = settings.forward_flops(grid, stride)
    images = torch.zeros(2, 3, 32, 32, device="meta")
    with FlopCounterMode(display=False) as counter:
        raw = module.encoder(images)
    assert counter.get_total_flops() == 2 * expected["encoder"]
    with FlopCounterMode(display=False) as counter:
        module.decoder(raw)
    assert counter.get_total_flops() == 2 * expected["decoder"]
    with FlopCounterMode(display=False) as counter:
        module.predictor(raw.flatten(2).transpose(1, 2))
    assert counter.get_total_flops() == 2 * expected["crt"]


def test_the_nearest_code_is_that_of_the_full_distance_matrix_in_any_chunking(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(50, 8, 0.25)
    latents = F.normalize(torch.randn(333, 8), dim=-1)
    expected = torch.cdist(latents, quantizer.codes()).argmin(dim=1)
    assert torch.equal(quantizer.nearest(latents), expected)
    monkeypatch.setattr("models.quantizer.CHUNK", 50 * 7)
    assert CHUNK != 50 * 7
    assert torch.equal(quantizer.nearest(latents), expected)


def test_gradients_pass_straight_through_and_each_loss_moves_its_own_side() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(8, 4, 0.25)
    latents = F.normalize(torch.randn(6, 4), dim=-1).requires_grad_()
    found = quantizer(latents)
    found.codes.sum().backward()
    assert torch.equal(latents.grad, torch.ones(6, 4))
    latents.grad = None
    quantizer.zero_grad()
    found = quantizer(latents)
    found.loss.backward()
    codes = F.embedding(found.ids, quantizer.codes()).detach()
    torch.testing.assert_close(latents.grad, 0.25 * 2 * (latents.detach() - codes) / latents.numel())
    assert quantizer.codebook.grad.abs().sum() > 0


def test_dead_codes_move_onto_latents_of_the_batch_and_live_ones_stay() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(10, 4, 0.25)
    before = quantizer.codebook.detach().clone()
    quantizer.use.fill_(0.1)
    quantizer.use[[2, 5]] = 0.001
    latents = F.normalize(torch.randn(20, 4), dim=-1)
    dead = quantizer.revive(latents, 0.05, torch.Generator().manual_seed(0))
    assert dead.tolist() == [2, 5]
    for code in dead:
        assert (latents == quantizer.codebook[code]).all(dim=1).any()
    kept = [i for i in range(10) if i not in (2, 5)]
    assert torch.equal(quantizer.codebook[kept], before[kept])
    assert quantizer.use[2] == pytest.approx(0.1)


def test_code_statistics_know_uniform_use_and_collapse() -> None:
    uniform = torch.arange(16).repeat(4, 1).T.reshape(16, 4)
    assert code_statistics(uniform, 16) == pytest.approx({"usage": 1, "perplexity": 16, "position_entropy": 2.7725887})
    collapsed = code_statistics(torch.zeros(5, 4, dtype=torch.long), 16)
    assert collapsed == pytest.approx({"usage": 1 / 16, "perplexity": 1, "position_entropy": 0})


def test_scaled_gradients_leave_values_alone_and_zero_detaches() -> None:
    x = torch.ones(3, requires_grad=True)
    (scale_gradient(x, 0.5) * 2).sum().backward()
    assert torch.equal(x.grad, torch.ones(3))
    assert not scale_gradient(x, 0.0).requires_grad


def crt_gradients(weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    predictor = CausalPredictor(CrtSettings(), 8, 4)
    torch.nn.init.normal_(predictor.head.weight, std=0.1)
    latents = F.normalize(torch.randn(3, 16, 8), dim=-1).requires_grad_()
    crt_loss(predictor, latents, weight).backward()
    gradient = latents.grad if latents.grad is not None else torch.zeros_like(latents)
    return gradient, predictor.embed.weight.grad


def test_the_predictor_learns_at_weight_one_while_the_encoder_sees_lambda() -> None:
    encoder_1, predictor_1 = crt_gradients(1.0)
    encoder_4, predictor_4 = crt_gradients(4.0)
    torch.testing.assert_close(encoder_4, 4 * encoder_1)
    torch.testing.assert_close(predictor_4, predictor_1)


def test_at_weight_zero_the_predictor_is_a_probe_that_leaves_the_encoder_alone() -> None:
    encoder, predictor = crt_gradients(0.0)
    assert not encoder.any()
    torch.testing.assert_close(predictor, crt_gradients(1.0)[1])


def test_the_target_of_the_causal_loss_is_not_detached() -> None:
    gradient, _ = crt_gradients(1.0)
    assert gradient[:, -1].abs().sum() > 0  # the last latent is a target only


def test_a_prediction_sees_only_the_latents_before_it() -> None:
    torch.manual_seed(0)
    predictor = CausalPredictor(CrtSettings(), 8, 4)
    torch.nn.init.normal_(predictor.head.weight, std=0.1)
    latents = torch.randn(2, 16, 8)
    changed = latents.clone()
    changed[:, 9] += 1
    before, after = predictor(latents), predictor(changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10:], after[:, 10:])


def test_predictability_is_one_for_a_perfect_predictor_and_near_zero_for_the_mean() -> None:
    class Constant(torch.nn.Module):
        def __init__(self, value: torch.Tensor) -> None:
            super().__init__()
            self.value = value

        def forward(self, latents: torch.Tensor) -> torch.Tensor:
            return self.value.expand_as(latents)

    latents = torch.randn(50, 16, 8, generator=torch.Generator().manual_seed(0))
    assert predictability(Constant(latents), latents) == 1.0  # type: ignore[arg-type]
    assert predictability(Constant(latents.mean(dim=(0, 1))), latents) == pytest.approx(0, abs=1e-6)  # type: ignore[arg-type]


def test_flops_matching_shortens_stage_1_by_the_predictor_s_share() -> None:
    base, crt = TokenizerSettings(), TokenizerSettings(crt_weight=0.1)
    overhead = crt.crt_overhead(16)
    assert 0.03 < overhead < 0.06
    assert crt.steps(16) == round(base.steps(16) / (1 + overhead))
    assert crt.training_flops(16) == pytest.approx(base.training_flops(16), rel=0.01)
    with pytest.raises(ValueError, match=r"crt\.width"):
        TokenizerSettings(crt_weight=0.1, crt={"width": 64}).check(16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"tokens_per_image": 15}, "square"), ({"downsample": 3}, "power of 2")],
)
def test_a_tokenizer_that_cannot_be_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerSettings(**settings)


def test_scale_jitter_trains_on_the_grids_around_its_own_and_charges_their_mean() -> None:
    plain, jittered = TokenizerSettings(), TokenizerSettings(scale_jitter=0.5)
    assert list(plain.train_grids(16)) == [4]
    assert list(jittered.train_grids(16)) == [2, 3, 4, 5, 6]
    costs = [sum(jittered.forward_flops(grid, 4)[part] for part in ("encoder", "decoder")) for grid in range(2, 7)]
    images = jittered.steps(16) * jittered.batch_images
    quantizer = sum(jittered.forward_flops(grid, 4)["quantizer"] for grid in range(2, 7)) / 5
    assert jittered.training_flops(16) == pytest.approx((3 * sum(costs) / 5 + quantizer) * images)


def test_the_predictor_takes_the_latents_of_any_grid() -> None:
    predictor = CausalPredictor(CrtSettings(), 8, 4)
    for grid in (2, 3, 6):
        latents = F.normalize(torch.randn(2, grid * grid, 8), dim=-1)
        assert predictor(latents).shape == latents.shape


def test_tokens_by_downsample_asks_for_a_stride_that_exists() -> None:
    assert TokenizerSettings(tokens_per_image=64, tokens_by="downsample").train_stride(16) == 2
    with pytest.raises(ValueError, match="no power of 2"):
        TokenizerSettings(tokens_per_image=36, tokens_by="downsample").train_stride(16)
