"""What of a checkpoint goes where: into its row as JSON, or into a blob of its own.

The parent inlines text and numbers in every checkpoint's row, where JSON refuses some of them and
changes others. Here only ``None``, booleans and whole numbers are inlined, which JSON keeps as they
are; the rest is a blob, which is stored once and which the parent reads as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from langgraph_aurora_store.errors import InvalidCheckpointError
from langgraph_aurora_store.validation import brief

# From about so many bytes on, serialising takes longer than the way to a thread and back.
LARGE = 32_768
# What a value of an unknown class counts for: a short message of LangChain's.
_OBJECT_SIZE = 1_000
_NODES_LOOKED_AT = 500


class Blob(NamedTuple):
    """A channel's value at a version."""

    channel: str
    version: str
    type: str
    data: bytes


class Write(NamedTuple):
    """A pending write of a task."""

    idx: int
    channel: str
    type: str
    data: bytes


class Parts(NamedTuple):
    """A checkpoint as it is stored: the JSON of its row, and its blobs in order of channels."""

    row: dict[str, Any]
    blobs: list[Blob]


def parts(
    checkpoint: Checkpoint, new_versions: ChannelVersions, serde: SerializerProtocol
) -> Parts:
    """Take a checkpoint apart.

    Raises:
        InvalidCheckpointError: a channel's value cannot be stored.
    """
    versions = checkpoint.get("channel_versions") or {}
    inline: dict[str, Any] = {}
    blobs = []
    for channel, value in sorted(checkpoint["channel_values"].items()):
        if isinstance(value, _DeltaSnapshot):
            inline[channel] = True  # as the parent marks it
        elif _is_primitive(value):
            if channel in versions and not (_is_kept_by_json(value) and _is_plain(serde)):
                # Though it may be unchanged: an older checkpoint may hold it in its row, and this
                # one is to find it in a blob. Where there is one already, it is left alone.
                blobs.append(_blob(channel, versions[channel], value, serde))
            else:
                inline[channel] = _inlined(channel, value, serde)
            continue
        if channel in new_versions:
            blobs.append(_blob(channel, new_versions[channel], value, serde))
    return Parts({**checkpoint, "channel_values": inline}, blobs)


def writes(writes_: Sequence[tuple[str, Any]], serde: SerializerProtocol) -> list[Write]:
    """A task's writes, one for each index."""
    by_index: dict[int, Write] = {}
    replaces = are_replaced(writes_)
    for position, (channel, value) in enumerate(writes_):
        index = WRITES_IDX_MAP.get(channel, position)
        if replaces or index not in by_index:
            by_index[index] = Write(index, channel, *_dump(channel, value, serde))
    return [by_index[index] for index in sorted(by_index)]


def are_replaced(writes_: Sequence[tuple[str, Any]]) -> bool:
    """Whether these writes replace those of the same index; others leave what is there."""
    return all(channel in WRITES_IDX_MAP for channel, _ in writes_)


def row_metadata(config: RunnableConfig, metadata: CheckpointMetadata) -> dict[str, Any]:
    """The metadata of a checkpoint's row, without NUL characters.

    Raises:
        InvalidCheckpointError: a value that JSON or PostgreSQL cannot hold, named by its key.
    """
    found: dict[str, Any] = {**get_serializable_checkpoint_metadata(config, metadata)}
    return {key: _as_json(value, key) for key, value in found.items()}


def is_large(values: Iterable[Any]) -> bool:
    """Whether serialising these is better done off the event loop; a guess within microseconds."""
    size, looked_at = 0, 0
    rest = list(values)
    while rest:
        value = rest.pop()
        looked_at += 1
        size += _size(value)
        if size > LARGE or looked_at > _NODES_LOOKED_AT:
            return True
        if isinstance(value, Mapping):
            rest.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            rest.extend(value)
    return False


def _size(value: Any) -> int:
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return len(value)
    if value is None or isinstance(value, (int, float)):
        return 8
    if isinstance(value, (Mapping, list, tuple, set)):
        return 8 * len(value)
    content = getattr(value, "content", None)
    return _OBJECT_SIZE + (len(content) if isinstance(content, str) else 0)


def _is_primitive(value: object) -> bool:
    """Whether the parent inlines a value."""
    return value is None or isinstance(value, (str, int, float, bool))


def _is_kept_by_json(value: object) -> bool:
    """Whether a value comes back from JSON as it was: no enum, and no 1e16, which returns whole."""
    return value is None or type(value) in (bool, int)


def _is_plain(serde: SerializerProtocol) -> bool:
    """Whether a serializer does no more than JSON would; another one may encrypt."""
    return isinstance(serde, JsonPlusSerializer)


def _inlined(channel: str, value: Any, serde: SerializerProtocol) -> Any:
    """A value without a version, for which no blob can be found, as the parent keeps it."""
    if not _is_plain(serde):
        raise InvalidCheckpointError(
            f"channel {brief(channel)} has no version, so its value would bypass the serializer"
            f" {type(serde).__name__}; give it one in channel_versions"
        )
    is_text = isinstance(value, str)
    if (is_text and not _is_storable(value)) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise InvalidCheckpointError(
            f"channel {brief(channel)} has no version, so its value is kept as JSON, which holds"
            " neither NUL characters, halves of surrogate pairs, NaN nor infinities; give it one in"
            " channel_versions"
        )
    return value


def _blob(channel: str, version: object, value: Any, serde: SerializerProtocol) -> Blob:
    return Blob(channel, str(version), *_dump(channel, value, serde))


def _dump(channel: str, value: Any, serde: SerializerProtocol) -> tuple[str, bytes]:
    if isinstance(value, str) and not _is_unicode(value):
        # msgpack would make a question mark of it, in silence.
        if _is_plain(serde) and type(value) is str:
            return "json", json.dumps(value).encode()
        raise InvalidCheckpointError(
            f"channel {brief(channel)} holds half of a surrogate pair, which {type(serde).__name__}"
            " cannot store; decode the text with errors='replace' where it comes from"
        )
    try:
        return serde.dumps_typed(value)
    except Exception as error:
        error.add_note(f"while serializing channel {brief(channel)}")
        raise


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_storable(text: str) -> bool:
    return "\0" not in text and _is_unicode(text)


def _as_json(value: Any, path: str) -> Any:
    """A value of the metadata as JSON keeps it."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        # The parent drops NUL characters from the texts at the top.
        kept = value.replace("\0", "")
        return kept if _is_unicode(kept) else _refused(path, "half of a surrogate pair")
    if isinstance(value, float):
        return value if math.isfinite(value) else _refused(path, "a number that is not finite")
    if isinstance(value, dict):
        return {_key(key, path): _as_json(it, f"{path}.{key}") for key, it in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(it, f"{path}[{i}]") for i, it in enumerate(value)]
    return _refused(path, f"a {type(value).__name__}")


def _key(key: object, path: str) -> object:
    return _as_json(key, path) if isinstance(key, str) else key


def _refused(path: str, what: str) -> Any:
    raise InvalidCheckpointError(
        f"metadata {path[:200]!r} is {what}, which JSON cannot hold; pass text in its place"
    )
