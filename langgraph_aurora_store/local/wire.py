"""The few messages of PostgreSQL's protocol that a proxy must speak; pure, standard library only.

See "Message Formats" in PostgreSQL's manual.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

SSL_REQUEST = 80877103
GSS_REQUEST = 80877104
CANCEL_REQUEST = 80877102

MAX_OPENING = 10_000  # PostgreSQL's MAX_STARTUP_PACKET_LENGTH
MAX_AUTHENTICATION = 65_536  # PG_MAX_AUTH_TOKEN_LENGTH
AUTHENTICATION_OK = 0
AUTHENTICATION_EXPECTING_REPLY = frozenset({3, 5, 10, 11})  # clear text, MD5, SASL, SASL continue

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
