"""Embeddings that cost nothing: what is measured is the store."""

from collections.abc import Sequence
from zlib import crc32

DIMS = 1024  # Titan v2's
INDEX = {"dims": DIMS, "fields": ["text"]}

_WAVE = [((7 * i) % 1024 - 512) / 16384 for i in range(DIMS)]


def embed(texts: Sequence[str]) -> list[list[float]]:
    """A vector of its own for each text."""
    shifts = [crc32(text.encode()) % DIMS for text in texts]
    return [_WAVE[shift:] + _WAVE[:shift] for shift in shifts]
