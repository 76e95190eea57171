"""How many connections a pool keeps, and how long it waits for what. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

from langgraph_aurora_store.errors import ConfigurationError
from langgraph_aurora_store.validation import brief_unless_secret, within

Profile: TypeAlias = Literal["service", "lambda"]

_MOST_CONNECTIONS = 262_143  # of a server: MAX_BACKENDS in PostgreSQL's source
LONGEST_WAIT_S = 31_536_000  # a year
# The least and the most that psycopg_pool, libpq (milliseconds in 32 bits) and Linux (tcp.h) take.
_RANGES: Mapping[str, tuple[float, float]] = {
    "min_size": (0, _MOST_CONNECTIONS),
    "max_size": (1, _MOST_CONNECTIONS),
    "timeout_s": (0.001, LONGEST_WAIT_S),
    "connect_timeout_s": (1, 2_147_483),
    "check_after_idle_s": (0, LONGEST_WAIT_S),
    "max_idle_s": (0.001, LONGEST_WAIT_S),
    "max_lifetime_s": (0.001, LONGEST_WAIT_S),
    "tcp_user_timeout_s": (0.001, 2_147_483),
    "keepalives_idle_s": (1, 32_767),
    "keepalives_interval_s": (1, 32_767),
    "keepalives_count": (1, 127),
    "max_waiting": (0, 1_000_000_000),
    "max_connects_per_s": (0.1, 100_000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Sizes and waits of a pool; every ``_s`` is in seconds. The defaults suit a service.

    - ``min_size`` connections are kept open; the pool grows to ``max_size``. An open connection
      keeps a Serverless v2 cluster from pausing: set ``min_size=0`` to let it. An asyncio store
      leaves half of ``max_size`` to reads when many write.
    - ``timeout_s``: how long a caller waits for a connection in all, failed attempts
      included. Refusals that waiting does not mend are reported at once. A failover typically
      ends within 30 s, and a cluster resumes from a pause in 15 to 30 s; both are waited for.
    - ``connect_timeout_s``: how long one attempt may take; libpq makes 2 s of less.
    - ``check_after_idle_s``: a connection idle for longer is tried with one round trip before it
      is handed out; ``None`` never. The others that idled with a dead one are then renewed too.
    - ``max_idle_s``: connections above ``min_size`` are closed, one at a time, when unused.
    - ``max_lifetime_s``: a connection is renewed when it comes back after this long, so that load
      spreads over instances added since.
    - ``tcp_user_timeout_s``: data unacknowledged for this long ends a connection, so a link gone
      silent cannot hang a statement or a check. ``keepalives_*``: probes on an idle link; after
      1 s, every 1 s, 5 of them, as the Aurora guide to fast failover advises.
    - ``max_waiting``: callers that may queue before the next is turned away; 0 for any number.
    - ``max_connects_per_s``: how fast connections are made once a burst of ``max_size``, at most
      20, is spent. Divide Aurora's 200 a second for IAM by the pools of a fleet.

    Raises:
        ConfigurationError: sizes or waits that make no sense.
    """

    min_size: int = 1
    max_size: int = 10
    timeout_s: float = 40.0
    connect_timeout_s: int = 5
    check_after_idle_s: float | None = 5.0
    max_idle_s: float = 300.0
    max_lifetime_s: float = 1800.0
    tcp_user_timeout_s: float = 3.0
    keepalives_idle_s: int = 1
    keepalives_interval_s: int = 1
    keepalives_count: int = 5
    max_waiting: int = 0
    max_connects_per_s: float = 40.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or "None" not in str(field.type):
                within(field.name, value, *_RANGES[field.name], whole=field.type == "int")
        if self.min_size > self.max_size:
            raise ConfigurationError(
                "a pool needs min_size <= max_size, not"
                f" min_size={self.min_size}, max_size={self.max_size}"
            )

    @classmethod
    def service(cls) -> PoolSettings:
        """For a process that stays up: one connection kept warm, up to ten under load."""
        return cls()

    @classmethod
    def for_lambda(cls) -> PoolSettings:
        """For a sandbox that serves one invocation at a time and is frozen between them.

        No connection is opened before one is needed, and few are: every sandbox has its own pool.
        What the freeze may have killed is found by a check after a second of idleness, as no
        thread of the pool runs in between. Waits are shorter, as an invocation is billed, but
        outlast a resume from a pause.
        """
        return cls(
            min_size=0,
            max_size=2,
            timeout_s=35.0,
            check_after_idle_s=1.0,
            max_idle_s=60.0,
            max_lifetime_s=900.0,
        )

    @classmethod
    def chosen(cls, pool: Profile | PoolSettings | None, *, on_lambda: bool) -> PoolSettings:
        """The settings meant by ``pool``; ``None`` is what suits where the process runs.

        Raises:
            ConfigurationError: an unknown name.
        """
        if isinstance(pool, PoolSettings):
            return pool
        profile = ("lambda" if on_lambda else "service") if pool is None else pool
        if profile == "lambda":
            return cls.for_lambda()
        if profile == "service":
            return cls.service()
        raise ConfigurationError(
            f"pool={brief_unless_secret(pool)} is unknown; pass 'service', 'lambda' or"
            " PoolSettings(...)"
        )

    def kwargs(self) -> dict[str, int]:
        """The libpq parameters."""
        return {
            "connect_timeout": self.connect_timeout_s,
            "keepalives": 1,
            "keepalives_idle": self.keepalives_idle_s,
            "keepalives_interval": self.keepalives_interval_s,
            "keepalives_count": self.keepalives_count,
            "tcp_user_timeout": round(self.tcp_user_timeout_s * 1000),  # libpq takes milliseconds
        }
