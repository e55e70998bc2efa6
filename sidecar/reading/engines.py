"""The engines that send: who is there, what each said last, and what was seen of it at every tap point."""

from __future__ import annotations

from dataclasses import dataclass, field

from sidecar.types import TapPoint, TrafficReport


@dataclass(slots=True)
class Share:
    """One engine's tokens at one tap point. ``missing`` is the running maximum of expected - seen."""

    expected: int = 0
    seen: int = 0
    missing: int = 0

    def expect(self, tokens: int) -> int:
        """Book what a report speaks of; returns how many tokens are newly known to be lost."""
        self.expected += tokens
        lost = max(0, self.expected - self.seen - self.missing)
        self.missing += lost
        return lost


@dataclass(slots=True)
class Engine:
    """One engine: its last report, and whether it is still there.

    The shares belong to one life of the engine: rows that were seen and never reported (it crashed in between) must not
    stand against tokens that its next life loses.
    """

    registered_s: float
    last: TrafficReport
    streams: int = 0
    lost_s: float | None = None
    reported_s: float | None = None
    active_s: float | None = None
    shares: dict[TapPoint, Share] = field(default_factory=dict)

    def goes_on(self, report: TrafficReport) -> bool:
        """Whether this is the same life: its count did not fall, and it speaks of at least the rows that we have seen."""
        ahead = max((share.seen + share.missing - share.expected for share in self.shares.values()), default=0)
        return report.tokens_computed - self.last.tokens_computed >= max(0, ahead)

    def share(self, where: TapPoint) -> Share:
        return self.shares.setdefault(where, Share())

    @property
    def last_sign_s(self) -> float:
        """When it was last heard of, by whatever way: one that never opens a stream must not keep its place for ever."""
        signs = (self.registered_s, self.lost_s, self.reported_s, self.active_s)
        return max(sign for sign in signs if sign is not None)

    def serves(self, now_s: float, within_s: float) -> bool:
        """Whether rows of it may still come: a stream is open, or it was heard of just now and did not vanish."""
        return self.streams > 0 or (self.lost_s is None and now_s - self.last_sign_s <= within_s)

    def trouble(self, now_s: float, report_s: float) -> str:
        """Why nothing that it sends proves anything; empty if it is well."""
        if self.lost_s is not None:
            return "engine_lost"
        silent = now_s - (self.registered_s if self.reported_s is None else self.reported_s) > report_s
        never_came = self.streams == 0 and self.active_s is None
        sends = self.streams > 0 or (self.active_s is not None and now_s - self.active_s < report_s)
        return "no_report" if silent and (sends or never_came) else ""
