"""The store is made with the module and connected in the init phase; a call searches and puts."""

from time import perf_counter

from vectors import INDEX, embed

from langgraph_aurora_store import AuroraStore

store = AuroraStore.from_cluster(index={**INDEX, "embed": embed})
store.open()


def handler(event: dict, _context: object) -> dict:
    begun = perf_counter()
    store.search(("bench", "user"), query=event["text"], limit=5)
    store.put(("bench", "user"), event["key"], {"text": event["text"]})
    return {"ms": (perf_counter() - begun) * 1000}
