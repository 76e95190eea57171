"""LangGraph's own store, made with the module and kept: as good as it gets without this package."""

from time import perf_counter

from per_invocation import parent

kept = parent()
store = kept.__enter__()


def handler(event: dict, _context: object) -> dict:
    begun = perf_counter()
    store.search(("bench", "user"), query=event["text"], limit=5)
    store.put(("bench", "user"), event["key"], {"text": event["text"]})
    return {"ms": (perf_counter() - begun) * 1000}
