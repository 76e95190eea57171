"""What holds the code in shape: equal twins, imports that point down, a parent as we know it."""

import ast
import inspect
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from langgraph.store.base import BaseStore
from langgraph.store.base.batch import AsyncBatchedBaseStore
from langgraph.store.postgres import AsyncPostgresStore, PostgresStore

import langgraph_aurora_store
from langgraph_aurora_store import AsyncAuroraStore, AuroraStore
from langgraph_aurora_store.base import BaseAuroraStore
from langgraph_aurora_store.connect.connection import AsyncAuroraConnection, AuroraConnection
from langgraph_aurora_store.connect.connection_attempts import (
    AsyncPooledConnection,
    PooledConnection,
)
from langgraph_aurora_store.connect.lazy_pool import AsyncLazyPool, LazyPool
from langgraph_aurora_store.connect.pool import AsyncAuroraPool, AuroraPool
from langgraph_aurora_store.execution import executor
from langgraph_aurora_store.execution.executor import AsyncExecutor, Executor

PACKAGE = Path(langgraph_aurora_store.__file__).parent
NAME = PACKAGE.name
LONGEST_FUNCTION = 50

# A room may import from the rooms of the lines above its own. A module at the top of the package
# is a room of its own, as is each of the folders.
ROOMS = [
    ["errors", "lazy_imports", "version"],
    ["validation"],
    ["config", "fork_safety", "label_encoding"],
    ["sdk_log_redaction"],
    ["sdk_log_redaction"],
    ["aws"],
    ["connect", "embeddings", "local", "sql"],
    ["execution"],
    ["base", "checkpoint"],
    ["aio", "store"],
    ["__init__"],
]

# What the parent's constructors set, which ours has to set in their place.
ASYNC_ATTRIBUTES = {
    "_aqueue",
    "_deserializer",
    "_loop",
    "_task",
    "_ttl_stop_event",
    "_ttl_sweeper_task",
    "conn",
    "embeddings",
    "index_config",
    "lock",
    "loop",
    "pipe",
    "supports_pipeline",
    "ttl_config",
}
# Of these the parent's queue and its sweeper are users, and we have neither.
NOT_OURS = {"_aqueue", "_ttl_stop_event", "_ttl_sweeper_task", "loop"}

CONSTRUCTOR = ["self", "conn", "pipe=None", "deserializer=None", "index=None", "ttl=None"]
FROM_STRING = ["conn_string", "pipeline=False", "pool_config=None", "index=None", "ttl=None"]
PARENT = {
    "__init__": CONSTRUCTOR,
    "from_conn_string": FROM_STRING,
    "batch": ["self", "ops"],
    "abatch": ["self", "ops"],
    "setup": ["self"],
    "sweep_ttl": ["self"],
    "start_ttl_sweeper": ["self", "sweep_interval_minutes=None"],
    "stop_ttl_sweeper": ["self", "timeout=None"],
    "__del__": ["self"],
}


def parameters(function: Callable[..., object]) -> list[str]:
    """Names and defaults, in order."""
    return [
        name if p.default is p.empty else f"{name}={p.default!r}"
        for name, p in inspect.signature(function).parameters.items()
    ]


def methods(cls: type) -> list[str]:
    """What a class defines itself as a function, in order."""
    kinds = (classmethod, staticmethod)
    return [n for n, v in vars(cls).items() if inspect.isfunction(v) or isinstance(v, kinds)]


# twins


def test_the_stores_are_twins() -> None:
    """The same methods in the same order, with the same parameters and defaults."""
    # Blocking calls of an asyncio store, what LangGraph's base class has, and coalescing have none.
    without_twin = {name for name in vars(BaseStore) if not name.startswith("_")}
    without_twin |= {
        "_coalescer",
        "_write_limiter",
        "_write_slot",
        "_submit",
        "_batch",
        "_prepare_group",
        "_complete_part",
    }
    asyncio_names = [n for n in methods(AsyncAuroraStore) if n == "abatch" or n not in without_twin]
    names = [n for n in methods(AuroraStore) if n == "batch" or n not in without_twin]
    assert [blocking_spelling(name) for name in asyncio_names] == names
    for name in asyncio_names:
        twin = getattr(AuroraStore, blocking_spelling(name))
        if name != "_initialize":  # a private one, whose twin hands its settings on
            assert parameters(getattr(AsyncAuroraStore, name)) == parameters(twin), name


PAIRS = [
    (AuroraStore, AsyncAuroraStore),
    (Executor, AsyncExecutor),
    (LazyPool, AsyncLazyPool),
    (AuroraPool, AsyncAuroraPool),
    (AuroraConnection, AsyncAuroraConnection),
    (PooledConnection, AsyncPooledConnection),
    (executor, executor),
]
# Twins whose bodies differ, and why; all others are equal.
DIFFERENT = {
    "AsyncAuroraStore.__init__": "the parent refuses a pool with a pipeline; the asyncio one not",
    "AsyncAuroraStore.__aenter__": "the blocking store's conn is the pool that opens on first use",
    "AsyncAuroraStore.checkpointer": "likewise",
    "AsyncAuroraStore.abatch": "single operations are coalesced",
    "AsyncAuroraStore._initialize": "the parent's constructor wants a running loop",
    "AsyncAuroraStore.batch": "the asyncio store's runs on the loop of another thread",
    "AsyncAuroraStore.close": "closes what belongs to the running loop",
    "AsyncAuroraStore.connection": "remembers the loop; a pool of any kind may lose a connection",
    "AsyncAuroraStore.__del__": "a task holds its store weakly, and needs no join",
    "AsyncAuroraStore.start_ttl_sweeper": "a task in place of a thread",
    "AsyncAuroraStore.stop_ttl_sweeper": "a task in place of a thread",
    "AsyncExecutor.__init__": "keeps_connection: no wait of a thread is cancelled",
    "AsyncExecutor._perform": "a task may be cancelled",
    "AsyncExecutor._embed": "documents and queries at the same time",
    "AsyncExecutor._queries": "tasks in place of threads",
    "AsyncLazyPool.__init__": "a pool for each loop",
    "AsyncLazyPool.get": "a pool for each loop",
    "AsyncLazyPool.close": "a pool for each loop",
    "AsyncPooledConnection._attempt": "looking up and signing run in a thread",
    "AsyncAuroraPool.close": "psycopg_pool waits for each thread, but for all tasks at once",
}
RENAMED = {
    "AbstractAsyncContextManager": "AbstractContextManager",
    "asynccontextmanager": "contextmanager",
    "enter_async_context": "enter_context",
    "_is_open_async": "_is_open",
    "abatch": "batch",
    "acount": "count",
    "adelete_namespace": "delete_namespace",
    "aembed_documents": "embed_documents",
    "_arun": "_run",
    "_arows": "_rows",
    "_asend": "_send",
    "_asend_all": "_send_all",
}


class Blocking(ast.NodeTransformer):
    """Makes the blocking twin of asyncio code."""

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        twin = ast.FunctionDef(**{name: getattr(node, name) for name in node._fields})
        return self.visit_FunctionDef(twin)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        node.name = blocking_spelling(node.name)
        # The parents do not override the same methods.
        node.decorator_list = [d for d in node.decorator_list if ast.unparse(d) != "override"]
        return self.generic_visit(node)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AST:
        return self.generic_visit(ast.With(node.items, node.body))

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        return self.generic_visit(ast.For(node.target, node.iter, node.body, node.orelse))

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        node.is_async = 0
        return self.generic_visit(node)

    def visit_Await(self, node: ast.Await) -> ast.AST:
        return self.visit(node.value)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(blocking_spelling(node.id), node.ctx)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if ast.unparse(node) == "asyncio.sleep":
            return ast.parse("time.sleep", mode="eval").body
        node.attr = blocking_spelling(node.attr)
        return self.generic_visit(node)


def blocking_spelling(name: str) -> str:
    """The blocking twin's spelling of a name."""
    if name in ("__aenter__", "__aexit__"):
        return name.replace("__a", "__")
    return RENAMED.get(name, name.replace("Async", "", 1) if name.startswith("Async") else name)


def as_blocking(function: Callable[..., object]) -> str:
    """The source of a function's blocking twin, without docstrings and comments."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return ast.unparse(ast.fix_missing_locations(Blocking().visit(tree)))


def functions_of(owner: object) -> dict[str, Callable[..., object]]:
    """The functions that a class or a module defines itself."""
    own = {n: inspect.unwrap(getattr(v, "__func__", v)) for n, v in vars(owner).items()}
    name = getattr(owner, "__module__", getattr(owner, "__name__", ""))
    return {n: v for n, v in own.items() if inspect.isfunction(v) and v.__module__ == name}


def twins() -> Iterator[tuple[str, Callable[..., object], Callable[..., object]]]:
    """Each function with its asyncio twin, and the name of the latter."""
    for blocking, other in PAIRS:
        mine, theirs = functions_of(blocking), functions_of(other)
        for name, function in theirs.items():
            twin = mine.get(blocking_spelling(name))
            if twin is not None and twin is not function:
                yield f"{other.__name__}.{name}", twin, function


def test_twins_have_equal_bodies() -> None:
    """The blocking one is derived from the asyncio one; a line that one of them lacks shows."""
    unequal = {name for name, twin, other in twins() if as_blocking(other) != as_blocking(twin)}
    assert unequal == set(DIFFERENT)
    assert len(list(twins())) > 2 * len(DIFFERENT)


@pytest.mark.parametrize(
    ("asyncio_line", "blocking_line"),
    [
        ("await conn.rollback()", "conn.rollback()"),
        ("[await _arows(c) async for c in rows]", "[_rows(c) for c in rows]"),
        ("await asyncio.sleep(1)", "time.sleep(1)"),
        ("async with AsyncExitStack() as stack: pass", "with ExitStack() as stack: pass"),
    ],
)
def test_the_derivation_tells_twins_from_others(asyncio_line: str, blocking_line: str) -> None:
    """A line of the one is a line of the other, and no other line is."""
    derived = ast.unparse(ast.fix_missing_locations(Blocking().visit(ast.parse(asyncio_line))))
    assert derived == ast.unparse(ast.parse(blocking_line))
    assert derived != ast.unparse(ast.parse(f"{blocking_line}; conn.close()"))


@pytest.mark.parametrize(("blocking", "other"), PAIRS[1:-1])
def test_what_drives_them_are_twins(blocking: type, other: type) -> None:
    """The same names in the same order, with the same parameters."""
    names = [name for name in methods(blocking) if name == "__init__" or name[0] != "_"]
    assert [name for name in methods(other) if name == "__init__" or name[0] != "_"] == names
    for name in set(methods(blocking)) & set(methods(other)):
        theirs = [p for p in parameters(getattr(other, name)) if p != "keeps_connection"]
        assert theirs == parameters(getattr(blocking, name)), name


@pytest.mark.parametrize("cls", [AuroraStore, AsyncAuroraStore])
def test_every_public_method_has_a_docstring(cls: type) -> None:
    """Of its own, and so has each property."""
    own = {name: thing for base in (cls, BaseAuroraStore) for name, thing in vars(base).items()}
    assert [n for n, it in own.items() if n[0] != "_" and not getattr(it, "__doc__", "")] == []


# the parent


@pytest.mark.parametrize("parent", [PostgresStore, AsyncPostgresStore])
@pytest.mark.parametrize("name", PARENT)
def test_the_parents_methods_are_as_we_override_them(parent: type, name: str) -> None:
    """langgraph-checkpoint-postgres 3.2: an upgrade that changes them fails here first."""
    assert parameters(getattr(parent, name)) == PARENT[name]


@pytest.mark.parametrize(
    ("ours", "parent"), [(AuroraStore, PostgresStore), (AsyncAuroraStore, AsyncPostgresStore)]
)
def test_ours_can_be_called_as_the_parents(ours: type, parent: type) -> None:
    """Each public method takes what the parent's takes; what we add has a default."""
    names = [name for name in dir(parent) if name == "__init__" or not name.startswith("_")]
    for name in names:
        if not inspect.isfunction(method := getattr(parent, name)) and not inspect.ismethod(method):
            continue
        mine, theirs = parameters(getattr(ours, name)), parameters(method)
        assert mine[: len(theirs)] == theirs, name
        assert all("=" in added for added in mine[len(theirs) :]), name


def test_nothing_goes_through_the_parents_queue() -> None:
    """It runs one batch at a time; every method that feeds it is one of ours or of BaseStore."""
    public = [name for name in vars(AsyncBatchedBaseStore) if not name.startswith("_")]
    assert public
    for name in public:
        assert getattr(AsyncAuroraStore, name) is not getattr(AsyncBatchedBaseStore, name), name


def test_the_parents_asyncio_constructor_sets_what_ours_sets() -> None:
    """Ours does not call it, because it wants a running loop."""
    found = assigned(AsyncPostgresStore.__init__) | assigned(AsyncBatchedBaseStore.__init__)
    assert found == ASYNC_ATTRIBUTES
    assert assigned(AsyncAuroraStore._initialize) >= ASYNC_ATTRIBUTES - NOT_OURS


def assigned(function: Callable[..., object]) -> set[str]:
    """The attributes of ``self`` that a function assigns."""
    source = inspect.getsource(function)
    tree = ast.parse(source if not source[0].isspace() else f"class C:\n{source}")
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


# imports


@cache
def imports() -> dict[str, set[str]]:
    """The modules of the package that each of them imports, for types also, by dotted name."""
    paths = sorted(PACKAGE.rglob("*.py"))
    known = {dotted(path) for path in paths}
    return {dotted(path): set(_imported(ast.parse(path.read_text()), known)) for path in paths}


def dotted(path: Path) -> str:
    """The name of a module within the package; that of a folder is its own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def _imported(tree: ast.AST, known: set[str]) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix(f"{NAME}.")
                for alias in node.names
                if alias.name.startswith(f"{NAME}.")
            )
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            if node.module == NAME:
                yield from (alias.name for alias in node.names)
            elif (node.module or "").startswith(f"{NAME}."):
                module = (node.module or "").removeprefix(f"{NAME}.")
                inner = {f"{module}.{alias.name}" for alias in node.names} & known
                yield from inner or {module}
        else:
            yield from _imported(node, known)


def room(module: str) -> str:
    return module.partition(".")[0]


def test_imports_point_down() -> None:
    """From a room to one below it; two rooms of one line do not know each other."""
    level = {name: number for number, names in enumerate(ROOMS) for name in names}
    assert {room(module) for module in imports()} == set(level), "a room is not on the list"
    upward = [
        f"{module} -> {other}"
        for module, others in imports().items()
        for other in others
        if room(other) != room(module) and level[room(other)] >= level[room(module)]
    ]
    assert upward == []


def test_no_module_imports_itself_in_a_circle() -> None:
    """Within a room too, and for types too."""
    list(TopologicalSorter(imports()).static_order())


def test_what_is_pure_does_no_io() -> None:
    """sql/ plans and decides: neither pools nor AWS, clock, environment, threads or tasks."""
    forbidden = {"asyncio", "boto3", "os", "psycopg_pool", "socket", "threading", "time", "random"}
    for path in (PACKAGE / "sql").rglob("*.py"):
        found = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for name in _foreign(node)
        }
        assert found & forbidden == set(), path.name


def _foreign(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or ""


def loaded(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after running this."""
    code += "\nimport json, sys; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_stores_loads_nothing_that_the_parent_does_not() -> None:
    """No SDK, model client, numpy, pgvector or checkpointer: those are for who uses them."""
    ours = loaded(f"from {NAME} import AsyncAuroraStore, AuroraStore")
    parents = loaded("import langgraph.store.postgres.aio")
    roots = {module.partition(".")[0] for module in ours - parents}
    assert roots - set(sys.stdlib_module_names) == {NAME}
    heavy = {"boto3", "botocore", "openai", "langmem", "numpy", "pgvector", "cryptography"}
    assert heavy & ours == set()
    assert f"{NAME}.checkpoint" not in ours


# loggers

# Applications configure these by name, in files that no upgrade of this package edits.
LOGGERS = {
    "connect.patience",
    "connect.pool",
    "embeddings.exchange",
    "embeddings.service",
    "engine",
    "lost_writes",
    "sql.drift",
    "sql.schema",
    "sweeper",
}


def test_the_loggers_that_warn_keep_their_names() -> None:
    """Those of 0.1.0, whatever their modules are called."""
    found = {
        name
        for path in PACKAGE.rglob("*.py")
        if "logger." in (source := path.read_text())
        for name in re.findall(r'getLogger\("langgraph_aurora_store\.([a-z_.]+)"\)', source)
        or [dotted(path)]
    }
    assert found >= LOGGERS


# size


def functions() -> Iterator[tuple[str, int]]:
    """Every function of the package, and its lines without its docstring."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            first = node.body[0]
            doc = first if ast.get_docstring(node) is not None else None
            described = doc.end_lineno - doc.lineno + 1 if doc and doc.end_lineno else 0
            yield (
                f"{dotted(path)}.{node.name}",
                (node.end_lineno or 0) - node.lineno + 1 - described,
            )


def test_no_function_is_long() -> None:
    """One that passes this is asking to be two."""
    assert {name: lines for name, lines in functions() if lines > LONGEST_FUNCTION} == {}
