"""Results that are on disk as soon as they are there, so that work which was ended goes on from where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probes.errors import LabError


class Journal:
    """Results by key, as JSON, a line each in the file ``path``; of use only to work with the same ``settings``.

    Nothing is read before `load`, and nothing is written before the first `add`. One process writes it.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self.path = path
        self._settings = settings
        self._done: dict[str, Any] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._done

    def __getitem__(self, key: str) -> Any:
        return self._done[key]

    def __len__(self) -> int:
        return len(self._done)

    def load(self) -> bool:
        """Take up what earlier work left; False if that was work with other settings, or none of ours: it is not used.

        A line that a kill cut short costs that result alone. Raises LabError if the file cannot be read or written.
        """
        lines = self._lines()
        told = [found for line in lines if (found := _parsed(line)) is not None]
        ours = bool(told) and told[0].get("settings") == self._settings
        self._done = {one["key"]: one["result"] for one in told[1:] if {"key", "result"} <= one.keys()} if ours else {}
        if ours:
            with self._writing():
                self._rewrite()
        return ours or not lines

    def add(self, key: str, result: Any) -> None:
        """Once it returns, a kill of this process loses it no more. Raises LabError if it cannot be written."""
        with self._writing():
            if not self._done:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._rewrite()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(key, result))
        self._done[key] = result

    def forget(self) -> None:
        """All is done: the file is of no more use."""
        with self._writing():
            self.path.unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LabError(f"{self.path} cannot be written: {error.strerror}") from None

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise LabError(f"{self.path} cannot be read: {error}") from None

    def _rewrite(self) -> None:
        """Without the half line that may be at the end."""
        with self.path.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"settings": self._settings}) + "\n")
            file.writelines(_line(key, result) for key, result in self._done.items())


def _line(key: str, result: Any) -> str:
    return json.dumps({"key": key, "result": result}) + "\n"


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None
