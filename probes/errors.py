"""What stands in the way of a lab command: the text names the row or the file, for whoever typed the command."""

from __future__ import annotations


class LabError(Exception):
    """The command cannot go on with what it was given. What was finished before stays on disk."""
