"""The filter language: what ``search(filter=...)`` means, as a condition in SQL.

``{"status": "active", "score": {"$gte": 3}, "meta": {"lang": "en"}}`` holds when every part holds.
A key names a member of the value, as ``InMemoryStore`` has it; a dotted key names that member, or
where there is none the path of its parts (``"meta.lang"``).

```
{"k": v}             equal as JSON: 1 equals 1.0, true is not 1; null also means missing
{"k": {"m": v}}      an object in which m matches, operators inside it included; {} is any object
{"k": [v, ...]}      an array of this length whose elements match one by one
$eq $ne              equal in full, objects included, or not; a missing member is null
$gt $gte $lt $lte    numbers by value, text by code point; anything else in the item does not match.
                     A number in a text compares with a number, as in InMemoryStore
$in $nin             equal to one of a list, or to none
$exists              true: the member is there, even when null; false: it is not
$contains            an array has an element equal to this one, or to each of this list, where an
                     object also equals one with more members, and an array one with more elements;
                     a text has this text within it
$not                 the condition in it does not match
$and $or             of a list of conditions, on a member or on whole items
```

Every condition is true or false, never unknown, so that negation is safe. Equality stands as
``value @> '{...}'``, which a GIN index on ``value`` serves. Keys and operands are parameters.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, wraps
from typing import NamedTuple, TypeAlias

from langgraph_aurora_store.errors import InvalidFilterError
from langgraph_aurora_store.sql.json_values import is_storable
from langgraph_aurora_store.sql.store_tables import StoreTables
from langgraph_aurora_store.validation import brief

_MISSING = "NULL::jsonb"
_COMPARISONS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
# What float() reads, of that what numeric does: its range, and ASCII's digits and spaces.
_DIGITS = r"[0-9]{1,255}(\.[0-9]{0,255})?|\.[0-9]{1,255}"
_NUMBER = rf"^[ \t-\r]*[+-]?({_DIGITS})([eE][+-]?[0-9]{{1,3}})?[ \t-\r]*$"
# An escape of JSON's, and not a backslash that is escaped itself before "u0000".
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
# A dotted key may stand for either of two members; beyond a few, an index no longer helps.
_MOST_TRAILS = 4
# Characters of SQL for one member: each dotted key doubles them.
_LONGEST_PLACE = 2_000
# Each is compared with each item: measured, 1,000 take .1 to .6 s for 1,000 items that match none.
_MOST_PARTS = 1_000
# A value of $in is hashed once and looked up for each item: measured, 40,000 take 40 ms in all.
_VALUES_PER_PART = 100
# Characters. psycopg keeps its own work on statements of up to so many, too.
_LONGEST_REMEMBERED = 4_096

Trail: TypeAlias = tuple[str, ...]


class Condition(NamedTuple):
    """A condition on ``s.value`` and its named parameters."""

    sql: str
    params: dict[str, object]


def by_condition(build: Callable[..., str]) -> Callable[..., str]:
    """Remember the statements built last, unless their condition is long: those would pile up."""
    remembered = lru_cache(maxsize=256)(build)

    @wraps(build)
    def statement(tables: StoreTables, condition: str, **scope: bool) -> str:
        choice = remembered if len(condition) <= _LONGEST_REMEMBERED else build
        return choice(tables, condition, **scope)

    return statement


def compile_filter(filter_: Mapping[str, object] | None) -> Condition:
    """Translate a filter; ``None`` and ``{}`` hold for every item.

    Raises:
        InvalidFilterError: for an unknown operator or an operand that means nothing to it.
    """
    compiler = _Compiler()
    try:
        return Condition(compiler.whole(filter_ or {}), compiler.params)
    except RecursionError as exc:
        raise InvalidFilterError("the filter is nested too deeply, or holds itself") from exc


class _Place(NamedTuple):
    """A member of the value: its expression, its name, and how to reach it by containment.

    ``trails`` are the ways from the root by keys alone; none where a way leads through an array.
    """

    sql: str
    name: str
    trails: tuple[Trail, ...]


class _Compiler:
    def __init__(self) -> None:
        self.params: dict[str, object] = {}
        self.parts = 0

    def whole(self, filter_: object, name: str = "the filter") -> str:
        """Conditions on whole items."""
        if not isinstance(filter_, Mapping):
            raise InvalidFilterError(f"{name} must be a mapping, not {type(filter_).__name__}")
        self.count(0 if filter_ else 1)
        root = _Place("s.value", "", ((),))
        return _all(
            self.logic(key, operand)
            if _is_operator(key)
            else self.match(self.member(root, key), operand)
            for key, operand in filter_.items()
        )

    def logic(self, key: str, operand: object) -> str:
        if key == "$not":
            return f"NOT {self.whole(operand, key)}"
        if key in ("$and", "$or"):
            parts = [self.whole(part, f"each part of {key}") for part in _listed(key, operand)]
            return _all(parts) if key == "$and" else _any(parts)
        raise InvalidFilterError(
            f"unknown operator {brief(key)} outside a field; known there are '$and', '$or' and"
            " '$not'"
        )

    def match(self, place: _Place, wanted: object) -> str:
        """``InMemoryStore``'s comparison of a member with what the filter holds for it."""
        self.count(1)
        if isinstance(wanted, Mapping):
            if any(_is_operator(key) for key in wanted):
                return _all(self.operator(place, key, wanted[key]) for key in wanted)
            inner = [self.match(self.member(place, key), wanted[key]) for key in wanted]
            return _all(
                [f"coalesce(pg_catalog.jsonb_typeof({place.sql}) = 'object'::text, false)", *inner]
            )
        if isinstance(wanted, (list, tuple)) and _holds_mapping(wanted):
            inner = [
                self.match(_Place(f"({place.sql} -> {i})", f"{place.name}[{i}]", ()), element)
                for i, element in enumerate(wanted)
            ]
            return _all([_array_of(place, len(wanted)), *inner])
        return self.equal(place, wanted)

    def operator(self, place: _Place, operator: str, operand: object) -> str:
        if operator in _COMPARISONS:
            return self.ordered(place, operator, operand)
        if (build := _OPERATORS.get(operator)) is None:
            known = ", ".join(sorted([*_OPERATORS, *_COMPARISONS]))
            raise InvalidFilterError(
                f"unknown operator {brief(operator)} for {brief(place.name)}; known are {known}"
            )
        return build(self, place, operand)

    def equal(self, place: _Place, wanted: object) -> str:
        if (document := _json(place, wanted)) is None:
            return "false"
        if wanted is None:
            return f"coalesce({place.sql}, 'null'::jsonb) = 'null'::jsonb"
        exactly = f"coalesce({place.sql} = {self.add(document)}::jsonb, false)"
        within = self.contained(place, wanted)
        if within is None:
            return exactly
        is_exact = len(place.trails) == 1 and not isinstance(wanted, (Mapping, list, tuple))
        return within if is_exact else f"({within} AND {exactly})"

    def unequal(self, place: _Place, operand: object) -> str:
        return f"NOT {self.equal(place, operand)}"

    def one_of(self, place: _Place, operand: object) -> str:
        if not isinstance(operand, (list, tuple, set, frozenset)):
            raise InvalidFilterError(
                f"$in and $nin of {brief(place.name)} take a list, not {brief(operand)}"
            )
        self.count(len(operand) // _VALUES_PER_PART)
        documents = [document for o in operand if (document := _json(place, o)) is not None]
        sought = f"coalesce({place.sql}, 'null'::jsonb)" if None in operand else place.sql
        # A subquery is read once and hashed; an array would be read, and looked through, for each
        # row.
        values = f"SELECT pg_catalog.unnest({self.add(documents, 'b')}::text[]::jsonb[])"
        return f"coalesce({sought} = ANY ({values}), false)"

    def none_of(self, place: _Place, operand: object) -> str:
        return f"NOT {self.one_of(place, operand)}"

    def exists(self, place: _Place, operand: object) -> str:
        if not isinstance(operand, bool):
            raise InvalidFilterError(
                f"$exists of {brief(place.name)} is True or False, not {brief(operand)}"
            )
        return f"({place.sql} IS {'NOT NULL' if operand else 'NULL'})"

    def contains(self, place: _Place, operand: object) -> str:
        elements = list(operand) if isinstance(operand, (list, tuple)) else [operand]
        if (document := _json(place, elements)) is None:
            return "false"
        holds = f"coalesce({place.sql} @> {self.add(document)}::jsonb, false)"
        if not isinstance(operand, str):
            is_array = f"pg_catalog.jsonb_typeof({place.sql}) = 'array'::text"
            return f"(coalesce({is_array}, false) AND {holds})"
        text = f"pg_catalog.strpos({_text_of(place)}, {self.add(operand)}::text) > 0"
        return (
            f"CASE pg_catalog.jsonb_typeof({place.sql}) WHEN 'array' THEN {holds}"
            f" WHEN 'string' THEN {text} ELSE false END"
        )

    def negated(self, place: _Place, operand: object) -> str:
        return f"NOT {self.match(place, operand)}"

    def every(self, place: _Place, operand: object) -> str:
        return _all([self.match(place, part) for part in _listed("$and", operand)])

    def some(self, place: _Place, operand: object) -> str:
        return _any([self.match(place, part) for part in _listed("$or", operand)])

    def ordered(self, place: _Place, operator: str, operand: object) -> str:
        sign = _COMPARISONS[operator]
        text = _text_of(place)
        if isinstance(operand, str) and is_storable(operand):
            as_text = f'{text} COLLATE "C" {sign} {self.add(operand)}::text'
            number = _number(operand)
            as_number = (
                "false" if number is None else f"{text}::numeric {sign} {self.add(number)}::numeric"
            )
        elif (
            isinstance(operand, (int, float))
            and not isinstance(operand, bool)
            and operand == operand
        ):
            number = self.add(_digits(place, operand))
            as_number = f"{text}::numeric {sign} {number}::numeric"
            pattern = self.add(_NUMBER)
            as_text = f"CASE WHEN {text} ~ {pattern}::text THEN {as_number} ELSE false END"
        else:
            raise InvalidFilterError(
                f"{operator} of {brief(place.name)} takes a number or storable text,"
                f" not {brief(operand)}"
            )
        return (
            f"CASE pg_catalog.jsonb_typeof({place.sql}) WHEN 'number' THEN {as_number}"
            f" WHEN 'string' THEN {as_text} ELSE false END"
        )

    def member(self, place: _Place, key: object) -> _Place:
        if not isinstance(key, str):
            raise InvalidFilterError(f"filter keys must be text, not {brief(key)}")
        name = f"{place.name}.{key}" if place.name else key
        if not is_storable(key):
            return _Place(_MISSING, name, ())
        member = f"({place.sql} -> {self.add(key)}::text)"
        trails = tuple((*trail, key) for trail in place.trails)
        if "." in key:
            parts = key.split(".")
            self.count(len(parts))
            path = "".join(f" -> {self.add(part)}::text" for part in parts)
            member = f"coalesce({member}, {place.sql}{path})"
            # The place stands in it twice: a few dots nested in dots would fill the memory.
            if len(member) > _LONGEST_PLACE:
                raise InvalidFilterError(
                    f"dotted keys are nested too deeply at {name[:80]!r}; nest objects instead"
                )
            trails += tuple((*trail, *parts) for trail in place.trails)
        return _Place(member, name, trails if len(trails) <= _MOST_TRAILS else ())

    def contained(self, place: _Place, wanted: object) -> str | None:
        if not place.trails:
            return None
        return _any(
            f"s.value @> {self.add(json.dumps(_nested(trail, wanted), ensure_ascii=False))}::jsonb"
            for trail in place.trails
        )

    def count(self, parts: int) -> None:
        self.parts += parts
        if self.parts > _MOST_PARTS:
            raise InvalidFilterError(
                f"a filter has at most {_MOST_PARTS} parts: conditions, parts of dotted keys, and"
                f" every {_VALUES_PER_PART} values of $in or $nin; for one of many values use $in,"
                " or search several times"
            )

    def add(self, value: object, style: str = "s") -> str:
        name = f"f{len(self.params)}"
        self.params[name] = value
        return f"%({name}){style}"


_OPERATORS: dict[str, Callable[[_Compiler, _Place, object], str]] = {
    "$eq": _Compiler.equal,
    "$ne": _Compiler.unequal,
    "$in": _Compiler.one_of,
    "$nin": _Compiler.none_of,
    "$exists": _Compiler.exists,
    "$contains": _Compiler.contains,
    "$not": _Compiler.negated,
    "$and": _Compiler.every,
    "$or": _Compiler.some,
}


def _is_operator(key: object) -> bool:
    return isinstance(key, str) and key.startswith("$")


def _holds_mapping(values: Sequence[object]) -> bool:
    return any(
        isinstance(v, Mapping) or (isinstance(v, (list, tuple)) and _holds_mapping(v))
        for v in values
    )


def _text_of(place: _Place) -> str:
    """The member as text, without the quotation marks of JSON."""
    return f"({place.sql} OPERATOR(pg_catalog.#>>) '{{}}'::text[])"


def _array_of(place: _Place, length: int) -> str:
    size = f"pg_catalog.jsonb_array_length({place.sql}) = {length}"
    return f"CASE pg_catalog.jsonb_typeof({place.sql}) WHEN 'array' THEN {size} ELSE false END"


def _listed(operator: str, operand: object) -> Sequence[object]:
    if not isinstance(operand, (list, tuple)) or not operand:
        raise InvalidFilterError(
            f"{operator} takes a list of at least one condition, not {brief(operand)}"
        )
    return operand


def _json(place: _Place, value: object) -> str | None:
    """The operand as JSON; ``None`` if no stored value can equal it."""
    try:
        document = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise InvalidFilterError(
            f"the operand for {brief(place.name)} is not JSON: {type(value).__name__} ({exc})"
        ) from exc
    return document if is_storable(document) and not _NUL.search(document) else None


def _digits(place: _Place, number: float) -> str:
    try:
        return str(number)
    except ValueError as exc:
        raise InvalidFilterError(
            f"the operand for {brief(place.name)} has too many digits"
        ) from exc


def _number(text: str) -> str | None:
    try:
        return None if math.isnan(number := float(text)) else str(number)
    except ValueError:
        return None


def _nested(trail: Trail, value: object) -> object:
    for key in reversed(trail):
        value = {key: value}
    return value


def _all(conditions: Iterable[str]) -> str:
    parts = list(conditions)
    return f"({' AND '.join(parts)})" if parts else "true"


def _any(conditions: Iterable[str]) -> str:
    parts = list(conditions)
    return parts[0] if len(parts) == 1 else f"({' OR '.join(parts)})"
