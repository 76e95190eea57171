"""The few messages of PostgreSQL's protocol that a proxy must speak; pure, standard library only.

See "Message Formats" in PostgreSQL's manual.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

SSL_REQUEST = 80877103
GSS_REQUEST = 80877104
CANCEL_REQUEST = 80877102

MAX_OPENING = 10_000  # PostgreSQL's MAX_STARTUP_PACKET_LENGTH
MAX_AUTHENTICATION = 65_536  # PG_MAX_AUTH_TOKEN_LENGTH
AUTHENTICATION_OK = 0
AUTHENTICATION_EXPECTING_REPLY = frozenset({3, 5, 10, 11})  # clear text, MD5, SASL, SASL continue

MAX_MESSAGE = 1_073_741_824

IDLE = b"I"  # the status of a session outside of a transaction
SYNC = struct.pack("!ci", b"S", 4)
NOT_YET = frozenset({"57P03"})  # cannot_connect_now: the server starts or stops

# CommandComplete of COMMIT, and of statements that commit by themselves outside of a transaction.
COMMITTED = b"C\0\0\0\x0bCOMMIT\0"
CHANGED = re.compile(rb"C\0\0\0.(?:INSERT 0|UPDATE|DELETE|MERGE) [0-9]+\0", re.DOTALL)

ASK_FOR_PASSWORD = struct.pack("!cii", b"R", 8, 3)  # AuthenticationCleartextPassword


def opening_code(packet: bytes) -> int:
    """The protocol version or request code of a message without a type byte."""
    return int.from_bytes(packet[4:8], "big") if len(packet) >= 8 else -1


def startup_parameters(packet: bytes) -> Mapping[str, str]:
    """The names and values of a StartupMessage: ``user``, ``database`` and settings."""
    words = packet[8:].split(b"\0")
    names, values = words[0::2], words[1::2]
    return {
        name.decode(errors="replace"): value.decode(errors="replace")
        for name, value in zip(names, values, strict=False)
        if name
    }


def password_of(body: bytes) -> str:
    """The password in the body of a PasswordMessage."""
    return body.removesuffix(b"\0").decode(errors="replace")


def error(code: str, text: str) -> bytes:
    """A fatal ErrorResponse."""
    fields = (("S", "FATAL"), ("V", "FATAL"), ("C", code), ("M", text))
    body = b"".join(kind.encode() + value.encode() + b"\0" for kind, value in fields) + b"\0"
    return b"E" + struct.pack("!i", len(body) + 4) + body


def sqlstate(message: bytes) -> str:
    """The SQLSTATE in an ErrorResponse."""
    for field in message[5:].split(b"\0"):
        if field[:1] == b"C":
            return field[1:].decode(errors="replace")
    return ""


def split(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole messages with a type byte at the beginning of ``data``, and the rest."""
    messages = []
    start = 0
    while len(data) - start >= 5:
        end = start + 1 + int.from_bytes(data[start + 1 : start + 5], "big")
        if end > len(data):
            break
        messages.append(data[start:end])
        start = end
    return messages, data[start:]


def prepared_name(message: bytes) -> bytes:
    """The name of the statement in a Parse message; empty for other messages and without one."""
    return message[5 : message.index(b"\0", 5)] if message[:1] == b"P" else b""


def closed_name(message: bytes) -> bytes:
    """The name of the statement in a Close message; empty for other messages and without one."""
    return message[6:-1] if message[:1] == b"C" and message[5:6] == b"S" else b""


def status_at_end(data: bytes) -> bytes | None:
    """The transaction's status in the ReadyForQuery that ends ``data``; None where none does."""
    return data[-1:] if data[-6:-1] == b"Z\0\0\0\x05" else None


def tells_commit(data: bytes, *, status_before: bytes) -> bool:
    """Whether the server says in ``data`` that a transaction is committed.

    Recognised by its bytes: text holds no zero bytes. A tag split between two reads is missed.
    """
    if COMMITTED in data:
        return True
    is_outside = status_before == IDLE == status_at_end(data)
    return is_outside and CHANGED.search(data) is not None


def tells_role(message: bytes) -> bool:
    """Whether a message reports whether the server is a standby."""
    return message[:1] == b"S" and message[5:].startswith(b"in_hot_standby\0")


def asks_for_password(message: bytes) -> bool:
    """Whether a message is an authentication request that expects an answer."""
    method = int.from_bytes(message[5:9], "big")
    return message[:1] == b"R" and method in AUTHENTICATION_EXPECTING_REPLY
