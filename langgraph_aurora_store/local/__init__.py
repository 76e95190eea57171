"""A local Aurora: real PostgreSQL with pgvector behind a proxy that behaves like RDS.

```python
from langgraph_aurora_store.local import LocalAurora

with LocalAurora() as cluster:
    ...  # cluster.session, cluster.endpoint, cluster.port, cluster.sslrootcert
```

Needs ``pip install 'langgraph-aurora-store[local]'``. From a shell:
``python -m langgraph_aurora_store.local``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from langgraph_aurora_store.lazy_imports import lazy_attributes

if TYPE_CHECKING:
    from langgraph_aurora_store.local.aurora import LocalAurora as LocalAurora

__all__ = ["LocalAurora"]


# The proxy's own process imports two modules of this package and nothing else, so LocalAurora is
# imported on first use.
__getattr__ = lazy_attributes(__name__, {"LocalAurora": "aurora"})
