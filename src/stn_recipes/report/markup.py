"""Images, outlines and figures as they stand in the page."""

from __future__ import annotations

import base64
import io
import re
import zlib
from typing import TYPE_CHECKING

import matplotlib
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from stn import viz

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_SIDE = 96  # pixels, of images in the page


def points(outline: Tensor) -> str:
    """A closed polygon (N, 2) for SVG."""
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in outline[:-1].tolist())


def view(height: int, width: int, margin: float) -> str:
    """The view box of an image with room around it, in its pixels: their centres are integers."""
    left, top = -0.5 - margin * width, -0.5 - margin * height
    return f"{left:.2f} {top:.2f} {width * (1 + 2 * margin):.2f} {height * (1 + 2 * margin):.2f}"


def uri(image: Tensor) -> str:
    """An image (C, H, W) in [0, 1] as a data URI: small ones exactly, larger ones as JPEG of the size they are seen.

    Two channels are shown in red and green.
    """
    if len(image) == 2:
        image = torch.cat([image, torch.zeros_like(image[:1])])
    pixels = image.nan_to_num(0.0).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    exact = max(picture.size) <= 48 or (picture.mode == "L" and max(picture.size) <= PAGE_SIDE)
    if max(picture.size) > PAGE_SIDE:
        picture.thumbnail((PAGE_SIDE, PAGE_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if exact:
        picture.save(file, format="PNG", optimize=True)
    else:
        picture.save(file, format="JPEG", quality=88)
    return f"data:image/{'png' if exact else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"


_COLORS = {
    viz.INK: "var(--ink)",
    viz.FIRST: "var(--first)",
    viz.SECOND: "var(--second)",
    viz.WRONG: "var(--wrong)",
    viz.ON_COLOR: "var(--on-color)",
}


def svg(figure: Figure, label: str) -> Markup:
    """A figure as SVG in the page's own font and colours, which follow light and dark."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "stn"}):
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
    prefix = f"{zlib.crc32(label.encode()):08x}"
    for name in used:
        text = re.sub(rf'(id="|href="#|url\(#){re.escape(name)}(?=[")])', rf"\g<1>f{prefix}-{name}", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for color, variable in _COLORS.items():
        text = text.replace(color, variable)
    opening = re.search(r'viewBox="[^"]*"', text)
    assert opening is not None
    head = f'<svg class="chart" role="img" aria-label="{Markup.escape(label)}" {opening[0]}>'
    return Markup(head + text[text.index(">") + 1 :].rstrip())


def confidence(value: float) -> str:
    return "> 99.9%" if value > 0.999 else f"{value:.1%}"
