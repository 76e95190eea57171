"""The command-line tool ``langgraph-aurora-store``; needs the extra ``cli``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click

MISSING = "langgraph-aurora-store needs click; pip install 'langgraph-aurora-store[cli]'"


def main() -> None:
    """Run the tool; the console script's entry."""
    try:
        import click  # noqa: F401 - only to say which extra is missing
    except ImportError:
        sys.exit(MISSING)
    command_line()()


def command_line() -> click.Group:
    """All commands.

    Raises:
        ImportError: click is not installed.
    """
    import click

    from langgraph_aurora_store.version import __version__

    @click.group()
    @click.version_option(__version__, prog_name="langgraph-aurora-store")
    def tool() -> None:
        """Long-term memory for LangGraph agents on Amazon Aurora PostgreSQL."""

    @tool.command()
    @click.option("--identifier", default="local-aurora", show_default=True)
    @click.option("--user", default="langmem", show_default=True, help="Role granted rds_iam.")
    @click.option("--database", default="memory", show_default=True)
    @click.option("--region", default="us-east-1", show_default=True)
    @click.option("--port", default=0, show_default=True, help="On 127.0.0.1; 0 takes any.")
    @click.option(
        "--version",
        type=click.Choice(["16", "18"]),
        default="16",
        show_default=True,
        help="PostgreSQL's.",
    )
    def local(version: str, **options: Any) -> None:
        """Run a local Aurora until interrupted and print what to export."""
        from langgraph_aurora_store.errors import AuroraStoreError

        try:
            from langgraph_aurora_store.local.shell import serve

            serve(version=16 if version == "16" else 18, **options)
        except AuroraStoreError as exc:
            raise click.ClickException(str(exc)) from exc

    return tool
