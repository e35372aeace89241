"""The options of a head: plain values, checked once, the same for every caller."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from likewise_server.errors import InvalidArgument
from likewise_server.heads.registry import load

if TYPE_CHECKING:
    from collections.abc import Callable

_COMMON = ("temperature", "max_false_reject", "prior", "seed")
_AUTO = ("center", "class_weight")
METHODS = ("average", "bagging", "boosting", "stacking")
# What an ensemble is made of: heads whose state is a matrix.
MEMBER_KINDS = ("ncm", "ridge", "lda", "logreg")


@dataclass(frozen=True)
class HeadOptions:
    """What a caller may set. None means: let the method decide."""

    center: bool | None = None
    """Subtract the collection's mean before scoring. None: no, except that `auto` may find it better."""
    C: float | None = None
    """logreg: inverse strength of the penalty. None: chosen by cross-validation."""
    lam: float | None = None
    """ridge: strength of the penalty. None: chosen by leave-one-out."""
    shrinkage: float | None = None
    """lda: times how much the covariance is shrunk. None: 1, and from five of a class on chosen by leave-one-out."""
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
    """Seeds the folds, the subsets of large training sets, and whatever else is drawn."""
    hidden: int = 256
    """mlp: hidden units."""
    dropout: float = 0.3
    """mlp: share of the hidden units that each step leaves out."""
    weight_decay: float = 0.01
    """mlp: AdamW's."""
    epochs: int = 200
    """mlp: passes over the examples, at most."""
    learning_rate: float = 0.003
    """mlp: at the start."""
    schedule: str = "cosine"
    """mlp: how the learning rate falls; "cosine" annealing, or by ten whenever the held-out loss is on a "plateau"."""
    patience: int = 20
    """mlp: epochs without a lower held-out loss after which training ends."""
    method: str = "average"
    """ensemble: how its members come about and are combined."""
    members: int | tuple[str, ...] | None = None
    """ensemble: how many (bagging, boosting) or which kinds (average, stacking). None: ten; ridge, lda and logreg,
    or ridge for each of several backbones."""

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
            shrinkage=_number("shrinkage", given.get("shrinkage"), lambda v: v > 0, "greater than 0"),
            k=_whole("k", given.get("k"), 1),
            temperature=_number("temperature", given.get("temperature"), lambda v: v > 0, "greater than 0"),
            max_false_reject=_number(
                "max_false_reject", given.get("max_false_reject"), lambda v: 0 < v < 1, "between 0 and 1"
            )
            or cls.max_false_reject,
            class_weight=_choice("class_weight", given.get("class_weight"), ("balanced",)),
            prior=_prior(given.get("prior")),
            seed=_whole("seed", given.get("seed"), 0) or 0,
            hidden=_whole("hidden", given.get("hidden"), 1) or cls.hidden,
            dropout=_default(
                _number("dropout", given.get("dropout"), lambda v: 0 <= v < 1, "from 0 up to but not 1"), cls.dropout
            ),
            weight_decay=_default(
                _number("weight_decay", given.get("weight_decay"), lambda v: v >= 0, "0 or more"), cls.weight_decay
            ),
            epochs=_whole("epochs", given.get("epochs"), 1) or cls.epochs,
            learning_rate=_number("learning_rate", given.get("learning_rate"), lambda v: v > 0, "greater than 0")
            or cls.learning_rate,
            schedule=_choice("schedule", given.get("schedule"), ("cosine", "plateau")) or cls.schedule,
            patience=_whole("patience", given.get("patience"), 1) or cls.patience,
            method=(method := _choice("method", given.get("method"), METHODS) or cls.method),
            members=_members(given.get("members"), method),
        )

    def given(self) -> dict[str, object]:
        """Return the options that differ from the defaults, as JSON values."""
        default = HeadOptions()
        names = self.__dataclass_fields__
        values = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(default, name)}
        return {name: _json(value) for name, value in values.items()}


def _json(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _default(value: float | None, default: float) -> float:
    return default if value is None else value


def _members(value: object, method: str) -> int | tuple[str, ...] | None:
    """Return how many, or which kinds: a list of names, or one text with commas between them."""
    if value is None:
        return None
    if method in {"bagging", "boosting"}:
        return _whole("members", value, 1)
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not names or not set(names) <= set(MEMBER_KINDS):
        raise InvalidArgument(
            f"option 'members' must list kinds among {', '.join(MEMBER_KINDS)} with method {method!r}, not {value!r}"
        )
    return tuple(dict.fromkeys(names))


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
