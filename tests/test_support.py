"""The support matrix: the page says what is measured, and nothing is wrong in silence."""

from __future__ import annotations

import warnings

import pytest
import support
import torch
from torch import nn

import stn
from stn.transforms import TRANSFORMS

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SECONDS = ("compile", "ONNX")  # what takes some, or many of them
QUICK = [treatment for treatment in support.TREATMENTS if treatment not in SECONDS]
CELLS = [
    (family, treatment)
    if treatment in QUICK and (family, treatment) not in (("cpab", "stn.export"), ("cpab", "export"))
    and (number % 3 == 0 or treatment in ("jit.trace", "FX", "vmap"))
    else pytest.param(family, treatment, marks=pytest.mark.slow)
    for number, family in enumerate(support.FAMILIES)
    for treatment in support.TREATMENTS
]  # fmt: skip


def test_the_page_has_every_family_and_every_treatment() -> None:
    assert set(TRANSFORMS) <= set(support.FAMILIES)
    assert set(support.committed()) == {(f, t) for f in support.FAMILIES for t in support.TREATMENTS}
    assert support.write(support.committed()) == support.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(("family", "treatment"), CELLS)
def test_the_page_says_what_is_measured(family: str, treatment: str) -> None:
    assert support.committed()[family, treatment] == support.measure(family, treatment)


def test_values_that_are_off_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(model: nn.Module) -> None:
        support.runs(lambda image: model(image) + 0.01, model)

    monkeypatch.setitem(support.TREATMENTS, "export", off)
    with pytest.raises(AssertionError, match="affine, export: off by 1"):
        support.measure("affine", "export")


# What the matrix does not ask


@pytest.mark.parametrize("transform", [stn.Similarity(), stn.ThinPlateSpline((3, 3))])
def test_a_trace_refuses_images_of_another_size(transform: stn.AbstractTransform) -> None:
    """What a family knows of the size of an image, its aspect, is a constant of the trace."""
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), stn.identity_head(16, transform))
    model = stn.SpatialTransformer(pooled, transform).eval()
    nn.init.normal_(pooled[-1].weight, std=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, torch.rand(3, 1, 10, 12), check_trace=False)
    other = torch.rand(5, 1, 10, 12)
    torch.testing.assert_close(traced(other), model(other), rtol=0, atol=1e-5)
    for size in ((12, 10), (11, 12), (10, 1), (1, 1)):
        with pytest.raises(RuntimeError):
            traced(nn.functional.interpolate(other, (3, 3)).new_zeros(5, 1, *size))


def test_fx_takes_every_transformer_as_one_step() -> None:
    family, image = stn.Affine(), torch.rand(2, 1, 8, 8)
    localizer = stn.FCLocalizer(64, family)
    for module in (
        stn.SpatialTransformer(localizer, family),
        stn.IterativeTransformer(localizer, family, iterations=2),
        stn.ParallelTransformers([localizer, stn.FCLocalizer(64, family)], family),
        localizer,
    ):
        graph = torch.fx.symbolic_trace(nn.Sequential(module))
        assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]
        torch.testing.assert_close(graph(image), module(image))
