"""What every evaluator asks of its arrays. A misfit is a ValueError that says what was given and what was expected."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def binary_label(label: ArrayLike) -> NDArray[np.int64]:
    """``(n,)`` labels, real = 0 and fake = 1, both present; as int64."""
    label = np.asarray(label)
    if label.ndim != 1:
        raise ValueError(f"label must have shape (n,), got {label.shape}")
    found = np.unique(label)
    if not np.isin(found, (0, 1)).all():
        raise ValueError(f"label must be 0 (real) or 1 (fake), got {found[:5].tolist()}")
    if len(found) < 2:
        raise ValueError(f"label must hold both classes, got {len(label)} samples of {found.tolist() or 'none'}")
    return label.astype(np.int64)


def finite(name: str, values: ArrayLike, n: int, ndim: int = 1) -> NDArray[np.float64]:
    """Finite numbers of ``ndim`` dimensions, ``n`` of them along the first; as float64."""
    values = np.asarray(values)
    if values.ndim != ndim or len(values) != n:
        raise ValueError(f"{name} must have {ndim} dimension(s) and {n} rows like the labels, got shape {values.shape}")
    values = values.astype(np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(
            f"{name} holds {int(bad.sum())} NaN or infinite value(s), first in row {int(bad.nonzero()[0][0])}"
        )
    return values


def components(group: ArrayLike, n: int) -> NDArray[np.int64]:
    """Independent units: ``(n,)`` ids 0 … G-1 of the connected components of ``group``.

    A group is an integer or a string; a string may join several ids with ``|``, which ties all of them. The ids do not
    depend on the order of the samples: components are numbered by their smallest id.
    """
    group = np.asarray(group)
    if group.shape != (n,):
        raise ValueError(f"group must have shape ({n},) like the labels, got {group.shape}")
    if np.issubdtype(group.dtype, np.integer):
        return np.unique(group, return_inverse=True)[1]
    if not all(isinstance(name, str) for name in group.tolist()):
        raise ValueError(f"group must hold integers or strings, got {group.dtype} with missing or other values")
    names, of_sample = np.unique(group.astype(str), return_inverse=True)
    tokens = [name.split("|") for name in names.tolist()]
    if any(not token.strip() for parts in tokens for token in parts):
        raise ValueError("group holds an empty id; give every sample the id of what it shares with others")
    return _tied(tokens)[of_sample]


def _tied(tokens: list[list[str]]) -> NDArray[np.int64]:
    """Component of each list of tokens, numbered by the component's smallest token."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    flat, node = np.unique([token for parts in tokens for token in parts], return_inverse=True)
    owner = np.repeat(np.arange(len(tokens)), [len(parts) for parts in tokens])
    size = len(flat) + len(tokens)  # bipartite graph: tokens first (sorted), then the lists that hold them
    graph = coo_array((np.ones(len(node)), (node, len(flat) + owner)), shape=(size, size))
    found = connected_components(graph, directed=False)[1]
    first, number = np.unique(found[: len(flat)], return_index=True)  # first token of each component
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(number)] = np.arange(len(first))
    return rank[found[len(flat) :]]
