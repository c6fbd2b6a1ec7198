"""The outcome of a storm: what was counted where, and every broken invariant. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .journal_account import Faults


@dataclass
class Ledger:
    """``broken`` is empty when every invariant held."""

    seed: int
    seconds: float
    ticks_per_second: float
    schedule: Sequence[Mapping[str, Any]] = ()
    befallen: dict[str, int] = field(default_factory=dict)  # actions by target and kind
    moments: list[tuple[str, float, float]] = field(default_factory=list)
    """What, from when, until when; real unix seconds."""
    service_starts: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    journal: dict[str, Any] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    published: int = 0
    clients: dict[str, dict[str, Any]] = field(default_factory=dict)
    bars: dict[str, int] = field(default_factory=dict)
    redis: dict[str, int] = field(default_factory=dict)
    health: dict[str, Any] = field(default_factory=dict)
    """How often it was looked at and healthy; by hop, the longest time healthy without work, real seconds."""
    real_seconds: float = 0.0
    broken: list[str] = field(default_factory=list)
    broken_in_all: int = 0

    @property
    def holds(self) -> bool:
        return not self.broken

    def settle(self, faults: Faults) -> None:
        """Take over what the judges found."""
        self.broken = faults.shown()
        self.broken_in_all = len(faults)

    def lines(self) -> list[str]:
        """For people: one line for each place, then what is broken."""
        sent, journal, stored = self.sent, self.journal, self.stored
        told = [
            f"seed {self.seed}: {self.seconds:g} s, {self.service_starts} starts of the service; "
            + ", ".join(f"{name} {count}" for name, count in sorted(self.befallen.items())),
            f"sent       {sent.get('sent', 0)} (journaled from the stream {sent.get('journaled', 0)}, "
            f"not journaled {sent.get('not_journaled', 0)} in {sent.get('gaps', 0)} gaps)",
            f"accepted   {journal.get('ticks', 0)} journaled in {journal.get('epochs', 0)} epochs; "
            f"by source {journal.get('sources', {})}, flags {journal.get('flags', {})}",
            f"rejected   {sum(self.rejected.values())} {self.rejected or ''}".rstrip(),
            f"stored     {stored.get('ticks', 0)} ticks, {stored.get('rejected', 0)} rejected, "
            f"{stored.get('bar_revisions', 0)} bar revisions",
            f"published  {self.published}",
        ]
        for name, client in self.clients.items():
            told.append(
                f"received   {name} ({client['mode']}): {client['received']} ticks, "
                f"{sum(client['skipped'].values())} told as skipped, {client['bars']} bars, "
                f"{client['connections']} connections"
            )
        told.append(
            f"bars       {self.bars.get('live', 0)} live slots equal, "
            f"{self.bars.get('reconciled', 0)} of {self.bars.get('expected', 0)} reconciled slots equal"
        )
        told.append(f"redis      {self.redis}")
        health = self.health
        idle = health.get("longest_healthy_without_work_s", {})
        told.append(
            f"health     {health.get('looks', 0)} looks, {health.get('healthy', 0)} healthy; longest "
            "without work meanwhile: "
            + ", ".join(f"{hop} {seconds:g} s" for hop, seconds in idle.items())
        )
        told.append(f"took       {self.real_seconds:.0f} s")
        if self.holds:
            told.append("Every invariant held.")
        else:
            told.append(f"BROKEN: {self.broken_in_all} times. Replay with --seed {self.seed}.")
            told += [f"  {one}" for one in self.broken]
        return told
