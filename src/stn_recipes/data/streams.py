"""Random numbers that are functions of (seed, stream, epoch)."""

from __future__ import annotations

import math

import numpy as np

# Second word of every seed (seed, stream, epoch). numpy pads a seed with zeros, so all of them have three words.
STREAMS = {"train": 0, "val": 1, "test": 2, "augment": 3, "shuffle": 4, "test_split": 5, "val_split": 6, "pairs": 7}


def generator(seed: int, stream: str, epoch: int = 0) -> np.random.Generator:
    return np.random.default_rng((seed, STREAMS[stream], epoch))


def stratified(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the (train, test) samples; every class gives `fraction` of itself, at least one if it has two."""
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        places = generator(seed, "test_split", int(label)).permutation(np.flatnonzero(labels == label))
        count = math.floor(fraction * len(places) + 0.5)
        test[places[: min(max(count, 1), len(places) - 1)]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def balanced(labels: np.ndarray, numbers: np.random.Generator) -> np.ndarray:  # (N, 2) int64
    """Places of as many samples of each class, in all as many as there are, and how often each place came before.

    What does not divide by the number of classes goes to some of them. A class gives its samples in turn, in an order of
    its own.
    """
    classes = np.unique(labels)
    shares = np.full(len(classes), len(labels) // max(len(classes), 1))
    shares[numbers.permutation(len(classes))[: len(labels) - shares.sum()]] += 1
    parts = []
    for label, share in zip(classes, shares, strict=True):
        own = numbers.permutation(np.flatnonzero(labels == label))
        turn = np.arange(share)
        parts.append(np.stack([own[turn % len(own)], turn // len(own)], axis=1))
    return numbers.permutation(np.concatenate(parts)) if parts else np.empty((0, 2), dtype=np.int64)


def check_integer(argument: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{argument}: expected an integer of at least {least}, got {value!r}")
