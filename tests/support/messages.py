"""Requests that no client would send: well-formed protobufs of any content, made from the descriptors."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from likewise_proto.v1 import head_pb2
from support.names import NAMES

DEEPEST = 6  # messages within messages, but for Struct
NUMBERS = (0, 1, 2, 3, 7, 100, 1000, 1025, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, -1, -2, -(2**63))
FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"))
VALUES = (1.0, -2.0, 0.0, 1e-44, 3e38, -3e38, float("nan"), float("inf"), float("-inf"))  # of a float32
CALM = {"version": 0, "k": 3, "dim": 3, "page_size": 2}
NEEDED = frozenset(
    {"collection", "name", "head", "k", "id", "label", "target", "examples", "items", "data", "info", "images", "ids"}
    | {"positive", "image", "vector"}
)
WORDS = ("and", "or", "not", "in", "like", "is", "null", "exists", "true", "label", "id", "uri", "n", "`a b`", "a.b")
SIGNS = ("(", ")", "((", ",", ".", "=", "!=", "<", "<=", ";", "--", "/*", "*/", "?", "%", "\\", "\0", "'", '"', "`")


class Maker:
    """Makes messages; what it knows to exist, it names as often as anything else."""

    def __init__(self, rng: random.Random, known: dict[str, list[str]], images: Sequence[bytes], content: str) -> None:
        """`known`: what texts of a field may say. `content`: "image" or "vector", what to send where either will do."""
        self._rng = rng
        self._content = content
        self._known = known
        self._images = images
        # Of values that are odd: where most are, a request does not get past the first check.
        self._wildness = rng.choice((0.02, 0.1, 0.5))

    def _odd(self) -> bool:
        return self._rng.random() < self._wildness

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """Return a message of that kind with some of its fields set."""
        made: Any = message_factory.GetMessageClass(descriptor)()
        if descriptor.full_name == "google.protobuf.Struct":
            made.CopyFrom(self._struct())
            return made  # type: ignore[no-any-return]
        fields = list(descriptor.fields)
        # Of a real oneof one field is set; that of an optional field has no other.
        chosen = [self._one_of(group.fields) for group in descriptor.oneofs if len(group.fields) > 1]
        for group in descriptor.oneofs:
            fields = [
                field for field in fields if field not in group.fields or field in chosen or len(group.fields) == 1
            ]
        for field in fields:
            wanted = field.name in NEEDED or field in chosen
            likely = 0.4 if field.name in self._known else 0.1
            if (wanted and not self._odd()) or (not wanted and self._rng.random() < likely + self._wildness):
                self._fill(made, field, depth)
        return made  # type: ignore[no-any-return]

    def _one_of(self, fields: Sequence[FieldDescriptor]) -> FieldDescriptor:
        right = [field for field in fields if field.name.startswith(self._content)]
        return right[0] if right and self._rng.random() < 0.7 else self._rng.choice(fields)

    def _fill(self, made: Any, field: FieldDescriptor, depth: int) -> None:
        if field.message_type is not None and depth >= DEEPEST:
            return
        if field.is_repeated:
            count = self._rng.choice((1, 1, 2, 3, 3, 8, 40)) // (1 + depth)
            values = [self._value(field, depth) for _ in range(count)]
            if field.name != "images" and self._odd() and self._rng.random() < 0.05:
                values *= 3000  # more than the limit, in a message that is not
            getattr(made, field.name).extend(values)
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(self._value(field, depth))
        else:
            setattr(made, field.name, self._value(field, depth))

    def _value(self, field: FieldDescriptor, depth: int) -> Any:
        rng = self._rng
        if field.message_type is not None:
            matrix = field.message_type.name == "Matrix" and not self._odd()
            return self._matrix(field.message_type) if matrix else self.message(field.message_type, depth + 1)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self._bytes(field)
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return self._text(field)
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
            known = len(field.enum_type.values) if field.enum_type else 1
            return rng.choice((99, -1, 2**31 - 1)) if self._odd() else rng.randrange(known)
        if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return rng.choice(FLOATS) if self._odd() else rng.random()
        return self._number(field)

    def _number(self, field: FieldDescriptor) -> int:
        bits = 32 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
        value = self._rng.choice(NUMBERS) if self._odd() else CALM.get(field.name, self._rng.randrange(4))
        if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
            return int(value % 2**bits)
        return int((value + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1))

    def _text(self, field: FieldDescriptor) -> str:
        if "where" in field.name:
            return self.where() if self._odd() else self._term(3)
        if self._odd() or field.name not in self._known:
            return self._rng.choice(NAMES)
        return self._rng.choice(self._known[field.name])

    def where(self) -> str:
        """Return a filter: a sound one, a random row of words, or one that is nested too deep."""
        kind = self._rng.random()
        if kind < 0.8:
            parts = [
                self._rng.choice((*WORDS, *SIGNS, *NAMES[:20], "1", "-1e400"))
                for _ in range(self._rng.randrange(1, 30))
            ]
            return " ".join(parts)
        return self._rng.choice(("(", "not ", "not (", "a.", "label = 'x' or (")) * self._rng.choice((30, 300, 5000))

    def _term(self, depth: int) -> str:
        if depth and self._rng.random() < 0.5:
            joint = self._rng.choice((" and ", " or "))
            return "(" + joint.join(self._term(depth - 1) for _ in range(self._rng.randrange(1, 4))) + ")"
        text = "'" + self._rng.choice(NAMES[:40]).replace("'", "''") + "'"
        about = (f"label = {text}", f"id != {text}", f"`{text[1:9]}` like {text}", f"n in (1, 2.5, {text}, true)")
        plain = ("n < 3", "exists(n)", "not n is null", "label is not null", f"uri >= {text}", f"n = {'9' * 20}")
        return self._rng.choice((*about, *plain))

    def _bytes(self, field: FieldDescriptor) -> bytes:
        """Return a picture, a vector of three numbers, or noise."""
        rng = self._rng
        if self._odd():
            return rng.choice(
                (b"", bytes(12), rng.randbytes(rng.randrange(60)), struct.pack("<3f", *rng.choices(VALUES, k=3)))
            )
        return (
            rng.choice(self._images) if field.name == "data" else struct.pack("<3f", *(rng.random() for _ in range(3)))
        )

    def _matrix(self, descriptor: Descriptor) -> Message:
        rows, cols = self._rng.choice((1, 1, 2, 5)), self._rng.choice((0, 1, 64)) if self._odd() else 3
        values = [self._rng.choice(VALUES) if self._odd() else self._rng.random() for _ in range(rows * cols)]
        made: Any = message_factory.GetMessageClass(descriptor)(
            data=struct.pack(f"<{len(values)}f", *values), dtype=1, rows=rows, cols=cols
        )
        return made  # type: ignore[no-any-return]

    def _struct(self) -> Message:
        made: Any = head_pb2.TrainHeadRequest().options
        for _ in range(self._rng.randrange(4)):
            made.update({self._rng.choice((*NAMES, "k", "c", "alpha", "folds", "hidden")): self._json(4)})
        if self._rng.random() < 0.1:
            inner: Any = {}
            for _ in range(self._rng.choice((5, 20, 30))):
                inner = {"a": inner} if self._rng.random() < 0.5 else [inner]
            made.update({"deep": inner})
        return made  # type: ignore[no-any-return]

    def _json(self, depth: int) -> Any:
        kind = self._rng.randrange(7 if depth else 4)
        if kind == 4:
            return [self._json(depth - 1) for _ in range(self._rng.randrange(4))]
        if kind >= 5:
            return {self._rng.choice(NAMES): self._json(depth - 1) for _ in range(self._rng.randrange(4))}
        return self._rng.choice((None, True, *FLOATS[:7], *FLOATS[7:], "", *NAMES))
