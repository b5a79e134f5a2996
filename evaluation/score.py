"""What an evaluator returns: one statistic with its interval, its direction and how it was computed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """One statistic with its 95 % interval.

    ``low`` and ``high`` are NaN where no interval is defined; ``how`` then says why. ``value`` is NaN where the
    statistic itself is undefined, again with the reason in ``how``.
    """

    name: str
    value: float
    low: float
    high: float
    higher_is_better: bool
    n: int  # samples that the statistic was computed on
    how: str  # definition, and what the interval covers and holds fixed

    def __post_init__(self) -> None:
        for field, kind in (("value", float), ("low", float), ("high", float), ("n", int), ("higher_is_better", bool)):
            object.__setattr__(self, field, kind(getattr(self, field)))  # NumPy scalars become JSON-able numbers

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON: NaN and infinities, which JSON does not know, become ``None``."""
        values = dataclasses.asdict(self)
        for key in ("value", "low", "high"):
            if not math.isfinite(values[key]):
                values[key] = None
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Score:
        """Inverse of :meth:`to_dict`; raises ValueError on missing or unknown keys."""
        known = {field.name for field in dataclasses.fields(cls)}
        if set(values) != known:
            raise ValueError(f"a score has the keys {sorted(known)}, got {sorted(values)}")
        numbers = {key: math.nan if values[key] is None else values[key] for key in ("value", "low", "high")}
        return cls(**{**values, **numbers})
