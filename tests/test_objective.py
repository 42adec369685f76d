import pytest
import torch

from rayjepa.config import ObjectiveConfig
from rayjepa.model import Prediction, Term
from rayjepa.objective import energy, score

KINDS = ("l1", "l2", "smooth_l1")


def pair(seed: int = 0, clips: int = 4, tokens: int = 5, width: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clips, tokens, width, generator=generator), torch.randn(
        clips, tokens, width, generator=generator
    )


def prediction(*pairs: tuple[torch.Tensor, torch.Tensor], weight: torch.Tensor | None = None) -> Prediction:
    return Prediction(
        terms=tuple(Term(name=f"mask{i}", prediction=p, target=t, weight=weight) for i, (p, t) in enumerate(pairs))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_energies_follow_their_equations(kind: str) -> None:
    p, t = pair()
    d = (p - t).abs()
    expected = {"l1": d, "l2": d**2 / 2, "smooth_l1": torch.where(d < 1, d**2 / 2, d - 0.5)}[kind]
    torch.testing.assert_close(energy(p, t, ObjectiveConfig(kind=kind)), expected.mean(-1))


@pytest.mark.parametrize(
    ("kind", "first", "second"), [("l1", 0.875, 1.5), ("l2", 0.65625, 1.75), ("smooth_l1", 0.53125, 1.125)]
)
def test_a_small_example_has_the_losses_found_by_hand(kind: str, first: float, second: float) -> None:
    """Differences of 1/2, -2, 0 and 1 in one mask, and of 3, 0, 2 and -1 in two tokens of another."""
    one = (torch.tensor([[[0.5, -2.0, 0.0, 1.0]]]) + 7, torch.full((1, 1, 4), 7.0))
    two = (torch.tensor([[[3.0, 0.0], [2.0, -1.0]]]), torch.zeros(1, 2, 2))
    scores = score(prediction(one, two), ObjectiveConfig(kind=kind))
    assert [float(scores.metrics[f"loss/mask{i}"]) for i in (0, 1)] == [first, second]
    assert float(scores.loss) == (first + second) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_energy_is_zero_at_the_target_and_falls_along_its_gradient(kind: str) -> None:
    p, t = pair(1)
    cfg = ObjectiveConfig(kind=kind)
    assert torch.count_nonzero(energy(t, t, cfg)) == 0
    p.requires_grad_()
    before = energy(p, t, cfg).sum()
    (gradient,) = torch.autograd.grad(before, p)
    assert energy(p - 0.01 * gradient, t, cfg).sum() < before


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_two_halves_is_the_whole_in_value_and_gradient(kind: str) -> None:
    """So that ranks need no communication but the engine's average of gradients."""
    (p, t), cfg = pair(2), ObjectiveConfig(kind=kind)
    p.requires_grad_()
    whole = score(prediction((p, t), (p[:, :2], t[:, :2])), cfg).loss
    halves = [score(prediction((p[h], t[h]), (p[h][:, :2], t[h][:, :2])), cfg).loss for h in (slice(0, 2), slice(2, 4))]
    split = torch.stack(halves).mean()
    torch.testing.assert_close(split, whole, rtol=1e-6, atol=0)
    gradients = (torch.autograd.grad(value, p)[0] for value in (split, whole))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_terms_count_the_same_whatever_their_tokens() -> None:
    few, many = pair(3, tokens=2), pair(4, tokens=50)
    scores = score(prediction(few, many), ObjectiveConfig())
    each = [float((p - t).abs().mean()) for p, t in (few, many)]
    assert float(scores.loss) == pytest.approx(sum(each) / 2, rel=1e-6)
    assert [float(scores.metrics[f"loss/mask{i}"]) for i in (0, 1)] == pytest.approx(each, rel=1e-6)
    assert torch.equal(scores.metrics["loss/latent"], scores.loss)


def test_tokens_of_weight_zero_do_not_count() -> None:
    p, t = pair(5)
    weight = torch.zeros(4, 5)
    weight[1, 2], weight[3, 0] = 1.0, 3.0
    loss = score(prediction((p, t), weight=weight), ObjectiveConfig()).loss
    d = (p - t).abs().mean(-1)
    torch.testing.assert_close(loss, (d[1, 2] + 3 * d[3, 0]) / 4)


def test_weights_that_sum_to_one_a_clip_give_the_mean_of_the_clips_means() -> None:
    """What masks without truncation ask for: a clip counts as much however many tokens it has, on any rank."""
    (p, t), counts = pair(8), torch.tensor([1, 5, 2, 3])
    weight = (torch.arange(5) < counts[:, None]) / counts[:, None]
    loss = score(prediction((p, t), weight=weight), ObjectiveConfig()).loss
    each = [(p[i, :count] - t[i, :count]).abs().mean() for i, count in enumerate(counts.tolist())]
    torch.testing.assert_close(loss, torch.stack(each).mean())
    halves = [
        score(prediction((p[h], t[h]), weight=weight[h]), ObjectiveConfig()).loss for h in (slice(2), slice(2, 4))
    ]
    torch.testing.assert_close(torch.stack(halves).mean(), loss)


def test_the_spread_of_predictions_shows_a_collapse() -> None:
    p, t = pair(6, clips=64, tokens=16)
    healthy = score(prediction((p, t)), ObjectiveConfig()).metrics["collapse/prediction_std"]
    collapsed = score(prediction((p[:1, :1].expand_as(p), t)), ObjectiveConfig()).metrics["collapse/prediction_std"]
    assert float(healthy) == pytest.approx(1.0, rel=0.05)
    assert float(collapsed) == pytest.approx(0.0, abs=1e-6)


def test_a_bf16_prediction_is_scored_in_fp32_and_metrics_carry_no_graph() -> None:
    p, t = pair(7)
    scores = score(prediction((p.bfloat16().requires_grad_(), t)), ObjectiveConfig())
    assert scores.loss.dtype == torch.float32
    assert scores.loss.requires_grad
    assert not any(value.requires_grad for value in scores.metrics.values())
