"""Streams, images, padded masks and shared contexts in one model."""

import dataclasses
import functools

import pytest
import torch
from torch import Tensor

from rayjepa.config import ModelConfig, RunConfig, resolve
from rayjepa.masks import Split
from rayjepa.model import Jepa, Prediction, Vit, build, make_target
from rayjepa.objective import score

IMAGES = {"name": "images", "weight": 1, "set": {"data.frames": 1, "masks.kind": "ijepa"}}
VIDEOS = {"name": "videos", "weight": 1, "set": {}}
MIXED = {"cluster.workers": 0, "streams": [VIDEOS, IMAGES], "train.clips": 4, "train.accumulation": 2}


def views(run: RunConfig, *, frames: int = 4, clips: int = 2) -> Tensor:
    shape = (clips, 3, frames, run.data.size_px, run.data.size_px)
    return torch.randn(shape, generator=torch.Generator().manual_seed(frames))


def predict(jepa: Jepa, x: Tensor, splits: tuple[Split, ...], stream: int = 0) -> Prediction:
    with torch.no_grad():
        levels = make_target(jepa.encoder)(x)
    return jepa(x, splits, levels, stream=stream)


def task(context: list[list[int]], target: list[list[int]], **valid: Tensor) -> Split:
    return Split(context=torch.tensor(context), target=torch.tensor(target), **valid)


def trained(run: RunConfig) -> Jepa:
    """A model of large weights: at the start tokens attend to all places nearly alike, and mask tokens are 0."""
    jepa = build(run)
    with torch.no_grad():
        for place, parameter in enumerate(jepa.parameters()):
            if parameter.ndim > 1:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(place))
    return jepa


@pytest.mark.parametrize("position", ["rope", "sincos"])
def test_padded_rows_predict_and_weigh_what_each_clip_does_alone(position: str) -> None:
    run = resolve("tiny", {"cluster.workers": 0, "model.position": position, "masks.kind": "random"})
    jepa, x = trained(run), views(run)
    alone = [task([[0, 5, 9, 17]], [[2, 3]]), task([[1, 6]], [[4, 30, 31]])]
    padded = task(
        [[0, 5, 9, 17], [1, 6, 6, 6]],
        [[2, 3, 3], [4, 30, 31]],
        context_valid=torch.tensor([[True] * 4, [True, True, False, False]]),
        target_valid=torch.tensor([[True, True, False], [True] * 3]),
    )
    together, losses = predict(jepa, x, (padded,)), []
    for row, split in enumerate(alone):
        single = predict(jepa, x[row : row + 1], (split,))
        count = split.target.shape[1]
        found = together.terms[0].prediction[row, :count]
        torch.testing.assert_close(found, single.terms[0].prediction[0], rtol=0, atol=1e-5)
        assert single.terms[0].weight is None
        losses.append(score(single, run.objective).loss)
    mean = torch.stack(losses).mean()
    torch.testing.assert_close(score(together, run.objective).loss, mean, rtol=1e-5, atol=0)


def test_a_padded_place_changes_nothing_whatever_token_is_in_it() -> None:
    run = resolve("tiny", {"cluster.workers": 0, "masks.kind": "random"})
    jepa, x = trained(run), views(run, clips=1)
    valid = {"context_valid": torch.tensor([[True, True, False]]), "target_valid": torch.tensor([[True, False]])}
    one, other = (predict(jepa, x, (task([[0, 5, i]], [[2, i]], **valid),)).terms[0] for i in (5, 20))
    torch.testing.assert_close(one.prediction[:, 0], other.prediction[:, 0], rtol=0, atol=1e-5)
    assert (one.prediction[:, 1] - other.prediction[:, 1]).abs().max() > 1e-3
    assert torch.equal(one.weight, torch.tensor([[1.0, 0.0]]))


def test_splits_in_a_row_that_share_their_context_encode_it_once() -> None:
    run = resolve("tiny", {"cluster.workers": 0, "masks.kind": "ijepa"})
    jepa, x = build(run), views(run)
    context = torch.tensor([[0, 5, 9], [1, 2, 3]])
    targets = [torch.tensor([[20 + i], [25 + i]]) for i in range(4)]
    shared = tuple(Split(context=context, target=target) for target in targets)
    apart = tuple(Split(context=context.clone(), target=target) for target in targets)
    levels, calls = make_target(jepa.encoder)(x), list[int]()
    jepa.encoder.register_forward_hook(lambda *_: calls.append(1))
    found, expected = jepa(x, shared, levels), jepa(x, apart, levels)
    assert len(calls) == 1 + 4
    for one, other in zip(found.terms, expected.terms, strict=True):
        assert torch.equal(one.prediction, other.prediction)
    assert [term.name for term in found.terms] == [f"target{i}" for i in range(4)]


def test_a_mask_token_is_the_tasks_or_the_streams() -> None:
    by_task, by_stream = (resolve("tiny", {**MIXED, "predictor.mask_token": kind}) for kind in ("mask", "stream"))
    split = task([[0, 5], [1, 6]], [[2, 3], [4, 7]])
    for run, tokens in ((by_task, 4), (by_stream, 2)):  # four targets of an image, two streams
        jepa = build(run)
        assert len(jepa.predictor.mask_tokens) == tokens
        for place, (stream, frames, splits) in enumerate(((0, 4, 2), (1, 1, 4))):
            jepa.zero_grad()
            prediction = predict(jepa, views(run, frames=frames), (split,) * splits, stream)
            assert len(prediction.terms) == splits
            sum(term.prediction.square().sum() for term in prediction.terms).backward()
            used = [i for i, token in enumerate(jepa.predictor.mask_tokens) if token.grad.any()]  # none is None
            assert used == (list(range(splits)) if run is by_task else [place])


@pytest.mark.parametrize(("stream", "frames", "splits"), [(0, 4, 2), (1, 1, 4)])
def test_every_tokeniser_takes_part_in_every_clip_and_the_idle_one_changes_nothing(
    stream: int, frames: int, splits: int
) -> None:
    run = resolve("tiny", MIXED)
    jepa, x = build(run), views(run, frames=frames)
    split = task([[0, 5], [1, 6]], [[2, 3], [4, 7]])
    idle, busy = jepa.encoder.patch_embed, jepa.encoder.patch_embed_image
    if stream == 0:
        idle, busy = busy, idle
    order: list[str] = []
    for name in ("patch_embed", "patch_embed_image"):
        getattr(jepa.encoder, name).register_forward_hook(functools.partial(_note, order, name))
    prediction = predict(jepa, x, (split,) * splits, stream)
    assert order == ["patch_embed", "patch_embed_image"]
    torch.stack([term.prediction.square().sum() for term in prediction.terms]).sum().backward()
    for parameter in idle.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
        with torch.no_grad():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    assert all(parameter.grad.abs().sum() > 0 for parameter in busy.parameters())
    again = predict(jepa, x, (split,) * splits, stream)
    assert torch.equal(again.terms[0].prediction, prediction.terms[0].prediction)


def _note(order: list[str], name: str, *_: object) -> None:
    order.append(name)


def test_an_image_is_projected_patch_by_patch_and_lies_in_the_first_time_slot() -> None:
    vit = Vit(ModelConfig(patch_px=4, width=24, depth=1, heads=2), images=True)
    image = torch.randn(1, 3, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    tokens, at = vit.tokenise(image)
    assert at.coordinates.tolist() == [[0, h, w] for h in range(2) for w in range(3)]
    layer = vit.patch_embed_image.proj
    assert layer.weight.shape == (24, 3, 1, 4, 4)
    expected = image[:, :, 0, 4:8, 8:12].flatten(1) @ layer.weight.flatten(1).T + layer.bias
    torch.testing.assert_close(tokens[:, 5], expected)


def test_a_tokeniser_of_images_is_made_only_where_a_tubelet_is_more_than_one_frame_of_a_run_with_images() -> None:
    mixed, videos = resolve("tiny", MIXED), resolve("tiny", {"cluster.workers": 0})
    assert build(mixed).encoder.patch_embed_image is not None
    assert build(videos).encoder.patch_embed_image is None
    images = resolve("tiny", {"cluster.workers": 0, "data.frames": 1, "masks.kind": "ijepa", "model.tubelet": 1})
    assert build(images).encoder.patch_embed_image is None
    alone = dataclasses.replace(images, model=dataclasses.replace(images.model, tubelet=2))
    assert build(alone).encoder.patch_embed_image is not None
    with pytest.raises(ValueError, match="less than a tubelet of 2"):
        build(videos).encoder.tokenise(views(videos, frames=1))


def test_the_other_weights_of_a_seed_do_not_depend_on_a_tokeniser_of_images() -> None:
    mixed, videos = (build(resolve("tiny", given)).encoder for given in (MIXED, {"cluster.workers": 0}))
    both = dict(mixed.named_parameters())
    for name, parameter in videos.named_parameters():
        assert torch.equal(both[name], parameter)
