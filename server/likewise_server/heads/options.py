"""The options of a head: plain values, checked once, the same for every caller."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from likewise_server.errors import InvalidArgument
from likewise_server.heads.registry import load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_COMMON = ("temperature", "max_false_reject", "prior", "seed")
_AUTO = ("center", "class_weight")


@dataclass(frozen=True)
class HeadOptions:
    """What a caller may set. None means: let the method decide."""

    center: bool | None = None
    """Subtract the collection's mean before scoring. None: no, except that `auto` may find it better."""
    C: float | None = None
    """logreg: inverse strength of the penalty. None: chosen by cross-validation."""
    lam: float | None = None
    """ridge: strength of the penalty. None: chosen by leave-one-out."""
    k: int | None = None
    """knn: how many neighbours vote. None: min(20, n)."""
    temperature: float | None = None
    """Divides the logits before the softmax. None: fitted on held-out logits."""
    max_false_reject: float = 0.05
    """The largest share of known things that the rejection threshold may turn away."""
    class_weight: str | None = None
    """"balanced" lets every class weigh the same, however many examples it has."""
    prior: Mapping[str, float] | None = None
    """Class to weight: multiplies the probabilities, which are then normalised again."""
    seed: int = 0
    """Seeds the folds and the subsets of large training sets."""

    @classmethod
    def parse(cls, kind: str, options: Mapping[str, object]) -> HeadOptions:
        """Check `options` for a head of this kind.

        Raises InvalidArgument for an unknown kind, an option that the kind does not have (the message
        lists those it has) or a value out of range.
        """
        known = {*_COMMON, *(_AUTO if kind == "auto" else load(kind).options)}
        if unknown := sorted(set(options) - known):
            listed = ", ".join(sorted(known))
            raise InvalidArgument(f"a head of kind {kind!r} has no option {unknown[0]!r}: it has {listed}")
        # None stands for the default, so that a caller can pass every option through.
        given = {name: value for name, value in options.items() if value is not None}
        return cls(
            center=_boolean("center", given.get("center")),
            C=_number("C", given.get("C"), lambda v: v > 0, "greater than 0"),
            lam=_number("lam", given.get("lam"), lambda v: v > 0, "greater than 0"),
            k=_whole("k", given.get("k"), 1),
            temperature=_number("temperature", given.get("temperature"), lambda v: v > 0, "greater than 0"),
            max_false_reject=_number(
                "max_false_reject", given.get("max_false_reject"), lambda v: 0 < v < 1, "between 0 and 1"
            )
            or cls.max_false_reject,
            class_weight=_choice("class_weight", given.get("class_weight"), ("balanced",)),
            prior=_prior(given.get("prior")),
            seed=_whole("seed", given.get("seed"), 0) or 0,
        )

    def given(self) -> dict[str, object]:
        """Return the options that differ from the defaults, as JSON values."""
        default = HeadOptions()
        names = self.__dataclass_fields__
        values = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(default, name)}
        return {name: dict(value) if name == "prior" else value for name, value in values.items()}


def _boolean(name: str, value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise InvalidArgument(f"option {name!r} must be true or false, not {value!r}")


def _number(name: str, value: object, fits: Callable[[float], bool], range_: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidArgument(f"option {name!r} must be a number {range_}, not {value!r}")
    if not fits(value):
        raise InvalidArgument(f"option {name!r} must be {range_}, not {value!r}")
    return float(value)


def _whole(name: str, value: object, least: int) -> int | None:
    # JSON and protobuf's Struct know only doubles: 5.0 is a fair way to say 5.
    number = _number(name, value, lambda v: v >= least and v == int(v), f"a whole number from {least} up")
    return None if number is None else int(number)


def _choice(name: str, value: object, choices: tuple[str, ...]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in choices:
        raise InvalidArgument(f"option {name!r} must be {' or '.join(map(repr, choices))}, not {value!r}")
    return value


def _prior(value: object) -> dict[str, float] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise InvalidArgument("option 'prior' must map every class to a weight greater than 0")
    return {
        str(label): _number(f"prior[{label!r}]", weight, lambda v: v > 0, "greater than 0") or 0.0
        for label, weight in value.items()
    }
