"""A page on which a network is tried: draw a digit or drop a photograph, turn it, see where the network looks."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import stn
from stn import viz
from stn.models import TransformerClassifier
from stn.reading import PaddingMode

from .data.pixels import Fit, fitted
from .data.registry import get
from .motion import moved_theta
from .run.folder import Run, load_run, load_run_or_pretrained

if TYPE_CHECKING:
    import gradio

SIDE = 320  # pixels of a picture on the page


@dataclass(frozen=True)
class Reader:
    """A network, and what it takes to show it an image."""

    name: str
    model: TransformerClassifier
    normalize: Callable[[Tensor], Tensor]  # of images (B, C, H, W) in [0, 1]
    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]
    background: PaddingMode = "border"
    fit: Fit = "stretch"  # how an image is brought to that shape

    @classmethod
    def of_run(cls, run: Run) -> Reader:
        facts = run.facts
        mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (facts.mean, facts.std))
        return cls(
            run.path.name, run.classifier, lambda images: (images - mean) / std, facts.class_names, facts.input_shape,
            get(run.config.dataset).background, run.config.fit,
        )  # fmt: skip

    @classmethod
    def published(cls, name: str) -> Reader:
        from stn.hub import Classifier

        model = Classifier.from_pretrained(name)
        said = model.settings
        shape = tuple(said["in_shape"] or stn.models.NETWORKS[said["network"]].in_shape)
        names = model.class_names or tuple(str(n) for n in range(said["num_classes"]))
        return cls(name, model, model.normalize, names, shape, "zeros" if shape[0] == 1 else "border")


def readers(
    source: str | Path | None, control: str | Path | None = None, *, trust: bool = False
) -> tuple[Reader, Reader | None]:
    """The network to show, and its control where there is one.

    Args:
        source: folder of a run, a name that `stn models --pretrained` lists, or folder or name of what `stn publish`
            wrote; the newest of `runs` unless given.
        control: a run to show beside it; SOURCE/control unless given, where there is one.
        trust: import the code that the settings of the runs name.

    Raises:
        ValueError: where there is no such thing, or its control wants other images.
    """
    if source is None:
        runs = sorted(Path("runs").glob("*/result.json"), key=lambda file: file.stat().st_mtime)
        if not runs:
            raise ValueError(
                "run: expected the folder of a run, or runs/ with one; `stn train digits --control` makes one"
            )
        source = runs[-1].parent
    path = Path(source)
    published = (path / "config.json").exists() and not (path / "config.yaml").exists()
    is_run = not published and (path.exists() or str(source) in stn.models.pretrained_names())
    reader = Reader.of_run(load_run_or_pretrained(source, trust=trust)) if is_run else Reader.published(str(source))
    if reader.input_shape[0] == 2:
        raise ValueError(f"run: expected one that was trained on images with 1 or 3 channels, got {source} with 2")
    if control is None and is_run and (path / "control" / "result.json").exists():
        control = path / "control"
    other = None if control is None else Reader.of_run(load_run(control, trust=trust))
    if other is not None and (other.input_shape, other.class_names) != (reader.input_shape, reader.class_names):
        raise ValueError(f"control: expected a run on images {reader.input_shape} of the same classes, got {control}")
    return reader, other


@dataclass(frozen=True)
class Look:
    """What the networks make of an image."""

    before: Image.Image  # as it comes in, with the frame that is read
    after: Image.Image | None  # as the classifier sees it
    read: dict[str, float]  # probabilities by class
    control: dict[str, float] | None


@torch.no_grad()
def look(
    reader: Reader,
    control: Reader | None,
    image: Image.Image,
    rotation: float = 0.0,
    scale: float = 1.0,
    shift: float = 0.0,
) -> Look:
    """Show an image, turned (degrees, counterclockwise), scaled and shifted (share of the width, right), to the networks."""
    channels, height, width = reader.input_shape
    mode = "L" if channels == 1 else "RGB"
    pixels = np.asarray(fitted(image.convert(mode), (height, width), reader.fit))
    plain = torch.from_numpy(pixels.copy()).reshape(1, height, width, -1).permute(0, 3, 1, 2).float() / 255
    turn, size, right = (torch.tensor([float(number)]) for number in (rotation, scale, shift))
    theta = moved_theta(turn, size, torch.stack([right, torch.zeros_like(right)], 1), (height, width))
    moved = stn.warp(plain, theta, padding_mode=reader.background)
    logits, warp = reader.model.look(reader.normalize(moved))
    after = None
    outline = None
    if warp is not None:
        # What the classifier sees, of the image as it is: the same warp of pixels in [0, 1].
        transformer = reader.model.transformer
        assert transformer is not None
        after = _picture(transformer.warp(moved, warp.theta).output[0])
        outline = viz.frame_outlines(warp)[0]
    other = None if control is None else control.model(control.normalize(moved))
    return Look(
        _picture(moved[0], outline),
        after,
        _probabilities(logits, reader.class_names),
        None if other is None else _probabilities(other, reader.class_names),
    )


def _probabilities(logits: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    return dict(zip(names, logits[0].float().softmax(0).tolist(), strict=True))


def _picture(pixels: Tensor, outline: Tensor | None = None) -> Image.Image:
    """An image (C, H, W) in [0, 1] as large as it is shown, with room for the frame around it."""
    array = pixels.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    zoom = SIDE / max(array.shape[:2])
    height, width = (round(n * zoom) for n in array.shape[:2])
    small = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).convert("RGB")
    picture = small.resize((width, height), Image.Resampling.NEAREST)
    if outline is None:
        return picture
    margin = viz.frame_margin(outline[None], array.shape[:2])
    left, top = round(margin * width), round(margin * height)
    page = Image.new("RGB", (width + 2 * left, height + 2 * top), (128, 128, 128))
    page.paste(picture, (left, top))
    line = [(x + left, y + top) for x, y in ((outline + 0.5) * zoom).tolist()]
    pen = ImageDraw.Draw(page)
    pen.line(line, fill=viz.FRAME, width=4, joint="curve")
    x, y = line[0]
    pen.ellipse((x - 8, y - 8, x + 8, y + 8), fill=viz.FRAME)
    return page


def page(reader: Reader, control: Reader | None = None) -> gradio.Blocks:
    """The page, not yet served.

    Raises:
        ValueError: where Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError as error:
        if error.name != "gradio":
            raise
        raise ValueError("demo: gradio is missing; pip install 'spatial-transformers[demo]'") from error

    def show(
        tab: str,
        drawing: dict[str, Any] | None,
        photo: Image.Image | None,
        rotation: float,
        scale: float,
        shift: float,
    ) -> list[Any]:
        both = {"draw": drawn(drawing, reader.input_shape[0]), "photo": photo}
        image = both.pop(tab) or next(iter(both.values()))  # of the tab that is open, if there is one
        if image is None:
            return [None] * len(outputs)
        seen = look(reader, control, image, rotation, scale, shift)
        shown: list[Any] = [seen.before]
        if reader.model.transformer is not None:
            shown.append(seen.after)
        shown.append(seen.read)
        return [*shown, seen.control] if control is not None else shown

    kind = "light strokes on black" if reader.input_shape[0] == 1 else "dark strokes on white"
    with gr.Blocks(title=f"stn: {reader.name}") as blocks:
        gr.Markdown(
            f"# {reader.name}\nDraw, or drop a photograph, and turn it: the frame in amber is where the network looks. "
            f"A drawing reaches it as {kind}, a photograph as it is."
        )
        tab = gr.State("draw")
        with gr.Row():
            with gr.Column():
                with gr.Tab("Draw") as draw_tab:
                    drawing = gr.Sketchpad(
                        label="Draw here", type="pil", canvas_size=(SIDE, SIDE), height=SIDE + 120,
                        brush=gr.Brush(default_size=24, colors=["#000000"], color_mode="fixed"),
                    )  # fmt: skip
                with gr.Tab("Photograph") as photo_tab:
                    photo = gr.Image(label="Drop here", type="pil", height=SIDE, elem_id="photo")
                rotation = gr.Slider(
                    -180, 180, 0, step=1, label="Rotation, degrees counterclockwise", elem_id="rotation"
                )
                scale = gr.Slider(0.4, 2, 1, step=0.05, label="Scale", elem_id="scale")
                shift = gr.Slider(-0.4, 0.4, 0, step=0.01, label="Shift, share of the width", elem_id="shift")
            with gr.Column():
                outputs: list[Any] = []
                with gr.Row():
                    outputs.append(gr.Image(label="Comes in", type="pil", interactive=False))
                    if reader.model.transformer is not None:
                        outputs.append(gr.Image(label="What the classifier sees", type="pil", interactive=False))
                with gr.Row():
                    outputs.append(gr.Label(label="It reads", num_top_classes=3, elem_id="read"))
                    if control is not None:
                        outputs.append(gr.Label(label="The control reads", num_top_classes=3, elem_id="control"))
        draw_tab.select(lambda: "draw", None, tab, api_visibility="private")
        photo_tab.select(lambda: "photo", None, tab, api_visibility="private")
        inputs = [tab, drawing, photo, rotation, scale, shift]
        gr.on([one.change for one in inputs], show, inputs, outputs, api_name="look", show_progress="hidden")
    return blocks


def drawn(drawing: dict[str, Any] | None, channels: int) -> Image.Image | None:
    """A drawing on white; for a network of gray images light on black, as digits are written there. None: nothing drawn."""
    composite = None if drawing is None else drawing.get("composite")
    if composite is None:
        return None
    over = composite.convert("RGBA")
    white = Image.new("RGBA", over.size, "white")
    flat = Image.alpha_composite(white, over).convert("RGB")
    if np.asarray(flat).min() > 250:
        return None
    return Image.eval(flat.convert("L"), lambda value: 255 - value) if channels == 1 else flat


def serve(
    source: str | Path | None, control: str | Path | None = None, *, port: int | None = None, trust: bool = False
) -> None:
    """Serve the page on this machine until it is interrupted."""
    shown = page(*readers(source, control, trust=trust))
    shown.launch(server_port=port, **launch_options())


def launch_options() -> dict[str, Any]:
    """How the page is served: on this machine alone, in fonts of the reader's own, which are not loaded from elsewhere."""
    import gradio as gr

    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return {"server_name": "127.0.0.1", "share": False, "footer_links": [], "theme": theme}
