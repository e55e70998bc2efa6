"""HTML by construction: text is escaped where it enters, and only what was built here is taken as markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TypeAlias

_VOID = frozenset({"meta", "br"})


class Html(str):
    """Markup that was built here, or drawn by our own plots; never a text from outside."""

    __slots__ = ()


Child: TypeAlias = str | Html | None


def tag(element: str, /, *children: Child, **attributes: str) -> Html:
    """One element. A child that is plain text is escaped, None is left out; ``class_`` and ``http_equiv`` lose their underscore.

    >>> tag("p", "1 < 2 ", tag("b", "& more"), class_="note")
    '<p class="note">1 &lt; 2 <b>&amp; more</b></p>'
    """
    written = "".join(f' {_attribute(key)}="{escape(value)}"' for key, value in attributes.items())
    if element in _VOID:
        return Html(f"<{element}{written}>")
    return Html(f"<{element}{written}>{join(children)}</{element}>")


def join(children: Iterable[Child]) -> Html:
    """Put pieces one after the other, escaping those that are plain text."""
    return Html("".join(one if isinstance(one, Html) else escape(one) for one in children if one is not None))


def prose(text: str) -> Html:
    """A sentence of ours: what stands between backticks is shown as code.

    >>> prose("run `probes train`")
    'run <code>probes train</code>'
    """
    return join(tag("code", part) if place % 2 else part for place, part in enumerate(text.split("`")))


def table(head: Sequence[str], rows: Iterable[Sequence[Child]], caption: str = "") -> Html:
    """A table that scrolls by itself where the page is too narrow. The first cell of a row is its heading."""
    top = tag("thead", tag("tr", *(tag("th", one, scope="col") for one in head)))
    body = tag("tbody", *(_row(cells) for cells in rows))
    return tag("div", tag("table", tag("caption", caption) if caption else None, top, body), class_="wide")


def _row(cells: Sequence[Child]) -> Html:
    first, *others = cells
    return tag("tr", tag("th", first, scope="row"), *(tag("td", one) for one in others))


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")
