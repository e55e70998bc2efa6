"""Where settings come from: one YAML file, the environment, flags. What is wrong is named, and the reading goes on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ENV_PREFIX = "STETHOSCOPE_"
_OTHER_PARTS = frozenset(
    {"STETHOSCOPE_ADDRESS", "STETHOSCOPE_CACHE", "STETHOSCOPE_ENGINE_ID", "STETHOSCOPE_CANARY_TOKEN"}
)
_TAP_PREFIX = "STETHOSCOPE_TAP"
# A Kubernetes Service whose name begins like ours puts variables such as these into every pod beside it.
_KUBERNETES_NAME = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_|$)|_PORT_\d+_(TCP|UDP|SCTP)(_|$)")
_KUBERNETES_VALUE = re.compile(r"(tcp|udp|sctp)://")
_LIKENESS = 0.8  # METRIC_PORT is .92 like METRICS__PORT; SERVICE_NAME is .57 like its nearest setting


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping with the same key twice: nobody can tell which one was meant."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(problem="the same key twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, problems: list[str]) -> dict[str, Any]:
    """The file's mapping; empty, with the problem added, if it cannot be read."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        problems.append(f"{path}: not sound YAML{line}: {error.problem}")
        return {}
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        problems.append(f"{path}: cannot be read: {type(error).__name__}")
        return {}
    if tree is not None and not isinstance(tree, dict):
        problems.append(f"{path}: want a mapping at the top")
        return {}
    return tree or {}


def scalar(text: str) -> Any:
    """The value of a variable or flag: YAML if it can be read as such, otherwise the text itself.

    >>> scalar("9500"), scalar("true"), scalar("[::1]:9500"), scalar("")
    (9500, True, '[::1]:9500', '')
    """
    try:
        return yaml.safe_load(text) if text else text
    except (yaml.YAMLError, RecursionError):
        return text


def env_settings(
    env: Mapping[str, str], known: Mapping[str, tuple[str, ...]], problems: list[str]
) -> Iterator[tuple[list[str], Any]]:
    """Every variable with a double underscore, as (keys, value). Adds a problem for each that was meant to be one.

    known: the settings of every section. Variables that belong to other parts, or that Kubernetes makes, are passed over.
    """
    right = {f"{section}__{key}".upper(): key for section, keys in known.items() for key in keys}
    for name in sorted(env):
        rest = name.removeprefix(ENV_PREFIX)
        if rest == name or name in _OTHER_PARTS or name.startswith(_TAP_PREFIX):
            continue
        keys = rest.lower().split("__")
        if len(keys) > 1 and all(keys) and not rest.startswith("_"):
            yield keys, scalar(env[name])
        elif not _of_kubernetes(name, env[name]):
            near = difflib.get_close_matches(rest.strip("_").upper(), right, n=1, cutoff=_LIKENESS)
            if near or rest.lower().split("_")[0] in known or "__" in rest:
                problems.append(f"{name}: no such setting" + (f"; did you mean {ENV_PREFIX}{near[0]}?" if near else ""))


def _of_kubernetes(name: str, value: str) -> bool:
    return _KUBERNETES_NAME.search(name) is not None or _KUBERNETES_VALUE.match(value) is not None


def put(tree: dict[str, Any], keys: list[str], value: Any, problems: list[str]) -> None:
    """Set one setting in the tree of all; a value that stands where a section is needed is a problem."""
    for key in keys[:-1]:
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            problems.append(f"{'.'.join(keys)}: {key} is not a section")
            return
        tree = child
    tree[keys[-1]] = value


def prune(tree: dict[str, Any], where: tuple[Any, ...]) -> None:
    """Take one entry out of the tree, or what stands in its place.

    >>> tree = {"a": {"b": 1, "c": 2}}; prune(tree, ("a", "b", "deeper")); tree
    {'a': {'c': 2}}
    """
    for key in where[:-1]:
        child = tree.get(key)
        if not isinstance(child, dict):
            tree.pop(key, None)
            return
        tree = child
    tree.pop(where[-1], None)
