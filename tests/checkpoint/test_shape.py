"""The savers as twins of each other and as subclasses of the parents as we know them."""

import inspect
import re

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.postgres.base import MIGRATIONS, BasePostgresSaver

from langgraph_aurora_store import AsyncAuroraSaver, AuroraSaver
from langgraph_aurora_store.checkpoint.base import BaseAuroraSaver
from tests.test_shape import as_blocking, assigned, functions_of, methods, parameters

PARENTS = [(AuroraSaver, PostgresSaver), (AsyncAuroraSaver, AsyncPostgresSaver)]
# Twins whose bodies differ, and why; all others are equal.
DIFFERENT = {
    "_initialize": "the parent's constructor wants a running loop",
    "aput": "large values are serialised off the loop",
    "aput_writes": "likewise",
    "connection": "remembers the loop",
    "start_ttl_sweeper": "a task in place of a thread",
    "stop_ttl_sweeper": "a task in place of a thread",
}
RENAMED = (
    "get_tuple|list|put|put_writes|delete_thread|delete_for_runs|copy_thread|prune"
    "|get_delta_channel_history|delete_idle_threads|borrowed"
)


def blocking_names(text: str) -> str:
    """The text with the names of asyncio methods as those of their twins."""
    return re.sub(rf"\ba({RENAMED})\b", r"\1", text).replace("__a", "__")


def of_the_loop() -> list[str]:
    """The asyncio class's methods up to its blocking calls and what it decodes with."""
    names = methods(AsyncAuroraSaver)
    return names[: names.index("_load_checkpoint_tuple")]


def test_the_savers_are_twins() -> None:
    """The same methods in the same order, with the same parameters, and mostly the same bodies."""
    names = of_the_loop()
    assert [blocking_names(name) for name in names] == methods(AuroraSaver)
    mine, theirs = functions_of(AuroraSaver), functions_of(AsyncAuroraSaver)
    for name in names:
        assert parameters(theirs[name]) == parameters(mine[blocking_names(name)]), name
    unequal = {
        name
        for name in names
        if blocking_names(as_blocking(theirs[name])) != as_blocking(mine[blocking_names(name)])
    }
    assert unequal == set(DIFFERENT)


@pytest.mark.parametrize(("ours", "parent"), PARENTS)
def test_ours_can_be_called_as_the_parents(ours: type, parent: type) -> None:
    """What the parent's methods take by place or name, ours take, with the parent's defaults."""
    for name in dir(parent):
        method = getattr(parent, name)
        if (name.startswith("_") and name != "__init__") or not callable(method):
            continue
        if not (inspect.isfunction(method) or inspect.ismethod(method)):
            continue
        mine = dict(inspect.signature(getattr(ours, name)).parameters)
        for parameter, theirs in inspect.signature(method).parameters.items():
            assert mine[parameter].kind == theirs.kind, (name, parameter)
            if theirs.default is not theirs.empty:
                assert mine[parameter].default == theirs.default, (name, parameter)


@pytest.mark.parametrize("cls", [AuroraSaver, AsyncAuroraSaver])
def test_every_public_method_has_a_docstring(cls: type) -> None:
    own = {name: thing for base in (cls, BaseAuroraSaver) for name, thing in vars(base).items()}
    assert [n for n, it in own.items() if n[0] != "_" and not getattr(it, "__doc__", "")] == []


def test_what_is_inherited_is_known() -> None:
    """langgraph-checkpoint-postgres 3.2: a method that it adds has to be guarded like the rest."""
    bases = {**vars(BaseCheckpointSaver), **vars(BasePostgresSaver), **vars(AsyncPostgresSaver)}
    public = {name for name, it in bases.items() if name[0] != "_" and inspect.isfunction(it)}
    # These two call get_tuple and aget_tuple.
    assert public - set(methods(AsyncAuroraSaver)) == {
        "get",
        "aget",
        "get_next_version",
        "with_allowlist",
    }


def test_the_parents_asyncio_constructor_sets_what_ours_sets() -> None:
    found = assigned(AsyncPostgresSaver.__init__)
    assert found == {"conn", "lock", "loop", "pipe", "supports_pipeline"}
    assert assigned(AsyncAuroraSaver._initialize) >= found


def test_the_parents_tables_are_as_ours_complete_them() -> None:
    """Ten migrations: one more is to be looked at."""
    assert len(MIGRATIONS) == 10
