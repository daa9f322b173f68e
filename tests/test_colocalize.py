"""Co-localization: the network, its loss, its data, and a run from training to its report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import stn
from stn.models import Colocalizer
from stn.models.colocalizer import Windows
from stn_recipes import report
from stn_recipes.config import TrainConfig
from stn_recipes.export import export
from stn_recipes.predict import predict
from stn_recipes.publish import publish
from stn_recipes.recipes import recipe
from stn_recipes.run import colocalize
from stn_recipes.run.callbacks import EpochSeed
from stn_recipes.run.colocalize import frames, overlap, triplet_loss
from stn_recipes.run.folder import RunError, load_run
from stn_recipes.run.train import evaluate, resume, train

WINDOW = stn.Affine(fixed=[[1 / 3, 0, None], [0, 1 / 3, None]])
# The embedded digits in place of MNIST: nothing is downloaded.
TINY = replace(recipe("colocalize"), dataset="digits", digit=3, limit_train=60, threads=1, progress=False)


@pytest.fixture
def model() -> Colocalizer:
    torch.manual_seed(0)
    return Colocalizer((1, 84, 84), WINDOW)


def test_the_windows_of_the_lattice_are_the_crops_of_the_transformer(model: Colocalizer) -> None:
    images = torch.rand(2, 1, 84, 84)
    windows = model.windows(images)
    assert windows.heat.shape == (2, 225)
    assert model.localizer.places.aminmax() == pytest.approx((-2 / 3, 2 / 3))
    for place in (0, 14, 31, 224):
        theta = model.localizer.places[place].expand(2, 2)
        crops = model.transformer.warp(images, theta).output
        torch.testing.assert_close(model.encode(crops), windows.encodings[:, place], rtol=0, atol=1e-5)
        torch.testing.assert_close(model.localizer.score(crops).flatten(), windows.heat[:, place], rtol=0, atol=1e-5)
    expected = windows.heat.softmax(1) @ model.localizer.places
    encoding, warp = model.look(images)
    torch.testing.assert_close(warp.theta, expected)
    torch.testing.assert_close(encoding.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(model(images), encoding)


def test_windows_lie_apart_where_they_have_little_in_common(model: Colocalizer) -> None:
    apart = model.localizer.apart  # a step is 4 of 28 pixels
    assert not apart.diagonal().any()
    assert not apart[0, 4]  # 16 pixels to the right
    assert apart[0, 5]
    assert apart[0, 5 * 15]
    assert torch.equal(apart, apart.T)


def test_windows_on_an_oblong_image() -> None:
    model = Colocalizer((1, 56, 84), stn.Affine(fixed=[[1 / 3, 0, None], [0, 1 / 2, None]]))
    assert model.windows(torch.rand(1, 1, 56, 84)).heat.shape == (1, 8 * 15)
    torch.testing.assert_close(model.localizer.places[-1], torch.tensor([2 / 3, 1 / 2]))


@pytest.mark.parametrize(
    "family", [stn.Affine(), stn.Translation(), stn.Affine(fixed=[[0.3, 0, None], [0, 0.3, None]]), stn.Attention()]
)
def test_another_family_is_no_window(family: stn.transforms.AbstractTransform) -> None:
    with pytest.raises(
        ValueError, match=r"transform: expected Affine\(fixed=\[\[w / 84, 0, None\], .* a multiple of 14"
    ):
        Colocalizer((1, 84, 84), family)


def test_overlap_of_boxes() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    b = torch.tensor([[1.0, 0.0, 3.0, 1.0], [2.0, 2.0, 3.0, 3.0]])
    torch.testing.assert_close(overlap(a, b), torch.tensor([1 / 3, 0.0]))


def test_what_is_alike_in_all_images_but_not_alone_in_each_costs_more() -> None:
    digit, nothing = torch.eye(2)
    encodings = torch.stack([digit, nothing, nothing]).expand(2, 3, 2)  # of two images with three windows each
    apart = ~torch.eye(3, dtype=torch.bool)

    def loss(place: int) -> float:
        return float(triplet_loss(Windows(torch.eye(3)[place].expand(2, 3) * 1e3, encodings), apart))

    assert loss(0) == 0  # the found ones are equal, everything else is 2 away: max(0, 0 - 1.93 + 1)
    assert loss(1) == pytest.approx(
        1, abs=1e-3
    )  # the found ones are equal, and so is another window: max(0, 0 - 0 + 1)
    # Among the places of an image the loss is the mean by what the localizer says.
    torch.manual_seed(0)
    even = float(triplet_loss(Windows(torch.zeros(2, 3), encodings), apart))
    assert even > 0.5


def test_the_gradient_knows_places_that_the_window_does_not_touch() -> None:
    digit, nothing = torch.eye(2)
    encodings = torch.stack([digit, nothing, nothing]).expand(40, 3, 2)
    heat = torch.tensor([0.0, 1.0, 1.0]).repeat(40, 1).requires_grad_()  # most look at nothing
    torch.manual_seed(0)
    triplet_loss(Windows(heat, encodings), ~torch.eye(3, dtype=torch.bool)).backward()
    assert (heat.grad[:, 0] < 0).all()  # yet each is told of the digit


def test_the_boxes_are_where_the_digits_are() -> None:
    data = replace(TINY, distortion="t84").make_data().train_data()
    data.data.images.fill_(255)
    images, boxes = data[list(range(6))]
    images = images * data._std + data._mean
    torch.testing.assert_close(boxes[:, 2:] - boxes[:, :2], torch.full((6, 2), 2 / 3))
    crops = stn.warp(images, (boxes[:, :2] + boxes[:, 2:]) / 2, (28, 28), transform=WINDOW)
    torch.testing.assert_close(crops, torch.ones_like(crops))
    assert float(images.mean()) == pytest.approx(1 / 9)
    model = Colocalizer((1, 84, 84), WINDOW)
    model.transformer.localizer = _Known((boxes[:, :2] + boxes[:, 2:]) / 2)
    torch.testing.assert_close(overlap(frames(model, images), boxes), torch.ones(6))


class _Known(torch.nn.Module):
    def __init__(self, theta: torch.Tensor) -> None:
        super().__init__()
        self.theta = theta

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.theta


def test_the_images_are_one_set_of_one_class() -> None:
    module = TINY.make_data()
    data = module.test_data()
    assert module.train_data() is data
    assert module.val_data() is None
    assert set(data.data.labels.tolist()) == {3}
    assert len(data) == 60
    assert module.class_names == ("3",)
    assert data.source is not None
    assert len(data.source) < len(module.dataset.read(module._source(), train=True))  # the class itself is no clutter
    first, later = data.__getitems__([(0, 5)])[0], data.__getitems__([(7, 5)])[0]
    assert torch.equal(first, later)  # the same in every epoch
    plain = replace(TINY, distortion="t84").make_data().train_data()
    assert torch.equal(plain.boxes()[:, :2] < 1, torch.ones(60, 2, dtype=torch.bool))
    clutter = (first * data._std + data._mean).sum() - (plain[[5]][0] * plain._std + plain._mean).sum()
    assert clutter > 5
    other = replace(TINY, seed=1).make_data().train_data()
    assert not torch.equal(other[[5]][0], first)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"digit": None}, "network: expected colocalizer with a digit"),
        ({"network": "compact"}, "network: expected colocalizer with a digit"),
        ({"digit": -1}, "digit: expected a finite number of at least 0"),
        ({"control": True}, "control: expected none"),
        ({"digit": 10}, "digit: expected 0 to 9, got 10"),
        ({"distortion": "r"}, "distortion: expected one that places the digit"),
        ({"val_fraction": 0.1}, "digit: its images are one set"),
        ({"limit_train": None}, "digit: its images are one set"),
        ({"limit_train": 1000}, "limit_train: expected at most"),
        ({"digit": None, "network": "compact"}, "starts: expected 1 but for co-localization"),
        ({"schedule": "cosine"}, "starts: expected 1 but for .* a constant learning rate"),
        ({"starts": 0}, "starts: expected a finite number of at least 1"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(TINY, **wrong).make_data().setup("fit")  # type: ignore[arg-type]


def found_by(config: TrainConfig, folder: Path) -> float:
    run = load_run(train(replace(config, out=str(folder))))
    assert run.result is not None
    assert run.mistakes is not None
    assert run.mistakes.images == config.limit_train
    assert run.result.test_accuracy == pytest.approx(1 - len(run.mistakes.wrong) / run.mistakes.images)
    return run.result.test_accuracy


def test_a_run_from_training_to_its_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    share = found_by(replace(TINY, epochs=20), folder)
    run = load_run(folder)
    assert run.metrics()[0]["train_accuracy"] < 0.5
    assert share > 0.9
    page = report.write_report(folder).read_text()
    assert "Found without labels" in page
    assert "of class 3, shifted on 84 pixels, among clutter" in page
    assert (folder / "figures" / "found.png").stat().st_size > 5_000
    for use in (
        lambda: evaluate(run),
        lambda: predict(folder, [tmp_path]),
        lambda: publish(folder, out=tmp_path / "out"),
        lambda: export(folder, "pt2"),
    ):
        with pytest.raises(RunError, match="expected a run that classifies"):
            use()


SHORT = replace(TINY, limit_train=10, batch_size=10, epochs=2, starts=3)


def test_a_set_that_is_not_found_is_started_again_and_the_best_start_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(colocalize, "FOUND", -1.0)
    folder = tmp_path / "run"
    step, remembered = colocalize.Colocalization.training_step, []

    def watched(self, batch, batch_idx):  # type: ignore[no-untyped-def]
        remembered.append(len(self.trainer.optimizers[0].state))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(colocalize.Colocalization, "training_step", watched)
    train(replace(SHORT, out=str(folder)))
    assert [count == 0 for count in remembered] == [
        True,
        False,
    ] * 3  # a new start knows nothing of the last one's gradients
    assert "Start 2 of 3 ended with a loss of" in capsys.readouterr().out
    run = load_run(folder)
    losses = [row["train_loss"] for row in run.metrics()]
    assert len(losses) == 6
    ends = losses[1::2]
    assert len(set(ends)) == 3
    best = ends.index(min(ends))
    alone = {}  # each start as a run of its own
    for start in range(3):
        monkeypatch.setattr(
            TrainConfig, "make_model", lambda self, *shape, start=start, make=MAKE: make(self, *shape, start=start)
        )
        monkeypatch.setattr(EpochSeed, "on_train_epoch_start", lambda self, trainer, module: torch.manual_seed(0))
        alone[start] = train(replace(SHORT, starts=1, out=str(tmp_path / str(start))))
    monkeypatch.undo()
    weights = load_run(folder).model.state_dict()
    distance = {
        start: sum(
            float((value - weights[name]).abs().sum()) for name, value in load_run(path).model.state_dict().items()
        )
        for start, path in alone.items()
    }
    assert min(distance, key=distance.__getitem__) == best


MAKE = TrainConfig.make_model


def test_a_set_that_is_found_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colocalize, "FOUND", 1e3)
    run = train(replace(SHORT, out=str(tmp_path / "run")))
    once = train(replace(SHORT, starts=1, out=str(tmp_path / "once")))
    assert load_run(run).result.epochs == 2  # type: ignore[union-attr]
    assert same(run, once)


def same(run: Path, other: Path) -> bool:
    ours, theirs = (load_run(path).model.state_dict() for path in (run, other))
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_run_with_several_starts_resumes_to_the_same_weights(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(colocalize, "FOUND", -1.0)
    whole = train(replace(SHORT, out=str(tmp_path / "whole")))
    step = colocalize.Colocalization.training_step

    def interrupted(self, batch, batch_idx):  # type: ignore[no-untyped-def]
        if self.trainer.current_epoch == stop:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(colocalize.Colocalization, "training_step", interrupted)
    half = tmp_path / "half"
    with pytest.raises(KeyboardInterrupt):
        train(replace(SHORT, out=str(half)))
    monkeypatch.setattr(colocalize.Colocalization, "training_step", step)
    resume(half)
    assert same(half, whole)
    with pytest.raises(ValueError, match=r"epochs: expected 2, .* may start again is not extended"):
        resume(half, overrides={"epochs": 9})


@pytest.mark.slow
@pytest.mark.parametrize("distortion", ["t84", "tc84"])
def test_every_digit_is_found(distortion: str, tmp_path: Path) -> None:
    for digit in range(10):
        config = replace(TINY, digit=digit, limit_train=100, distortion=distortion, seed=3)  # type: ignore[arg-type]
        assert found_by(config, tmp_path / str(digit)) > 0.9, digit
