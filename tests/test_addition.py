"""The sum of two digits: pairs, distortions of each channel on its own, two transformers side by side."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import stn
from stn_recipes import report
from stn_recipes.data import digits, distortions, mnist_addition, registry
from stn_recipes.data.module import ImageDataset
from stn_recipes.data.registry import Source
from stn_recipes.predict import predict
from stn_recipes.recipes import recipe
from stn_recipes.report.sections import robustness
from stn_recipes.run.folder import load_run
from stn_recipes.run.train import evaluate, train

SUMS = mnist_addition.Sums("mnist_addition", digits.DATA)


def test_pairs_and_their_sums() -> None:
    for train_set in (True, False):
        found, alone = SUMS.read(Source(), train=train_set), digits.DATA.read(Source(), train=train_set)
        assert torch.equal(found.images[:, 0], alone.images[:, 0])
        first = {
            image.numpy().tobytes(): int(label) for image, label in zip(alone.images[:, 0], alone.labels, strict=True)
        }
        partners = [first[image.numpy().tobytes()] for image in found.images[:, 1]]
        assert found.labels.tolist() == [int(a) + b for a, b in zip(alone.labels, partners, strict=True)]
        assert sorted(partners) == sorted(alone.labels.tolist())  # every digit is a partner once
        assert found.class_names == tuple(map(str, range(19)))
        assert torch.equal(SUMS.read(Source(), train=train_set).images, found.images)


def test_each_channel_is_distorted_on_its_own() -> None:
    images = torch.rand(5, 2, 28, 28)
    each, rts = distortions.get("rts_each"), distortions.get("rts")
    random = distortions.draw(5, each.num_random, seed=1, stream=0, epoch=0)
    assert each.num_random == 2 * rts.num_random
    wanted = [rts(images[:, c : c + 1], np.ascontiguousarray(random[:, 4 * c : 4 * c + 4])) for c in (0, 1)]
    assert torch.equal(each(images, random), torch.cat(wanted, 1))
    with pytest.raises(ValueError, match="images: expected 2 channels for 'rts_each', got 1"):
        each(images[:, :1], random)


@pytest.mark.parametrize("name", ["r", "rts", "p", "e", "rts_each"])
def test_a_distortion_grows_from_none(name: str) -> None:
    """Over the epochs of the training set: upright in the middle at first, and at the end as it always is."""
    channels = 2 if name == "rts_each" else 1
    found = digits.DATA.read(Source(), train=False).take(np.arange(8))
    data = registry.ImageData(found.images.repeat(1, channels, 1, 1), found.labels, found.class_names)
    distortion = distortions.get(name)
    growing = ImageDataset(data, distortion=distortion, grow=4, seed=3)
    whole = ImageDataset(data, distortion=distortion, seed=3)
    first, *later = [growing.__getitems__([(epoch, i) for i in range(8)])[0] for epoch in range(6)]
    edge = (first.shape[2] - 28) // 2
    plain = torch.nn.functional.pad(data.images / 255, (edge,) * 4)
    torch.testing.assert_close(first, plain, rtol=0, atol=1e-3)
    moved = [float((images - plain).abs().mean()) for images in later]
    assert 0.001 < moved[0] < moved[1] < moved[2]
    for epoch in (4, 5):
        assert torch.equal(later[epoch - 1], whole.__getitems__([(epoch, i) for i in range(8)])[0])


def test_what_cannot_grow_is_refused() -> None:
    data = digits.DATA.read(Source(), train=False)
    for name, said in (("tc", "'tc'"), (None, "no distortion")):
        with pytest.raises(ValueError, match=f"grow: expected 0 for {said}, which cannot grow from none, got 3"):
            ImageDataset(data, distortion=None if name is None else distortions.get(name), grow=3)


def test_two_transformers_see_all_and_are_seen_by_the_classifier() -> None:
    model = stn.models.create("two_st_fcn", num_classes=19, pool=2).eval()
    images = torch.rand(3, 2, 42, 42)
    first, second = model.transformer, model.others[0]
    with torch.no_grad():
        first.localizer.head[-1].bias[2] += 0.3
        second.localizer.head[-1].bias[5] -= 0.4
        logits, warp = model.look(images)
        seen = torch.cat([first(images), second(images)], 1)
        torch.testing.assert_close(logits, model.classifier(torch.nn.functional.avg_pool2d(seen, 2)))
        torch.testing.assert_close(warp.output, first(images))
    inside = sum(len(group["params"]) for group in stn.parameter_groups(model, lr=1.0)[1:])
    assert inside == sum(
        len(list(one.localizer.parameters())) for one in (first, second)
    )  # both have the localizer's rate
    fed = stn.models.create("two_st_fcn", num_classes=19, pool=2, feed_theta=True).eval()
    assert fed.classifier.last.in_features == 128 + 2 * 6
    assert fed(images).shape == (3, 19)
    with pytest.raises(ValueError, match="others: expected none without a transformer, got 1"):
        stn.models.TransformerClassifier(None, torch.nn.Flatten(), 1, [first])


def test_a_run_from_training_to_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist_addition, "DATA", SUMS)
    monkeypatch.setattr(robustness, "ROTATIONS", (0, 90))
    monkeypatch.setattr(robustness, "SCALES", (1.0,))
    monkeypatch.setattr(robustness, "SHIFTS", (0.0,))
    config = replace(recipe("mnist_addition"), epochs=2, grow=1, limit_train=200, threads=1, out=str(tmp_path / "run"))
    run = load_run(train(config))
    assert run.facts.input_shape == (2, 42, 42)
    assert len(run.facts.class_names) == 19
    assert evaluate(run).images == 359
    page = report.write_report(run.path).read_text()
    assert "each channel rotated, scaled and shifted on its own" in page
    with pytest.raises(ValueError, match="run: expected one that was trained on images with 1 or 3 channels"):
        predict(run.path, [str(tmp_path)])


def test_two_channels_are_shown_in_red_and_green() -> None:
    import base64

    from PIL import Image

    from stn_recipes.report.markup import uri

    image = torch.zeros(2, 4, 4)
    image[0, 0, 0] = image[1, 1, 1] = 1.0
    shown = Image.open(io.BytesIO(base64.b64decode(uri(image).partition("base64,")[2])))
    assert [shown.getpixel(at) for at in ((0, 0), (1, 1), (2, 2))] == [(255, 0, 0), (0, 255, 0), (0, 0, 0)]


def test_the_set_is_known_by_its_name() -> None:
    assert registry.get("mnist_addition") is mnist_addition.DATA
    assert mnist_addition.DATA.background == "zeros"
