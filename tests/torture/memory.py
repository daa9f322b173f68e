"""Memory: none is kept from call to call or from epoch to epoch, and an allocation that fails raises and leaves nothing."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import multiprocessing
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stn
from stn.ops import backends, use_backend

MIB = 1 << 20
# What the allocators of the C library, Python and torch may still spread out, once warm. Measured: below 0.3 MiB. In
# 2,000 calls this is the smallest of the tensors of a call, kept.
SLACK = 4 * MIB
SLACK_OF_EPOCHS = (
    24 * MIB
)  # Lightning's logs and the page cache of data; a network kept each epoch is 0.3 MiB and its moments


def resident() -> int:
    """The memory of this process that is in use, in bytes; what is free in the heap would hide what is kept."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def in_a_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        torch.set_num_threads(1)
        try:
            sender.send(function(*arguments))
        except BaseException as error:
            sender.send(error)

    child = context.Process(target=work)
    child.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        answer = RuntimeError("the process died")
    child.join()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _calls() -> list[Callable[[], None]]:
    """Small warps of every kind, each with its gradients."""
    image = torch.randn(2, 3, 9, 8)
    spline, cpab = stn.ThinPlateSpline((3, 3)), stn.CPAB((2, 2))
    affine, corners = stn.Affine(), stn.Corners()

    def call(transform: stn.AbstractTransform, size: tuple[int, int], **options: Any) -> Callable[[], None]:
        def work() -> None:
            pixels = image.clone().requires_grad_()
            theta = transform.identity()[None].repeat(2, 1).add(0.01).requires_grad_()
            stn.warp(pixels, theta, size, transform=transform, **options).sum().backward()

        return work

    return [
        call(affine, (7, 8)), call(affine, (5, 4), mode="bicubic", padding_mode="border"), call(corners, (7, 8)),
        call(spline, (7, 8)), call(spline, (5, 6), padding_mode="constant", fill=1.0), call(cpab, (4, 4)),
        call(affine, (7, 8), antialias=True), call(affine, (3, 3), mode="nearest"),
    ]  # fmt: skip


def growth_over_calls(calls: int, backend: str | None = None) -> int:
    """By how many bytes this process grows over so many small warps with gradients."""
    work = _calls()[: None if backend is None else 5]

    def go(times: int) -> None:
        for k in range(times):
            work[k % len(work)]()

    if backend is None:
        go(max(calls // 10, 800))
        before = resident()
        go(calls)
    else:
        with use_backend(backend):
            go(max(calls // 10, 800))
            before = resident()
            go(calls)
    return resident() - before


def growth_over_epochs(epochs: int) -> int:
    """By how many bytes this process grows from the second fifth of a training to its last."""
    from stn_recipes.recipes import recipe
    from stn_recipes.run.train import train

    samples: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            with open("/proc/self/statm") as file:
                samples.append(int(file.read().split()[1]) * resource.getpagesize())

    watcher = threading.Thread(target=watch)
    with tempfile.TemporaryDirectory() as scratch:
        config = dataclasses.replace(
            recipe("digits"), network="mnist_tutorial", epochs=epochs, limit_train=200, batch_size=50, threads=1, progress=False,
            out=str(Path(scratch) / "run"),
        )  # fmt: skip
        watcher.start()
        train(config)
        done.set()
        watcher.join()
    fifth = len(samples) // 5
    return int(np.median(samples[-fifth:]) - np.median(samples[fifth : 2 * fifth]))


def failed_allocation(backend: str, what: str) -> str:
    """An output or a gradient beyond the limit of memory: what is raised, and whether all is well afterwards."""
    with use_backend(backend):
        image, theta = torch.randn(1, 1, 64, 64), torch.eye(2, 3)[None] * 0.9
        truth = stn.warp(image, theta, (32, 32))
        big = torch.zeros(1, 1, 1, 1).expand(64, 32, 256, 256)  # takes no memory, and its gradient half a GiB
        stn.warp(image.clone().requires_grad_(), theta).sum().backward()
        before = resident()
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + 192 * MIB, most))
        raised = "nothing"
        for _ in range(3):
            try:
                if what == "output":
                    stn.warp(image, theta, (20_000, 20_000))
                else:
                    leaf = big.detach().requires_grad_()
                    stn.warp(leaf, theta.expand(64, -1, -1), (2, 2)).sum().backward()
            except (RuntimeError, MemoryError) as error:
                raised = str(error).splitlines()[0]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        after = resident()
        if not torch.equal(stn.warp(image, theta, (32, 32)), truth):
            return "another result afterwards"
    if after - before > 3 * SLACK:
        return f"{(after - before) / MIB:.0f} MiB are left behind"
    return f"raised: {raised}"


def main(calls: int, epochs: int) -> int:
    problems, start = 0, time.perf_counter()
    names = [None, *[name for name, state in backends().items() if state == "available"]]
    for name in names:
        grown = in_a_child(growth_over_calls, calls if name is None else calls // 10, name)
        problems += grown > SLACK
        print(f"memory: {name or 'all'}: {grown / MIB:.1f} MiB, {time.perf_counter() - start:.0f} s", flush=True)
    grown = in_a_child(growth_over_epochs, epochs)
    problems += grown > SLACK_OF_EPOCHS
    print(f"memory: {epochs} epochs: {grown / MIB:.1f} MiB, {time.perf_counter() - start:.0f} s", flush=True)
    for name in names[1:]:
        for what in ("output", "gradient"):
            said = in_a_child(failed_allocation, name, what)
            problems += not said.startswith("raised: ") or said == "raised: nothing"
            print(f"memory: {name}, {what} beyond the limit: {said}", flush=True)
    return problems
