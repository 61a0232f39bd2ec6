"""The command line: one file a command."""

from ganbench.cli.main import main

__all__ = ["main"]
