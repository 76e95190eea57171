"""Deterministic vectors: texts that share words are near, and equal texts are equal."""

import hashlib
import math
import random
import re
from collections import Counter
from functools import lru_cache

_WORD = re.compile(r"\w+")
PLACES_PER_WORD = 4
BACKGROUND = 0.1


@lru_cache(maxsize=512)
def vector_of(text: str, dimensions: int) -> tuple[float, ...]:
    """A hashed bag of words of length 1 on a faint background that all texts share.

    The background makes each number as long to write and to read as a real one is.
    """
    counts: dict[int, float] = {}
    for word, times in Counter(_WORD.findall(text.lower())).items():
        digest = hashlib.blake2b(word.encode(), digest_size=5 * PLACES_PER_WORD).digest()
        for start in range(0, len(digest), 5):
            place = int.from_bytes(digest[start + 1 : start + 5]) % dimensions
            counts[place] = counts.get(place, 0.0) + (times if digest[start] % 2 else -times)
    vector = list(_background(dimensions))
    length = math.sqrt(sum(count * count for count in counts.values()))
    for place, count in counts.items():
        vector[place] += math.sqrt(1 - BACKGROUND**2) * count / (length or 1.0)
    return tuple(vector)


@lru_cache
def _background(dimensions: int) -> tuple[float, ...]:
    chance = random.Random(dimensions)
    numbers = [chance.gauss() for _ in range(dimensions)]
    length = math.sqrt(sum(number * number for number in numbers))
    return tuple(BACKGROUND * number / length for number in numbers)
