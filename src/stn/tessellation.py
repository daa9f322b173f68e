"""The cells that `stn.CPAB` divides the frame [-1, 1]^d into, and how they go on beyond it."""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

CELLS_OF_A_BOX = {1: 1, 2: 4, 3: 5}
# Corners (z, y, x) of the five tetrahedra of a box: the one in the middle, then those that cut off a corner.
_MIDDLE = [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
_TETRAHEDRA = [
    _MIDDLE,
    [(0, 0, 1), (0, 0, 0), (0, 1, 1), (1, 0, 1)],
    [(0, 1, 0), (0, 0, 0), (0, 1, 1), (1, 1, 0)],
    [(1, 0, 0), (0, 0, 0), (1, 0, 1), (1, 1, 0)],
    [(1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0)],
]


def count(tessellation: tuple[int, ...]) -> int:
    """How many cells there are."""
    return math.prod(tessellation) * CELLS_OF_A_BOX[len(tessellation)]


def simplices(tessellation: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The vertices (V, d), ordered (x, y[, z]), and those of each cell (cells, d+1)."""
    d = len(tessellation)
    axes = [np.linspace(-1, 1, n + 1) for n in tessellation]
    vertices = np.stack(np.meshgrid(*axes, indexing="ij")[::-1], axis=-1).reshape(-1, d)
    number = np.arange(len(vertices)).reshape([n + 1 for n in tessellation])
    cells = []
    if d == 2:
        centres = np.stack(
            np.meshgrid(*[(axis[1:] + axis[:-1]) / 2 for axis in axes], indexing="ij")[::-1], axis=-1
        ).reshape(-1, 2)
        vertices = np.concatenate([vertices, centres])
    for box, place in enumerate(np.ndindex(*tessellation)):
        corner = np.array(place)
        if d == 1:
            cells.append([box, box + 1])
        elif d == 2:
            around = [number[tuple(corner + c)] for c in ((0, 0), (0, 1), (1, 1), (1, 0))]
            cells += [[number.size + box, around[k], around[(k + 1) % 4]] for k in range(4)]
        else:
            odd = sum(place) % 2
            cells += [[number[tuple(corner + np.array((z, y, x ^ odd)))] for z, y, x in four] for four in _TETRAHEDRA]
    return vertices, np.array(cells)


class Mesh(NamedTuple):
    """All of space in cells, each spanned by d + 1 *generators*: a vertex is weighed, a direction has a length.

    A point p of a cell is sum_k w_k g_k with all w_k >= 0, where those of its vertices sum to 1. Inside the frame the
    generators of a cell are its vertices. Beyond it a face of the border goes on along an axis: its vertices, and that
    direction; past an edge or a corner along two or three. What moves with the velocity of the nearest point of the
    frame has, in each of them, weights that change linearly: w' = M w.

    The mesh has d + 1 colours, and no cell has two vertices of one: `slots` are ordered by them, so that a point that
    passes from cell to cell through the face w_k = 0 keeps its weights where they are. Directions have no colour: there
    `order` says from where each weight comes.
    """

    generators: np.ndarray  # (G, d): the vertices, then the directions -x, x, -y, y[, -z, z]
    vertices: int  # how many of them are vertices
    slots: np.ndarray  # (cells, d+1) int32: the generators of each cell, those inside the frame first
    beyond: np.ndarray  # (cells, d+1) int32: the cell behind the face opposite of a slot; -1 where it is infinitely far
    order: np.ndarray  # (cells, d+1) int32: from which slot each one's weight comes there, two bits each
    weights: np.ndarray  # (cells, d+1, d+1): w = weights (p, 1)
    outside: np.ndarray  # (boxes, 3^d, 2) int32: the cells beyond a box, by the side of each axis: -1, 0, 1 in base 3


@functools.lru_cache(32)
def mesh(tessellation: tuple[int, ...]) -> Mesh:
    """The mesh of two or three dimensions."""
    d = len(tessellation)
    vertices, cells = simplices(tessellation)
    colours = _colours(tessellation, vertices)
    directions = np.stack([sign * axis for axis in np.eye(d) for sign in (-1.0, 1.0)])
    generators = np.concatenate([vertices, directions])
    slots = [[0] * (d + 1) for _ in cells]
    for row, cell in zip(slots, cells, strict=True):
        for vertex in cell:
            row[colours[vertex]] = int(vertex)

    # Beyond the frame: what a cell has of a face, an edge or a corner of the border, with the directions that lead out.
    outside = np.full((math.prod(tessellation), 3**d, 2), -1, dtype=np.int32)
    known: dict[tuple[frozenset[int], tuple[int, ...]], int] = {}
    for cell, sides in itertools.product(range(len(cells)), itertools.product((-1, 0, 1), repeat=d)):
        axes = [a for a in range(d) if sides[a]]
        kept = [k for k in range(d + 1) if all(vertices[slots[cell][k], a] == sides[a] for a in axes)]
        if not axes or len(kept) + len(axes) != d + 1:
            continue
        face = frozenset(slots[cell][k] for k in kept), sides
        if face not in known:
            known[face] = len(slots)
            leading = iter(len(vertices) + 2 * a + (sides[a] > 0) for a in axes)
            slots.append([slots[cell][k] if k in kept else next(leading) for k in range(d + 1)])
        places = outside[cell // CELLS_OF_A_BOX[d], sum((sides[a] + 1) * 3**a for a in range(d))]
        if known[face] not in places:
            places[list(places).index(-1)] = known[face]

    faces: dict[frozenset[int], list[tuple[int, int]]] = {}
    for cell, row in enumerate(slots):
        for k in range(d + 1):
            faces.setdefault(frozenset(row[:k] + row[k + 1 :]), []).append((cell, k))
    beyond = np.full((len(slots), d + 1), -1, dtype=np.int32)
    order = np.zeros((len(slots), d + 1), dtype=np.int32)
    for sharing in faces.values():
        if len(sharing) == 2:
            for (cell, k), (other, _) in (sharing, sharing[::-1]):
                beyond[cell, k] = other
                origins = [slots[cell].index(g) if g in slots[cell] else k for g in slots[other]]
                order[cell, k] = sum(origin << 2 * slot for slot, origin in enumerate(origins))

    spanned = generators[slots]
    finite = (np.array(slots) < len(vertices))[..., None]
    weights = np.linalg.inv(np.concatenate([spanned, finite], axis=-1).swapaxes(1, 2))
    return Mesh(generators, len(vertices), np.array(slots, dtype=np.int32), beyond, order, weights, outside)


def _colours(tessellation: tuple[int, ...], vertices: np.ndarray) -> np.ndarray:
    """0 to d for each vertex, so that the vertices of a cell have different ones."""
    place = np.rint((vertices + 1) * np.array(tessellation[::-1])).astype(int)  # two to a box: centres are odd
    if len(tessellation) == 2:
        return np.where(place[:, 0] % 2 == 1, 0, 1 + place.sum(axis=1) // 2 % 2)
    _, y, z = place.T // 2
    odd = (place.sum(axis=1) // 2) % 2
    return 2 * ((z + odd) % 2) + (y + odd) % 2
