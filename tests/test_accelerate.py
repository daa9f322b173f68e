"""`stn.accelerate`: every grid_sample of the process on the native kernels, with torch's own results."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from torch.nn import functional as F

import stn
from stn.ops import override

available = override.unavailable() is None
pytestmark = pytest.mark.skipif(not available, reason=str(override.unavailable()))

MODES = ("bilinear", "nearest", "bicubic")
PADDINGS = ("zeros", "border", "reflection")
CASES = [
    (d, mode, padding, align)
    for d, mode, padding, align in itertools.product((2, 3), MODES, PADDINGS, (False, True))
    if not (d == 3 and mode == "bicubic")
]
# Of the largest of 1 and the values: rounding of float32 sums, and of the result to its type.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def is_torchs(d, mode, padding):
    """In float32 and float64, of any size."""
    return mode == "nearest" or (d == 2 and mode == "bilinear" and padding == "reflection")


def off_the_lattice(shape, d, seed=0, reach=1.3):
    """Positions that lie on no kink and no tie: (B, *out, d), in float32 and beyond."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand((*shape, d), generator=generator, dtype=torch.float64) * 2 - 1) * reach


def off_the_kinks(grid, size, align):
    """The same, where a coordinate within 1e-3 pixels of a pixel's centre, or of half-way between two, is moved to 0.3. At a
    centre torch takes the slope of one side, half-way the nearest pixel is a matter of the last bit, and numbers of half
    precision often lie there.
    """
    n = torch.tensor(size[::-1], dtype=torch.float64)
    pixels = (grid.double() + 1) / 2 * (n - 1) if align else ((grid.double() + 1) * n - 1) / 2
    return torch.where((2 * pixels - (2 * pixels).round()).abs() > 2e-3, grid, torch.tensor(0.3, dtype=grid.dtype))


def run(image, grid, cotangent, **options):
    image, grid = image.detach().requires_grad_(), grid.detach().requires_grad_()
    out = F.grid_sample(image, grid, **options)
    return out.detach(), *torch.autograd.grad(out, (image, grid), cotangent)


def assert_near(got, wanted, dtype):
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape
        scale = max(1.0, float(other.double().abs().max()))
        assert float((one.double() - other.double()).abs().max()) <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda t: str(t)[6:])
@pytest.mark.parametrize("layout", ["dense", "channels last", "strided"])
def test_values_and_both_gradients(dtype, layout):
    """Of every mode and padding, against torch in float64 at the very same numbers."""
    ran = 0
    for d, mode, padding, align in CASES:
        size, out = ((37, 40), (50, 33)) if d == 2 else ((12, 13, 14), (11, 9, 17))
        grid = off_the_kinks(off_the_lattice((2, *out), d).to(dtype), size, align)
        image = torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
        cotangent = torch.randn(2, 5, *out, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
        if layout == "channels last":
            last = torch.channels_last if d == 2 else torch.channels_last_3d
            image, cotangent = image.to(memory_format=last), cotangent.to(memory_format=last)
        elif layout == "strided":
            image = image[:1].expand_as(image)
            grid = grid.movedim(-1, 1).contiguous().movedim(1, -1)
            cotangent = cotangent[:, :, :1].expand_as(cotangent)
        options = {"mode": mode, "padding_mode": padding, "align_corners": align}
        wanted = run(image.double(), grid.double(), cotangent.double(), **options)
        with stn.accelerate() as acceleration:
            got = run(image, grid, cotangent, **options)
        ran += acceleration.calls.native
        assert all(one.dtype == dtype for one in got)
        assert all(one.is_contiguous() for one in got)  # as torch's are
        assert_near(got, wanted, dtype)
    left = 0 if dtype in (torch.bfloat16, torch.float16) else len([case for case in CASES if is_torchs(*case[:3])])
    assert ran == 2 * (len(CASES) - left)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda t: str(t)[6:])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_beyond_32767_pixels(dtype, mode):
    """torch 2.13 reads out of bounds there: this would crash, or read garbage."""
    image = torch.rand(1, 2, 600, 600, generator=torch.Generator().manual_seed(0)).to(dtype)
    grid = off_the_kinks(off_the_lattice((1, 30, 30), 2, reach=1.0).to(dtype), (600, 600), False)
    cotangent = torch.rand(1, 2, 30, 30, generator=torch.Generator().manual_seed(1)).to(dtype)
    options = {"mode": mode, "padding_mode": "border", "align_corners": False}
    wanted = run(image.double(), grid.double(), cotangent.double(), **options)
    with stn.accelerate() as acceleration:
        got = run(image, grid, cotangent, **options)
    assert acceleration.calls == (2, 0)
    assert_near(got, wanted, dtype)


def test_small_half_precision_calls_run_natively_too():
    image, grid = torch.rand(1, 1, 2, 2).half(), torch.zeros(1, 1, 1, 2).half()
    with stn.accelerate() as acceleration:
        out = F.grid_sample(image, grid, align_corners=False)
    assert acceleration.calls == (1, 0)
    torch.testing.assert_close(out.float().flatten(), image.float().mean().reshape(1), rtol=1e-3, atol=1e-3)


def test_small_calls_are_left_to_torch():
    image, grid = torch.rand(1, 1, 8, 8), off_the_lattice((1, 8, 8), 2).float()
    wanted = run(image, grid, torch.ones(1, 1, 8, 8), align_corners=False)
    with stn.accelerate() as acceleration:
        got = run(image, grid, torch.ones(1, 1, 8, 8), align_corners=False)
    assert acceleration.calls.torch >= 1
    assert_near(got, wanted, torch.float32)


def test_ties_of_the_nearest_pixel_are_torchs():
    """Twice as many pixels as there will be: each position lies half-way between two, give or take its rounding."""
    image = torch.arange(2.0 * 64 * 64).reshape(1, 2, 64, 64)
    for size in ((32, 32), (96, 33), (160, 160)):
        grid = F.affine_grid(torch.eye(2, 3)[None], (1, 2, *size), align_corners=False)
        for padding in PADDINGS:
            options = {"mode": "nearest", "padding_mode": padding, "align_corners": False}
            wanted = F.grid_sample(image, grid * 1.25, **options)
            with stn.accelerate():
                assert F.grid_sample(image, grid * 1.25, **options).equal(wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda t: str(t)[6:])
@pytest.mark.parametrize("align", [False, True])
def test_positions_that_are_no_numbers(dtype, align):
    """NaN beyond a background and in cubic interpolation, some pixel of the border otherwise: where torch does so, too."""
    image = torch.rand(1, 3, 40, 40, dtype=dtype)
    grid = off_the_lattice((1, 40, 40), 2, reach=1.0).to(dtype)
    grid[0, 3, 5:9, 0] = torch.nan
    grid[0, 7, 2:30, 1] = torch.inf
    grid[0, 9, 2:30] = -torch.inf
    for mode, padding in itertools.product(MODES, PADDINGS):
        options = {"mode": mode, "padding_mode": padding, "align_corners": align}
        wanted = F.grid_sample(image, grid, **options)
        with stn.accelerate() as acceleration:
            got = F.grid_sample(image, grid, **options)
            torch.testing.assert_close(got, wanted, equal_nan=True, rtol=1e-4, atol=1e-4)
            assert acceleration.calls.native == (not is_torchs(2, mode, padding))
            if is_torchs(2, mode, padding):  # whose own backward reads and writes outside of its memory there
                continue
            _, for_image, for_grid = run(image, grid, torch.ones_like(wanted), **options)
        assert for_image.isfinite().all()
        assert for_grid.isfinite().all()


class Warps(torch.nn.Module):
    def forward(self, image: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        grid = F.affine_grid(theta, [image.shape[0], image.shape[1], 40, 40], align_corners=False)
        return F.grid_sample(image, grid, align_corners=False)


def programs(image, theta):
    saved = io.BytesIO()
    torch.jit.save(torch.jit.script(Warps()), saved)
    saved.seek(0)
    return {
        "eager": Warps(),
        "traced": torch.jit.trace(Warps(), (image, theta)),
        "scripted": torch.jit.script(Warps()),
        "loaded": torch.jit.load(saved),
        "exported": torch.export.export(Warps(), (image, theta)).module(),
    }


def test_programs_of_every_kind():
    image, theta = torch.rand(2, 3, 40, 40), torch.tensor([[0.9, 0.2, 0.1], [-0.2, 0.8, 0.05]]).repeat(2, 1, 1)
    theta += torch.rand(2, 2, 3) * 0.01
    for name, program in programs(image, theta).items():
        wanted = program(image, theta)
        with stn.accelerate() as acceleration:
            got = program(image, theta)
            assert acceleration.calls == (1, 0), name
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        program(image, theta)
        with stn.accelerate() as acceleration:
            pass
        assert acceleration.calls == (0, 0), name


def test_autograd_above_it():
    image, grid = torch.rand(1, 2, 40, 40, dtype=torch.float64), off_the_lattice((1, 30, 50), 2)
    function = lambda image, grid: F.grid_sample(image, grid, align_corners=False)  # noqa: E731
    wanted = torch.func.vmap(function)(image[None], grid[None])
    gradient = torch.func.grad(lambda grid: function(image, grid).square().sum())(grid)
    with stn.accelerate() as acceleration:
        torch.testing.assert_close(torch.func.vmap(function)(image[None], grid[None]), wanted)
        torch.testing.assert_close(torch.func.grad(lambda g: function(image, g).square().sum())(grid), gradient)
        assert acceleration.calls.native == 3
        small = image[:, :1, :4, :4].clone().requires_grad_(), grid[:, :3, :3].clone().requires_grad_()
        assert torch.autograd.gradcheck(function, small, fast_mode=True)
        with torch.autocast("cpu", torch.bfloat16):
            out = F.grid_sample(image.bfloat16(), grid.bfloat16(), align_corners=False)
        assert out.dtype == torch.float32  # autocast's rule for grid_sample
        meta = F.grid_sample(image.to("meta"), grid.to("meta"), align_corners=False)
        assert meta.shape == (1, 2, 30, 50)


def test_which_gradients_are_asked_for():
    image, grid = torch.rand(2, 3, 40, 40), off_the_lattice((2, 40, 40), 2).float()
    grad = torch.rand(2, 3, 40, 40)
    call = torch.ops.aten.grid_sampler_2d_backward
    for mask in ([True, True], [True, False], [False, True], [False, False]):
        wanted = call(grad, image, grid, 0, 0, False, mask)
        with stn.accelerate() as acceleration:
            got = call(grad, image, grid, 0, 0, False, mask)
            assert acceleration.calls == (1, 0)
        assert [one is None for one in got] == [one is None for one in wanted]
        for asked, one, other in zip(mask, got, wanted, strict=True):
            if asked:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
            elif one is not None:
                assert one.shape == other.shape


BAD = {
    "two types": lambda: F.grid_sample(torch.rand(1, 1, 40, 40), torch.zeros(1, 40, 40, 2).double(), align_corners=False),
    "3D bicubic": lambda: F.grid_sample(
        torch.rand(1, 1, 9, 9, 9), torch.zeros(1, 9, 9, 9, 3), mode="bicubic", align_corners=False
    ),
    "batches": lambda: F.grid_sample(torch.rand(2, 1, 40, 40), torch.zeros(1, 40, 40, 2), align_corners=False),
    "integers": lambda: F.grid_sample(
        torch.ones(1, 1, 40, 40, dtype=torch.long), torch.zeros(1, 40, 40, 2, dtype=torch.long), align_corners=False
    ),
    "no pixels": lambda: F.grid_sample(torch.rand(1, 1, 0, 4), torch.zeros(1, 40, 40, 2), align_corners=False),
    "an axis": lambda: F.grid_sample(torch.rand(1, 1, 40, 40), torch.zeros(1, 40, 40, 3), align_corners=False),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_errors_are_torchs(name):
    with pytest.raises(RuntimeError) as wanted:
        BAD[name]()
    with stn.accelerate() as acceleration:
        with pytest.raises(RuntimeError) as got:
            BAD[name]()
        assert acceleration.calls.native == 0
    assert str(got.value) == str(wanted.value)


def test_tensors_with_nothing_in_them():
    with stn.accelerate() as acceleration:
        assert F.grid_sample(torch.rand(0, 3, 4, 4), torch.rand(0, 2, 5, 2), align_corners=False).shape == (0, 3, 2, 5)
        assert F.grid_sample(torch.rand(1, 3, 4, 4), torch.rand(1, 0, 5, 2), align_corners=False).shape == (1, 3, 0, 5)
        assert acceleration.calls == (0, 2)
        image, grid = torch.rand(1, 1, 40, 40), off_the_lattice((1, 40, 40), 2).float()
        wanted = F.grid_sample(-image, grid, align_corners=False)
        out = F.grid_sample(torch._neg_view(image), grid, align_corners=False)
        torch.testing.assert_close(out, wanted)


def on():
    """Whether a call runs natively; it is not counted by who was open before."""
    before = override.calls()[0]
    F.grid_sample(torch.rand(1, 1, 64, 64), torch.zeros(1, 64, 64, 2), align_corners=False)
    return override.calls()[0] > before


def test_undone_by_its_handle():
    image, grid = torch.rand(1, 3, 40, 40), off_the_lattice((1, 40, 40), 2).float()
    wanted = F.grid_sample(image, grid, align_corners=False)
    acceleration = stn.accelerate()
    assert on()
    assert "on" in repr(acceleration)
    acceleration.close()
    assert not on()
    acceleration.close()
    assert not on()
    assert "closed" in repr(acceleration)
    assert F.grid_sample(image, grid, align_corners=False).equal(wanted)


def test_nested():
    with stn.accelerate() as outer:
        with stn.accelerate() as inner:
            assert on()
        inner.close()  # a second time: the outer one goes on
        assert on()
        assert outer.calls.native == 2
    assert not on()
    first, second = stn.accelerate(), stn.accelerate()
    first.close()
    assert on()
    second.close()
    assert not on()


def test_undone_by_an_exception():
    with pytest.raises(KeyError), stn.accelerate():
        raise KeyError
    assert not on()


def test_threads():
    """Callers in many threads, while it goes on and off in another one."""
    image, grid = torch.rand(2, 3, 40, 40), off_the_lattice((2, 40, 40), 2).float()
    cotangent = torch.rand(2, 3, 40, 40)
    wanted = run(image, grid, cotangent, align_corners=False)
    wrong, stop = [], threading.Event()

    def call():
        try:
            while not stop.is_set():
                assert_near(run(image, grid, cotangent, align_corners=False), wanted, torch.float32)
        except BaseException as error:
            wrong.append(error)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    native = 0
    for _ in range(100):
        with stn.accelerate() as acceleration:
            run(image, grid, cotangent, align_corners=False)
        native += acceleration.calls.native
    stop.set()
    for caller in callers:
        caller.join()
    assert not wrong
    assert native >= 200
    assert not on()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child():
    """The pool of threads does not survive a fork."""
    program = """
import os, torch, stn
from torch.nn import functional as F
image, grid = torch.rand(2, 8, 128, 128), torch.rand(2, 128, 128, 2) * 2 - 1
with stn.accelerate() as acceleration:
    wanted = F.grid_sample(image, grid, align_corners=False)
    child = os.fork()
    if not child:
        out = F.grid_sample(image, grid, align_corners=False)
        torch.set_num_threads(1)  # torch's own threads are gone, and `equal` would wait for them
        same = out.equal(wanted)
        os._exit(0 if same and acceleration.calls == (2, 0) else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "0\n"
    assert done.stderr == ""  # no warning of torch's, either


def test_without_the_native_backend(monkeypatch):
    monkeypatch.setattr(override, "unavailable", lambda: "the native backend was left out of the build")
    with pytest.warns(UserWarning, match="left out of the build"):
        acceleration = stn.accelerate()
    assert acceleration.reason == "the native backend was left out of the build"
    assert "left out" in repr(acceleration)
    with acceleration:
        assert not on()
    assert acceleration.calls == (0, 0)


def test_no_warning_where_it_works():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stn.accelerate().close()
