import pytest
import torch

from rayjepa.health.probe import SHARES, Parts, Probe, Probes, parts_by_video

VIDEOS = [i // 3 for i in range(900)]
"""Three clips of each of 300 videos."""


def regress(features: torch.Tensor, labels: torch.Tensor, parts: Parts) -> Probe:
    return Probes(features, parts).regress(labels)


def classify(features: torch.Tensor, classes: torch.Tensor, parts: Parts) -> Probe:
    return Probes(features, parts).classify(classes)


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_parts_share_no_video_and_lose_no_clip() -> None:
    parts = parts_by_video(VIDEOS)
    rows = torch.cat([parts.fit, parts.choose, parts.test])
    assert torch.equal(rows.sort().values, torch.arange(len(VIDEOS)))
    videos = [{VIDEOS[row] for row in part.tolist()} for part in (parts.fit, parts.choose, parts.test)]
    assert [len(v) for v in videos] == [round(300 * share) for share in SHARES]
    assert not videos[0] & videos[1]
    assert not videos[2] & (videos[0] | videos[1])
    assert torch.equal(parts_by_video(list(VIDEOS)).test, parts.test)
    with pytest.raises(ValueError, match="2 held-out video"):
        parts_by_video([0, 1, 1])


def test_what_features_hold_linearly_is_read_out_exactly() -> None:
    """The same from features that are shifted, scaled a millionfold apart, doubled or dead."""
    parts, x = parts_by_video(VIDEOS), drawn(900, 6, seed=0)
    classes = (x @ drawn(6, 4, seed=1)).argmax(dim=1)
    indicators = torch.nn.functional.one_hot(classes).float()
    assert regress(x, x @ drawn(6, 2, seed=2) + 3, parts).score == pytest.approx(1, abs=1e-8)
    assert classify(torch.cat([x, indicators], dim=1), classes, parts).score == 1
    scales = torch.tensor([1e-3, 1.0, 1e3, 1.0, 1.0, 1.0])
    awkward = torch.cat([x * scales + 50, x, torch.full((900, 1), 7.0)], dim=1)
    assert regress(awkward, x @ drawn(6, 2, seed=2) + 3, parts).score == pytest.approx(1, abs=1e-6)


def test_labels_that_features_do_not_hold_score_as_chance() -> None:
    parts, x = parts_by_video(VIDEOS), drawn(900, 40, seed=3)
    guess = regress(x, drawn(900, 2, seed=4), parts)
    assert guess.chance == 0
    assert guess.score == pytest.approx(0, abs=0.05)
    assert guess.strength > 0.1  # the part to choose on says: shrink
    classes = torch.randint(4, (900,), generator=torch.Generator().manual_seed(5))
    chosen = classify(x, classes, parts)
    assert chosen.score == pytest.approx(0.25, abs=0.1)
    assert chosen.chance == pytest.approx(0.25, abs=0.1)


def test_a_label_of_videos_is_not_read_from_features_that_only_name_the_video() -> None:
    """Random labels and random features, one of each per video: by clip they would leak from fit to test."""
    x, labels = drawn(300, 250, seed=6)[VIDEOS], drawn(300, 1, seed=7)[VIDEOS]
    assert regress(x, labels, parts_by_video(VIDEOS)).score < 0.05
    rows = torch.randperm(900, generator=torch.Generator().manual_seed(8))
    leaking = Parts(fit=rows[:540], choose=rows[540:720], test=rows[720:])
    assert regress(x, labels, leaking).score > 0.3


def test_the_test_part_has_no_say_in_what_is_fitted() -> None:
    parts, x, labels = parts_by_video(VIDEOS), drawn(900, 30, seed=9), drawn(900, 1, seed=10)
    labels = labels + x[:, :1]
    other = labels.clone()
    other[parts.test] = other[parts.test].flip(0)
    assert regress(x, labels, parts).strength == regress(x, other, parts).strength
    assert regress(x, other, parts).score < 0 < regress(x, labels, parts).score


def test_a_collapsed_encoder_scores_as_chance_and_not_as_an_error() -> None:
    parts, flat = parts_by_video(VIDEOS), torch.ones(900, 16)
    assert regress(flat, drawn(900, 2, seed=11), parts).score == pytest.approx(0, abs=0.02)
    probe = classify(flat, torch.arange(900) % 3, parts)
    assert probe.score == probe.chance
