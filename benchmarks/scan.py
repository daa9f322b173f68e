"""Where torch is faster: the warp over the product of shapes, types, modes, paddings and layouts.

    python -m benchmarks.scan [--threads N] [--seconds S]

Prints every step that takes longer than torch's, after a second look, and the smallest ratio of all. Half precision is
compared with torch in float32, casts included: torch 2.13's own writes outside of its memory beyond 32767 pixels.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

import torch

from .cases import Case, build
from .run import STEPS, measure, steps

SHAPES = (
    ((16, 1, 28, 28), None), ((2, 3, 256, 256), None), ((16, 3, 64, 64), None), ((4, 3, 128, 128), (64, 64)),
    ((4, 3, 48, 48), (160, 160)), ((4, 32, 40, 40), None), ((2, 20, 96, 96), None), ((1, 2, 40, 40, 40), None),
)  # fmt: skip
TYPES = (torch.float32, torch.float64, torch.bfloat16)
MODES = ("bilinear", "nearest", "bicubic")
PADDINGS = ("zeros", "border", "reflection")


def cases() -> Iterator[Case]:
    for (shape, size), dtype, mode, padding_mode, last in itertools.product(
        SHAPES, TYPES, MODES, PADDINGS, (False, True)
    ):
        if (len(shape) == 5 and (mode == "bicubic" or last)) or (last and shape[1] == 1):
            continue
        name = f"{','.join(map(str, shape))}{f' -> {size}' if size else ''} {str(dtype)[6:]} {mode} {padding_mode}{' channels last' if last else ''}"
        yield Case(name, shape, size, mode=mode, dtype=dtype, channels_last=last, padding_mode=padding_mode)


def ratios(case: Case, seconds: float) -> list[float]:
    """Of torch's best time to ours, for each step."""
    image, theta, ours, torchs = build(case)
    with torch.no_grad():
        cotangent = torch.randn_like(ours(image, theta))
    found = []
    for mine, other in zip(steps(image, theta, ours, cotangent), steps(image, theta, torchs, cotangent), strict=True):
        times = measure({"stn": mine, "torch": other}, seconds)
        found.append(times["torch"]["best"] / times["stn"]["best"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--seconds", type=float, default=0.05, help="for each step of a case, ten times that for a second look"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    count, least = 0, float("inf")
    for case in cases():
        count += 1
        found = ratios(case, arguments.seconds)
        if min(found) < 1.05:
            found = ratios(case, 10 * arguments.seconds)
        least = min(least, *found)
        for step, ratio in zip(STEPS, found, strict=True):
            if ratio < 1:
                print(f"{ratio:5.2f}  {case.name}, {step}", flush=True)
    print(f"{count} combinations, smallest ratio {least:.2f}")


if __name__ == "__main__":
    main()
