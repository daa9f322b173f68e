import io
import subprocess
import sys

import matplotlib.colors
import numpy as np
import pytest
import torch
from PIL import Image

import stn
from stn import viz
from stn.transforms import TRANSFORMS, by_name

SIZE = (8, 12)


def images(count=3, channels=1, size=SIZE):
    return torch.rand(count, channels, *size)


def warp_by(transform, theta, batch):
    output = stn.warp(batch, theta, transform=transform)
    return stn.Warp(output, theta, transform, tuple(batch.shape[2:]), tuple(output.shape[2:]), False)


def pixels(axes):
    return np.asarray(axes.images[0].get_array())


def test_nothing_of_matplotlib_is_imported_before_it_is_needed_and_pyplot_never():
    code = (
        "import sys, torch, stn; from stn import viz; assert 'matplotlib' not in sys.modules;"
        "viz.filmstrip(torch.rand(1, 1, 1, 4, 4), [0]).canvas.draw();"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ImportError, match=r"spatial-transformers\[viz\]"):
        viz.filmstrip(torch.rand(1, 1, 1, 4, 4), [0])


def test_a_notebook_shows_a_figure_with_a_transparent_ground():
    figure = viz.confusion(torch.eye(2), ["a", "b"])
    picture = Image.open(io.BytesIO(figure._repr_png_()))
    assert picture.format == "PNG"
    assert picture.getpixel((0, 0))[3] == 0
    assert np.asarray(picture)[..., 3].max() == 255


def test_before_after_shows_both_and_draws_the_frame_where_it_is_read():
    batch = images()
    shift = torch.tensor([[0.5, 0.0]] * 3)  # a quarter of the width: 3 pixels to the right
    warp = warp_by(stn.Translation(), shift, batch)
    figure = viz.before_after(batch, warp, ["a", "b", "c"], columns=2)
    axes = np.array(figure.axes).reshape(4, 2)  # input, output, input, output
    assert [axes[0, 0].get_title(), axes[0, 1].get_title(), axes[2, 0].get_title()] == ["a", "b", "c"]
    np.testing.assert_allclose(pixels(axes[0, 1]), batch[1, 0])
    np.testing.assert_allclose(pixels(axes[3, 0]), warp.output[2, 0])
    line = next(line for line in axes[2, 0].lines if line.get_color() == viz.FRAME)
    np.testing.assert_allclose(line.get_xydata()[:3], [[2.5, -0.5], [14.5, -0.5], [14.5, 7.5]], atol=1e-5)
    left, right = axes[0, 0].get_xlim()
    assert left < -0.5
    assert 14.5 < right < 16  # room for the frame
    assert not axes[2, 1].images  # no fourth image


def test_normalization_is_undone_and_colour_stays_in_order():
    batch = images(1, 3)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    normalized = (batch - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    figure = viz.filmstrip(normalized[None], [4], normalized, mean=mean, std=std)
    assert [axes.get_title() for axes in figure.axes] == ["input", "epoch 4"]
    for axes in figure.axes:
        np.testing.assert_allclose(pixels(axes), batch[0].permute(1, 2, 0), atol=1e-6)


def test_a_filmstrip_has_a_row_for_each_image_and_a_column_for_each_epoch():
    frames = torch.rand(3, 2, 1, *SIZE)
    figure = viz.filmstrip(frames, [0, 1, 7])
    axes = np.array(figure.axes).reshape(2, 3)
    assert [place.get_title() for place in axes[0]] == ["start", "epoch 1", "epoch 7"]
    np.testing.assert_allclose(pixels(axes[1, 2]), frames[2, 1, 0])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_number_of_theta_has_the_name_of_what_it_does(name):
    transform = by_name(name)
    names = viz.theta_names(transform)
    assert len(names) == transform.num_params == len(set(names))
    points = torch.tensor([[[0.3, 0.2]]])
    for i, what in enumerate(names):
        theta = transform.identity()[None].clone()
        theta[0, i] += 0.25
        moved = (transform.map_points(theta, points) - points)[0, 0]
        along = {"shift x": (True, False), "shift y": (False, True)}.get(what)
        if along is not None:
            assert tuple((moved.abs() > 1e-6).tolist()) == along
        if what == "angle":
            torch.testing.assert_close((points[0, 0] + moved).norm(), points.norm())
        if what in ("log scale", "log scale x"):
            assert moved[0] == pytest.approx(0.3 * (np.exp(0.25) - 1), abs=1e-6)
    assert viz.theta_names(stn.Similarity(log_scale=False))[1] == "scale"
    assert viz.theta_names(stn.Rotation() @ stn.Translation()) == ["outer angle", "inner shift x", "inner shift y"]


def test_histograms_count_every_finite_row_and_mark_the_identity():
    theta = torch.randn(50, 3)
    theta[7, 1] = float("nan")
    figure = viz.theta_histograms(theta, stn.Attention(log_scale=False), columns=2)
    assert [axes.get_title() for axes in figure.axes] == ["scale", "shift x", "shift y"]
    for axes, identity in zip(figure.axes, (1.0, 0.0, 0.0), strict=True):
        assert sum(bar.get_height() for bar in axes.patches) == 49
        assert list(axes.lines[0].get_xdata()) == [identity, identity]
    one = viz.theta_histograms(theta, stn.Attention(), params=[2])
    assert [axes.get_title() for axes in one.axes] == ["shift y"]


def test_curves_draw_what_was_logged_and_leave_gaps():
    log = [{"epoch": e, "train_loss": 1 / e, "val_loss": None if e == 2 else 2 / e, "lr": 0.1} for e in (1, 2, 3)]
    figure = viz.curves(log, log, panels=["loss", "lr"], names=("mine", "other"))
    loss, rate = figure.axes
    lines = {line.get_label(): line for line in loss.lines}
    assert set(lines) == {"mine, training", "mine, validation", "other, training", "other, validation"}
    np.testing.assert_allclose(lines["mine, training"].get_ydata(), [1, 0.5, 1 / 3])
    np.testing.assert_allclose(lines["other, validation"].get_ydata(), [2, np.nan, 2 / 3])
    assert lines["mine, validation"].get_color() == viz.FIRST
    assert lines["other, validation"].get_color() == viz.SECOND
    assert lines["mine, training"].get_linestyle() != lines["mine, validation"].get_linestyle()
    assert len(rate.lines) == 1  # the same schedule is drawn once


def test_confusion_writes_counts_and_colours_errors_apart():
    counts = torch.tensor([[8, 2, 0], [0, 5, 0], [0, 0, 0]])
    axes = viz.confusion(counts, ["cat", "dog", "<cow>"]).axes[0]
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "8", (1, 0): "2", (1, 1): "5"}  # x is the prediction
    cells = axes.collections[0].get_array()
    assert matplotlib.colors.to_hex(cells[0, 0]) == viz.FIRST
    assert matplotlib.colors.to_hex(cells[0, 1]) == viz.WRONG
    assert cells[0, 1, 3] > 0 == cells[1, 0, 3]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "<cow>"]
    assert not viz.confusion(torch.ones(50, 50), ["x"] * 50).axes[0].texts  # too many to read


def test_robustness_draws_every_network():
    sweeps = {"rotation": ([-90, 0, 90], {"transformer": [0.9, 1.0, 0.8], "control": [0.1, 1.0, 0.2]})}
    axes = viz.robustness(sweeps).axes[0]
    assert [line.get_label() for line in axes.lines] == ["transformer", "control"]
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [[-90, 0.1], [0, 1.0], [90, 0.2]])
    assert axes.get_ylim()[0] < 0.1
    assert axes.get_xlabel() == "rotation"


def test_a_warped_grid_lies_where_the_points_are_read():
    transform, batch = stn.Rotation(), images(2)
    theta = torch.tensor([[0.0], [0.4]])
    straight, turned = viz.warped_grid(transform, theta, SIZE, batch, lines=3, columns=2).axes
    np.testing.assert_allclose(pixels(straight), batch[0, 0])
    paths = [line.get_xydata() for line in straight.lines if len(line.get_xydata()) == 65]
    assert len(paths) == 6
    np.testing.assert_allclose(paths[0][[0, -1]], [[-0.5, -0.5], [11.5, -0.5]], atol=1e-5)
    corner = transform.map_points(theta[1:], torch.tensor([[[-1.0, -1.0]]]), stn.Frame(SIZE))
    expected = stn.conventions.normalized_to_pixel(corner, SIZE)[0, 0]
    np.testing.assert_allclose(turned.lines[1].get_xydata()[0], expected, atol=1e-4)


def test_room_around_images_is_what_the_frames_need_and_no_more_than_the_limit():
    frame = torch.tensor([[[-0.5, -0.5], [11.5, -0.5], [11.5, 7.5], [-0.5, 7.5]]])
    assert viz.frame_margin(frame, SIZE) == pytest.approx(0.02)
    assert viz.frame_margin(frame - torch.tensor([1.2, 0.0]), SIZE) == pytest.approx(0.12)
    assert viz.frame_margin(10 * frame, SIZE) == 0.3
    assert viz.frame_margin(frame * float("nan"), SIZE) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("transform", "points"),
    [(stn.Crop(), 5), (stn.Rotation() @ stn.Crop(), 5), (stn.Corners(), 65), (stn.Rotation() @ stn.Corners(), 65)],
)
def test_an_affine_frame_takes_a_point_a_corner_and_any_other_more(transform, points):
    warp = warp_by(transform, transform.identity().expand(3, -1), images())
    assert viz.frame_outlines(warp).shape == (3, points, 2)


def orange(picture, box):
    """The box of the frame's colour inside a box of a picture."""
    part = np.asarray(picture.convert("RGB").crop(box)).astype(int)
    near = np.abs(part - [255, 166, 26]).sum(2) < 60
    rows, columns = np.nonzero(near)
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_a_moving_picture_turns_the_frame_and_what_is_read(tmp_path):
    batch = torch.zeros(2, 1, 12, 12)
    batch[:, :, 2:5, 2:10] = 1  # a bar across the top
    file = viz.animate(tmp_path / "a.gif", batch, {"affine": stn.Affine()}, frames=8, seconds=0.8, side=48)
    picture = Image.open(file)
    assert (picture.format, picture.n_frames, picture.info["duration"], picture.info["loop"]) == ("GIF", 8, 100, 0)
    stills = []
    for n in range(8):
        picture.seek(n)
        stills.append(picture.convert("RGB"))
    assert stills[0].getpixel((1, 1)) == (255, 255, 255)
    half = stills[0].width // 2
    boxes = [orange(still, (0, 20, half, stills[0].height)) for still in stills]
    widths = [box[2] - box[0] for box in boxes]
    assert abs(widths[0] - widths[2]) <= 4  # a square and its quarter turn, but for the dot on the corner
    assert 1.25 < widths[1] / 48 < 1.6  # on its corner it is as wide as its diagonal
    for still, upright in ((stills[0], False), (stills[2], True)):  # after a quarter turn of the frame the bar stands
        light = np.asarray(still.convert("L"))[-60:, :half] > 128
        rows, columns = np.nonzero(~light)
        output = light[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert output.shape == (48, 48)
        high, wide = output.any(1).sum(), output.any(0).sum()
        assert (high > 2 * wide) if upright else (wide > 2 * high)
    again = viz.animate(tmp_path / "b.gif", batch, {"affine": stn.Affine()}, frames=8, seconds=0.8, side=48)
    assert file.read_bytes() == again.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.gif", "b.gif"}


def test_a_motion_of_ones_own_is_what_is_shown(tmp_path):
    shifts = torch.tensor([[0.0, 0.0], [0.4, 0.0]])
    family = {"shift": stn.Translation()}
    file = viz.animate(tmp_path / "a.gif", torch.zeros(1, 3, 10, 20), family, {"shift": shifts}, frames=2, side=100)
    picture = Image.open(file)
    first = orange(picture, (0, 20, *picture.size))
    picture.seek(1)
    second = orange(picture, (0, 20, *picture.size))
    assert second[2] - first[2] == pytest.approx(0.2 * 100, abs=1)
    assert second[1] == first[1]


def test_a_moving_picture_as_mp4(tmp_path):
    reader = pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg (extra [video]) is not installed")
    file = viz.animate(tmp_path / "a.mp4", images(2), frames=6, seconds=0.5)
    assert file.read_bytes()[4:8] == b"ftyp"
    meta = next(frames := reader.read_frames(str(file)))
    assert meta["fps"] == 12
    assert len(list(frames)) == 6


def test_mp4_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"spatial-transformers\[video\]"):
        viz.animate(tmp_path / "a.mp4", images(1))
    assert list(tmp_path.iterdir()) == []


LOG = [{"epoch": 1, "train_loss": 1.0}]


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: viz.animate("a.png", images()), "file: expected a name that ends with .gif or .mp4"),
        (lambda: viz.animate("a.gif", torch.rand(8, 8)), "images: expected"),
        (lambda: viz.animate("a.gif", images(), {}), "families: expected at least one"),
        (lambda: viz.animate("a.gif", images(), {"a": stn.Affine(3)}), "families: expected transforms of 2D images"),
        (lambda: viz.animate("a.gif", images(), thetas={"b": torch.zeros(48, 6)}), "thetas: expected the names"),
        (lambda: viz.animate("a.gif", images(), thetas={"affine": torch.zeros(1, 6)}), r"thetas: expected \(48, 6\)"),
        (lambda: viz.animate("a.gif", images(), frames=0), "frames: expected a positive int"),
        (lambda: viz.animate("a.gif", images(), seconds=0), "seconds: expected a number above 0"),
        (lambda: viz.before_after(torch.rand(3, 8, 8), None), "images: expected .*got a tensor of shape"),
        (lambda: viz.before_after(images(), "warp"), "warp: expected what"),
        (lambda: viz.before_after(images(2), warp_by(stn.Translation(), torch.zeros(3, 2), images())), "warp: .*2 .*3"),
        (
            lambda: viz.before_after(images(), warp_by(stn.Translation(), torch.zeros(3, 2), images()), ["a"]),
            "titles: expected 3",
        ),
        (
            lambda: viz.before_after(images(), warp_by(stn.Translation(), torch.zeros(3, 2), images()), columns=0),
            "columns: expected a positive int, got 0",
        ),
        (lambda: viz.filmstrip(torch.rand(2, 1, 8, 8), [0, 1]), "frames: expected"),
        (lambda: viz.filmstrip(torch.rand(2, 1, 1, 8, 8), [0]), "epochs: expected 2.*got 1"),
        (lambda: viz.filmstrip(torch.rand(2, 1, 1, 8, 8), [0, 1], torch.rand(2, 1, 8, 8)), "inputs: expected"),
        (lambda: viz.filmstrip(torch.rand(1, 1, 3, 8, 8), [0], mean=(0.5, 0.5)), "mean: expected one number or 3"),
        (lambda: viz.theta_names("affine"), "transform: expected"),
        (lambda: viz.theta_histograms(torch.rand(2, 5), stn.Affine()), r"theta: expected \(B, 6\)"),
        (lambda: viz.theta_histograms(torch.full((2, 6), torch.inf), stn.Affine()), "theta: expected at least one"),
        (lambda: viz.theta_histograms(torch.rand(2, 6), stn.Affine(), params=[6]), "params: expected"),
        (lambda: viz.curves([]), "metrics: expected"),
        (lambda: viz.curves(LOG, [{"train_loss": 1.0}]), "metrics: expected"),
        (lambda: viz.curves(LOG, panels=["los"]), "did you mean 'loss'"),
        (lambda: viz.curves(LOG, panels=[]), "panels: expected"),
        (lambda: viz.confusion(torch.ones(2, 3), ["a", "b"]), "matrix: expected"),
        (lambda: viz.confusion(-torch.ones(1, 1), ["a"]), "matrix: expected"),
        (lambda: viz.confusion(torch.ones(2, 2), ["a"]), "class_names: expected 2"),
        (lambda: viz.robustness({}), "sweeps: expected"),
        (lambda: viz.robustness({"scale": ([1, 2], {"a": [0.5]})}), "sweeps: expected 2 accuracies of 'a'"),
        (lambda: viz.warped_grid(stn.Rotation(), torch.zeros(0, 1), SIZE), "theta: expected"),
        (lambda: viz.warped_grid(stn.Rotation(), torch.zeros(1, 1), SIZE, lines=1), "lines: expected"),
        (lambda: viz.warped_grid(stn.Rotation(), torch.zeros(1, 1), SIZE, images(2)), "images: expected"),
    ],
)
def test_mistakes_are_named(call, argument):
    with pytest.raises(ValueError, match=argument):
        call()
