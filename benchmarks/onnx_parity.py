"""Where the difference between ONNX Runtime and float64 comes from, on white noise: rounding of positions, step by step.

    python -m benchmarks.onnx_parity

Linear interpolation of images in [0, 1] at even random positions; the largest difference from float64 numbers. Prints a table.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch.nn import functional as F


def runtime() -> onnxruntime.InferenceSession:
    """GridSample alone, as it is exported."""
    image, grid, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "g", "y"))
    node = helper.make_node("GridSample", ["x", "g"], ["y"], mode="linear", padding_mode="zeros", align_corners=0)
    graph = helper.make_graph([node], "read", [image, grid], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return onnxruntime.InferenceSession(model.SerializeToString())


def read(image: np.ndarray, position: np.ndarray) -> np.ndarray:
    """(B, C, n, n) at pixels (B, N, 2), all within; weights and sums in float64."""
    low = np.floor(position).astype(int)
    out = np.zeros((*image.shape[:2], position.shape[1]))
    for dx, dy in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x, y = low[..., 0] + dx, low[..., 1] + dy
        weight = (1 - abs(position[..., 0] - x)) * (1 - abs(position[..., 1] - y))
        out += np.stack([one[:, j, i] for one, i, j in zip(image, x, y, strict=True)]) * weight[:, None]
    return out


def main() -> None:
    torch.set_num_threads(1)
    session, rng = runtime(), np.random.default_rng(0)
    print(
        "| side | ONNX Runtime | torch's grid_sample | the grid rounded | the pixel position rounded |\n|--:|--:|--:|--:|--:|"
    )
    for n in (24, 64, 224):
        image = rng.random((4, 2, n, n)).astype("float32")
        exact = rng.uniform(-0.95, 0.95, (4, n * n, 2))
        grid = exact.astype("float32")
        pixels = ((exact + 1) * n - 1) / 2
        truth = read(image.astype("float64"), pixels)
        found = [
            session.run(None, {"x": image, "g": grid[:, None]})[0][:, :, 0],
            F.grid_sample(torch.tensor(image), torch.tensor(grid[:, None]), align_corners=False)[:, :, 0].numpy(),
            read(image, ((grid.astype("float64") + 1) * n - 1) / 2),
            read(image, pixels.astype("float32").astype("float64")),
        ]
        print(f"| {n} | {' | '.join(f'{abs(one - truth).max():.1e}' for one in found)} |")


if __name__ == "__main__":
    main()
