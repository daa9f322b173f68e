"""The door of the native backend: what it refuses, the names that it gives, and what becomes of a uint8 pixel."""

from __future__ import annotations

import math

import pytest
import torch

import stn
from stn.ops import cpu, use_backend

pytestmark = pytest.mark.skipif(cpu._reason is not None, reason=f"native backend: {cpu._reason}")

native = cpu._native
KINDS = ("affine", "projective", "basis", "grid")
SIZE, OUT, BATCH, CHANNELS, COUNT = {2: (5, 6), 3: (4, 5, 6)}, {2: (3, 4), 3: (2, 3, 4)}, 2, 3, 7


def arguments(kind="affine", what="FORWARD", d=2, dtype=torch.float32):
    """What `run` takes, by name; all of it fits together."""
    real = torch.float64 if dtype == torch.float64 else torch.float32
    out = torch.zeros(BATCH, CHANNELS, *OUT[d], dtype=dtype)
    image = torch.rand(BATCH, CHANNELS, *SIZE[d]).mul(200).to(dtype)
    basis = None
    if kind == "affine":
        coords = torch.eye(d, d + 1, dtype=real).repeat(BATCH, 1, 1)
    elif kind == "projective":
        coords = torch.eye(d + 1, dtype=real).repeat(BATCH, 1, 1)
    elif kind == "basis":
        coords = torch.rand(BATCH, COUNT, d, dtype=torch.float64)
        basis = torch.rand(COUNT, math.prod(OUT[d]), dtype=torch.float64).t()
    else:
        coords = torch.rand(BATCH, *OUT[d], d, dtype=real)
    result = {"FORWARD": out, "GRAD_COORDINATES": torch.zeros_like(coords), "GRAD_IMAGE": torch.zeros_like(image)}[what]
    return {
        "what": getattr(native, what),
        "mode": native.MODES["bilinear"],
        "padding": native.PADDINGS["constant"],
        "kind": native.COORDINATES[kind],
        "align_corners": False,
        "threads": 1,
        "image": result if what == "GRAD_IMAGE" else image,
        "coords": coords,
        "basis": basis,
        "fill": torch.ones(CHANNELS, dtype=real),
        "out": out,
        "result": result,
    }


def replace(given, name, tensor):
    """With another tensor, in both its places where it has two."""
    return {key: tensor if value is given[name] else value for key, value in given.items()}


def freed(tensor):
    tensor = tensor.clone(memory_format=torch.preserve_format)
    tensor.untyped_storage().resize_(0)
    return tensor


def freed_view(tensor):
    """torch adds the offset of the view to a null pointer."""
    storage = torch.zeros(tensor.numel() + 64, dtype=tensor.dtype)
    view = storage[64:].as_strided(tensor.shape, tensor.stride(), 64)
    storage.untyped_storage().resize_(0)
    return view


class Wrapper(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, *_):
        raise AssertionError("nothing is computed with it")


def wrapped(tensor):
    return torch.Tensor._make_wrapper_subclass(Wrapper, tensor.shape, strides=tensor.stride(), dtype=tensor.dtype)


def fake(tensor):
    with torch._subclasses.FakeTensorMode() as mode:
        return mode.from_tensor(tensor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["FORWARD", "GRAD_COORDINATES", "GRAD_IMAGE"])
@pytest.mark.parametrize("d", [2, 3])
def test_what_fits_together_runs(kind, what, d):
    assert native.run(**arguments(kind, what, d))


@pytest.mark.parametrize("without", [freed, freed_view, wrapped, fake])
@pytest.mark.parametrize("name", ["image", "coords", "basis", "fill", "out"])
def test_a_tensor_without_memory_is_refused(without, name):
    given = arguments("basis")
    with pytest.raises(ValueError, match=f"^{name}: expected a tensor with memory of its own, got one without data"):
        native.run(**replace(given, name, without(given[name])))


@pytest.mark.parametrize("without", [freed, freed_view, wrapped, fake])
@pytest.mark.parametrize("what", ["GRAD_COORDINATES", "GRAD_IMAGE"])
def test_a_gradient_without_memory_is_refused(without, what):
    given = arguments("affine", what)
    given["image"] = torch.zeros(BATCH, CHANNELS, *SIZE[2])
    with pytest.raises(ValueError, match=r"^result: expected a tensor with memory of its own"):
        native.run(**(given | {"result": without(given["result"])}))


WRONG = [
    ("affine", "FORWARD", "image", torch.zeros(BATCH, CHANNELS, 5), "5 axes|4 axes"),
    ("affine", "FORWARD", "image", torch.zeros(BATCH, CHANNELS, 0, 6), "at least one element"),
    ("affine", "FORWARD", "image", torch.zeros(BATCH, CHANNELS, 5, 6, dtype=torch.float64), "expected float32"),
    ("affine", "FORWARD", "image", torch.zeros(BATCH, CHANNELS, 5, 6, dtype=torch.int32), "float type or uint8"),
    ("affine", "FORWARD", "image", torch.zeros(BATCH, CHANNELS, 5, 6, dtype=torch.complex64), "float type or uint8"),
    ("affine", "FORWARD", "coords", torch.zeros(BATCH + 1, 2, 3), r"expected shape \(2, 2, 3\), got \(3, 2, 3\)"),
    ("affine", "FORWARD", "coords", torch.zeros(BATCH, 3, 3), r"expected shape \(2, 2, 3\)"),
    ("affine", "FORWARD", "coords", torch.zeros(BATCH, 3, 2).mT, "contiguous"),
    ("affine", "FORWARD", "coords", torch.zeros(BATCH, 2, 3, dtype=torch.float64), "expected float32"),
    ("projective", "FORWARD", "coords", torch.zeros(BATCH, 2, 3), r"expected shape \(2, 3, 3\)"),
    ("grid", "FORWARD", "coords", torch.zeros(BATCH, 4, 3, 2), r"expected shape \(2, 3, 4, 2\)"),
    ("grid", "FORWARD", "coords", torch.zeros(BATCH, 3, 4, 3), r"expected shape \(2, 3, 4, 2\)"),
    ("basis", "FORWARD", "coords", torch.zeros(BATCH, COUNT, 3, dtype=torch.float64), r"expected shape \(2, 7, 2\)"),
    ("basis", "FORWARD", "coords", torch.zeros(BATCH, COUNT, 2), "expected float64"),
    ("basis", "FORWARD", "basis", torch.zeros(COUNT, 11, dtype=torch.float64).t(), r"expected shape \(12, 7\)"),
    ("basis", "FORWARD", "basis", torch.zeros(COUNT + 1, 12, dtype=torch.float64).t(), r"expected shape \(12, 7\)"),
    ("basis", "FORWARD", "basis", torch.zeros(12, COUNT, dtype=torch.float64), "next to each other"),
    ("basis", "FORWARD", "basis", torch.zeros(COUNT, 12).t(), "expected float64"),
    ("basis", "FORWARD", "basis", None, "expected a tensor"),
    ("affine", "FORWARD", "fill", torch.zeros(CHANNELS - 1), r"expected shape \(3,\)"),
    ("affine", "FORWARD", "fill", torch.zeros(CHANNELS, dtype=torch.float64), "expected float32"),
    ("affine", "FORWARD", "fill", torch.zeros(1).expand(CHANNELS), "contiguous"),
    ("affine", "FORWARD", "out", torch.zeros(BATCH + 1, CHANNELS, 3, 4), r"expected shape \(2, 3\)"),
    ("affine", "FORWARD", "out", torch.zeros(BATCH, CHANNELS + 1, 3, 4), r"expected shape \(2, 3\)"),
    ("affine", "FORWARD", "out", torch.zeros(BATCH, CHANNELS, 3, 8)[..., ::2][..., :3].mT, "same distance"),
    ("affine", "FORWARD", "out", torch.zeros(BATCH, CHANNELS), "expected .B, C"),
    ("affine", "GRAD_COORDINATES", "result", torch.zeros(BATCH, 3, 3), r"expected shape \(2, 2, 3\)"),
    ("affine", "GRAD_COORDINATES", "result", torch.zeros(BATCH, 2, 3, dtype=torch.float64), "expected float32"),
    ("affine", "GRAD_COORDINATES", "result", torch.zeros(BATCH, 3, 2).mT, "contiguous"),
    ("affine", "GRAD_IMAGE", "result", torch.zeros(BATCH, CHANNELS, 5, 6, dtype=torch.float64), "expected float32"),
]


@pytest.mark.parametrize(("kind", "what", "name", "tensor", "message"), WRONG)
def test_what_does_not_fit_together_is_refused(kind, what, name, tensor, message):
    given = arguments(kind, what)
    with pytest.raises(ValueError, match=message) as caught:
        native.run(**replace(given, name, tensor))
    assert str(caught.value).startswith(f"{name}: ")


def test_a_gradient_of_another_shape_or_layout_than_the_image_is_refused():
    given = arguments(what="GRAD_IMAGE")
    for result in (torch.zeros(BATCH, CHANNELS, 6, 5), torch.zeros(BATCH, CHANNELS, 6, 5).mT):
        with pytest.raises(ValueError, match=r"^result: expected (shape|the strides)"):
            native.run(**(given | {"result": result}))


def test_an_output_that_is_not_the_result_is_refused():
    with pytest.raises(ValueError, match=r"^result: expected the output"):
        native.run(**(arguments() | {"result": torch.zeros(BATCH, CHANNELS, *OUT[2])}))


@pytest.mark.parametrize("name", ["what", "mode", "padding", "kind"])
@pytest.mark.parametrize("number", [-1, 6])
def test_unknown_numbers_are_refused(name, number):
    with pytest.raises(ValueError, match=f"^{name}: "):
        native.run(**(arguments() | {name: number}))


def test_the_gradients_that_do_not_exist_are_refused():
    given = arguments(what="GRAD_COORDINATES")
    with pytest.raises(ValueError, match=r"^mode: the gradient of the coordinates is 0"):
        native.run(**(given | {"mode": native.MODES["nearest"]}))
    with pytest.raises(ValueError, match=r"^out: .* no gradient of uint8"):
        native.run(**arguments(what="GRAD_IMAGE", dtype=torch.uint8))


def test_names():
    """Those of the public options, and numbers that differ."""
    for names, expected in (
        (native.MODES, ("nearest", "bilinear", "bicubic")),
        (native.PADDINGS, ("zeros", "border", "reflection", "circular", "constant")),
        (native.COORDINATES, (*KINDS, "pixels", "field")),
    ):
        assert tuple(names) == expected
        assert len(set(names.values())) == len(names)
    assert len({native.FORWARD, native.GRAD_COORDINATES, native.GRAD_IMAGE}) == 3


def test_instruction_sets():
    """Any limit gives the newest set below it that was built, and is told apart from a wrong name."""
    names = ("baseline", "x86-64-v3", "x86-64-v4")
    best = native.instruction_set()
    assert native.INSTRUCTION_SETS[0] == "baseline"
    assert set(native.INSTRUCTION_SETS) <= set(names)
    try:
        for limit in names:
            got = native.choose(limit)
            assert got == native.instruction_set()
            assert got in native.INSTRUCTION_SETS
            assert names.index(got) <= min(names.index(limit), names.index(best))
        with pytest.raises(ValueError, match=r"^limit: expected the name of an instruction set, got 'sse9'"):
            native.choose("sse9")
    finally:
        assert native.choose("") == best


# uint8: the value in float32, rounded half to even, from 0 to 255


def warp(image, coords, kind, mode, padding, fill=None, size=None):
    out = torch.full((*image.shape[:2], *(size or image.shape[2:])), 77, dtype=image.dtype)
    if image.shape[1] > 1 and image.stride(1) == 1:
        out = out.contiguous(memory_format=torch.channels_last if image.ndim == 4 else torch.channels_last_3d)
    options = (native.FORWARD, native.MODES[mode], native.PADDINGS[padding], native.COORDINATES[kind], False)
    native.run(*options, 1, image, coords, None, fill, out, out)
    return out


def layouts(image):
    yield image
    yield image.contiguous(memory_format=torch.channels_last if image.ndim == 4 else torch.channels_last_3d)


@pytest.mark.parametrize("d", [2, 3])
def test_uint8_rounds_half_to_even(d):
    """Half way between two pixels of a row, sums of odd and even numbers: 0.5, 1.5, 2.5, ... 254.5."""
    size = (1,) * (d - 1) + (256,)
    row = torch.arange(256, dtype=torch.uint8).expand(1, 3, *size).contiguous()
    coords = torch.eye(d, d + 1)[None].clone()
    coords[0, 0, d] = 1 / 256
    expected = (torch.arange(255) + 0.5).round().to(torch.uint8)  # torch rounds half to even
    for image in layouts(row):
        out = warp(image, coords, "affine", "bilinear", "border")
        assert torch.equal(out[0, :, ..., :255].reshape(3, 255), expected.expand(3, 255))


@pytest.mark.parametrize("set_", ["baseline", "x86-64-v3", ""])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection", "circular", "constant"])
@pytest.mark.parametrize(("d", "channels"), [(2, 1), (2, 2), (2, 3), (2, 4), (2, 5), (2, 16), (3, 1), (3, 3)])
def test_uint8_is_the_reference_rounded(set_, mode, padding, d, channels):
    """Noise of 0 and 255 overshoots under bicubic: what is beyond ends at 0 and 255. On small images and large ones."""
    generator = torch.Generator().manual_seed(d * 100 + channels)
    fill = torch.linspace(-20, 300, channels) if padding == "constant" else None
    try:
        native.choose(set_)
        for size in ((11, 13), (300, 310)) if d == 2 else ((5, 6, 7),):
            noise = torch.randint(0, 2, (1, channels, *size), generator=generator, dtype=torch.uint8) * 255
            out_size = (40, 37) if d == 2 else (6, 5, 9)
            coords = torch.eye(d, d + 1)[None] + 0.2 * torch.randn(1, d, d + 1, generator=generator)
            options = {"mode": mode, "padding_mode": padding} | ({} if fill is None else {"fill": fill.double()})
            with use_backend("reference"):
                truth = stn.warp(noise.double(), coords.double(), out_size, **options)
            for image in layouts(noise):
                out = warp(image, coords, "affine", mode, padding, fill, out_size).double()
                wrong = (out - truth.clamp(0, 255)).abs() > 0.51 + 0.05  # positions and weights are float32
                # A position within rounding of a tie, or a pixel's edge, may fall on its other side.
                assert int(wrong.sum()) <= (2 * channels if mode == "nearest" else 0)
    finally:
        native.choose("")


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("d", "channels"), [(2, 1), (2, 3), (2, 16), (3, 3)])
def test_uint8_at_no_position_is_0(mode, d, channels):
    """uint8 has no NaN: a pixel whose position is none is 0, whatever the fill, and its neighbours are not touched."""
    for size in ((11, 13), (300, 310)) if d == 2 else ((5, 6, 7),):
        bright = torch.full((1, channels, *size), 200, dtype=torch.uint8)
        coords = torch.zeros(1, *size, d)
        coords[0].view(-1, d)[5, 0] = torch.nan
        for image in layouts(bright):
            out = warp(image, coords, "grid", mode, "constant", torch.full((channels,), 90.0))
            flat = out.reshape(channels, -1)
            assert flat[:, 5].eq(0).all()
            flat = flat.clone()
            flat[:, 5] = 200
            assert flat.eq(200).all()
