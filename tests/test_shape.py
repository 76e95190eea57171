"""What holds the code in shape: equal twins, imports that point down, a parent as we know it."""

import ast
import inspect
import json
import re
import subprocess
import sys
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
from langgraph_aurora_store.connect.lazy_pool import AsyncLazyPool, LazyPool
from langgraph_aurora_store.connect.pool import AsyncAuroraPool, AuroraPool
from langgraph_aurora_store.execution.executor import AsyncExecutor, Executor

PACKAGE = Path(langgraph_aurora_store.__file__).parent
NAME = PACKAGE.name
LONGEST_FUNCTION = 50

# A room may import from the rooms of the lines above its own. A module at the top of the package
# is a room of its own, as is each of the folders.
ROOMS = [
    ["errors", "lazy_imports", "version"],
    ["validation"],
    ["config", "fork_safety"],
    ["aws"],
    ["connect", "embeddings", "local", "sql"],
    ["execution"],
    ["base"],
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


def blocking_name(name: str) -> str:
    """The blocking twin's name of an asyncio store's method."""
    if name in ("__aenter__", "__aexit__"):
        return name.replace("__a", "__")
    return name[1:] if name in ("abatch", "acount", "adelete_namespace") else name


def test_the_stores_are_twins() -> None:
    """The same methods in the same order, with the same parameters and defaults."""
    # Blocking calls of an asyncio store, what LangGraph's base class has, and the ticks have none.
    without_twin = {name for name in vars(BaseStore) if not name.startswith("_")}
    without_twin |= {
        "_coalescer",
        "_write_limiter",
        "_write_slot",
        "_submit",
        "_batch",
        "_prepare",
        "_finish",
    }
    asyncio_names = [n for n in methods(AsyncAuroraStore) if n == "abatch" or n not in without_twin]
    names = [n for n in methods(AuroraStore) if n == "batch" or n not in without_twin]
    assert [blocking_name(name) for name in asyncio_names] == names
    for name in asyncio_names:
        twin = getattr(AuroraStore, blocking_name(name))
        if name != "_initialize":  # a private one, whose twin hands its settings on
            assert parameters(getattr(AsyncAuroraStore, name)) == parameters(twin), name


@pytest.mark.parametrize(
    ("blocking", "other"),
    [(Executor, AsyncExecutor), (LazyPool, AsyncLazyPool), (AuroraPool, AsyncAuroraPool)],
)
def test_what_drives_them_are_twins(blocking: type, other: type) -> None:
    """The same holds for what does the I/O."""
    names = [name for name in methods(blocking) if name == "__init__" or name[0] != "_"]
    assert [name for name in methods(other) if name == "__init__" or name[0] != "_"] == names
    for name in set(methods(blocking)) & set(methods(other)):
        # No wait of a thread is cancelled, so that no connection is lost by it.
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
    """The modules of the package that each of them imports when it is run, by dotted name."""
    paths = sorted(PACKAGE.rglob("*.py"))
    known = {dotted(path) for path in paths}
    return {dotted(path): set(_imported(ast.parse(path.read_text()), known)) for path in paths}


def dotted(path: Path) -> str:
    """The name of a module within the package; that of a folder is its own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def _imported(tree: ast.AST, known: set[str]) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue  # for types, and not at run time
        if isinstance(node, ast.ImportFrom):
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
    """Within a room too."""
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
    """No SDK, model client, numpy or pgvector: those are for who uses them."""
    ours = loaded(f"from {NAME} import AsyncAuroraStore, AuroraStore")
    parents = loaded("import langgraph.store.postgres.aio")
    roots = {module.partition(".")[0] for module in ours - parents}
    assert roots - set(sys.stdlib_module_names) == {NAME}
    heavy = {"boto3", "botocore", "openai", "langmem", "numpy", "pgvector", "cryptography"}
    assert heavy & ours == set()


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
