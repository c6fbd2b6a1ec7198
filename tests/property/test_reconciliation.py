"""Whatever the vendor lacks, revises and cuts short: every slot ends final or given up, for few calls."""

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.reconciliation import (
    CONFIRM_AFTER_S,
    FINAL_AGE_S,
    GIVE_UP_S,
    Credits,
    answered,
    judge,
    plan,
    to_publish,
    wish,
)
from enhanced_websocket_service.market.slot import SETTLE_S, SlotEvidence, SourceBar, VendorGap
from enhanced_websocket_service.market.source import Provider

VENDOR = Provider("twelvedata")
OPEN = 1_750_856_400
LABELS = [OPEN + 300 * n for n in range(60)]
OVER = LABELS[-1] + 300 + SETTLE_S
STEP_S = 60


class World:
    """The vendor, what is stored, and what clients were told; decided by a seed."""

    def __init__(self, seed: int, cap: int, absent: float, live: float) -> None:
        self.rng = random.Random(seed)
        self.cap = cap
        self.prices = {label: 4000.0 + self.rng.random() for label in LABELS}
        self.lacking = {label for label in LABELS if self.rng.random() < absent}
        self.revises_at = {
            label: label + 300 + self.rng.uniform(0, 600)
            for label in LABELS
            if self.rng.random() < 0.1
        }
        self.stored: dict[int, SlotEvidence] = {}
        self.live = {label for label in LABELS if self.rng.random() < live}
        self.told: dict[int, list[Bar]] = {label: [] for label in LABELS}
        self.answers: dict[int, list[tuple[float, float]]] = {label: [] for label in LABELS}
        self.calls = 0

    def price(self, label: int, now: float) -> float:
        return self.prices[label] + (now >= self.revises_at.get(label, float("inf")))

    def settle(self, now: float) -> list[SlotEvidence]:
        for label in LABELS:
            if label not in self.stored and label + 300 + SETTLE_S <= now:
                bars = (
                    (SourceBar("twelvedata_websocket", 1, 1, 1, 1, 0, 0, "closed", published=True),)
                    if label in self.live
                    else ()
                )
                self.stored[label] = SlotEvidence(label, bars, highest_revision=len(bars) - 1)
        return [self.stored[label] for label in LABELS if label in self.stored]

    def ask(self, start: int, end: int, now: float) -> list[Bar]:
        self.calls += 1
        found = []
        for label in LABELS:
            if start <= label <= end and label not in self.lacking and label + 300 <= now:
                price = self.price(label, now)
                self.answers[label].append((now, price))
                found.append(Bar("USDCOP", 300, label, *(price,) * 4, 0, "twelvedata", 0, "closed"))
        return found[-self.cap :]

    def take(self, evidence: SlotEvidence, bar: Bar | None, now: float) -> None:
        finding = judge(evidence, bar, now, VENDOR)
        if bar is None:
            asked = 0 if evidence.gap is None else evidence.gap.asked
            self.stored[evidence.slot] = replace(evidence, gap=VendorGap(asked + 1, now))
            return
        version = to_publish(evidence, bar, finding, today=True)
        if version is None:
            return
        self.told[evidence.slot].append(version)
        row = SourceBar(
            *(version.source, version.open, version.high, version.low, version.close, 0),
            version.revision,
            version.status,
            published=True,
            seen_at=now,
        )
        others = tuple(one for one in evidence.bars if one.source != version.source)
        self.stored[evidence.slot] = replace(
            evidence, bars=(row, *others), highest_revision=version.revision
        )


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    cap=st.sampled_from([7, 25, 5000]),
    absent=st.sampled_from([0.0, 0.05, 0.5]),
    live=st.sampled_from([0.0, 0.9, 1.0]),
)
def test_every_slot_ends_final_or_given_up(seed: int, cap: int, absent: float, live: float) -> None:
    world = World(seed, cap, absent, live)
    now, last_call = float(OPEN), None
    while now < OVER + GIVE_UP_S + 7 * 3600:
        found = world.settle(now)
        wishes = [w for one in found if (w := wish(one, OVER, now, VENDOR)) is not None]
        known = [one.slot for one in found if one.first("vendor", VENDOR) is not None]
        ask = plan(wishes, now, credits=Credits(700, 80), last_call_at=last_call, anchors=known)
        if ask is not None:
            last_call = now
            bars = world.ask(ask.start, ask.end, now)
            by_slot = {bar.open_time: bar for bar in bars}
            for slot in answered(ask, bars):
                world.take(world.stored[slot], by_slot.get(slot), now)
        # Closer together while something happens; the real loop sleeps until the next due time.
        now += STEP_S if now < OVER + 1800 or wishes else 3600
    for label in LABELS:
        versions = world.told[label]
        revisions = [one.revision for one in versions]
        assert revisions == sorted(set(revisions))
        if label in world.live and versions:
            assert revisions[0] == 1
        if label in world.lacking:
            assert versions == []
            gap = world.stored[label].gap
            assert gap is not None
            assert gap.last_asked_at >= label + 300 + GIVE_UP_S
            continue
        assert [one.status for one in versions].count("reconciled") == 1
        final = versions[-1]
        assert final.status == "reconciled"
        assert [at for at, price in world.answers[label] if price == final.close][-1] >= (
            label + 300 + FINAL_AGE_S
        )
        agreeing = [at for at, price in world.answers[label] if price == final.close]
        assert agreeing[-1] - agreeing[0] >= CONFIRM_AFTER_S
    if cap == 5000 and not absent and live == 1.0:
        assert world.calls <= 9


@settings(max_examples=60)
@given(
    delays=st.lists(st.integers(18, 600), min_size=1, max_size=8),
    handed_back=st.integers(0, 3000),
    revises=st.booleans(),
)
def test_what_a_feed_lost_is_there_soon_after_the_vendor_has_it(
    delays: list[int], handed_back: int, revises: bool
) -> None:
    """Candles appear 18 s to 10 minutes after their end, and may be revised once."""
    shown = {LABELS[n]: LABELS[n] + 300 + delay for n, delay in enumerate(delays)}
    stored = {label: SlotEvidence(label) for label in shown}
    first_told: dict[int, float] = {}
    prices: dict[int, float] = {}
    last_call: float | None = None
    calls = 0
    now = float(OPEN + handed_back)
    end = now + 4 * 3600
    while now < end:
        # A minute after its end no late tick can change a bar any more.
        found = [one for label, one in stored.items() if label + 360 <= now]
        wishes = [w for one in found if (w := wish(one, OVER, now, VENDOR, lost=True)) is not None]
        ask = plan(wishes, now, credits=Credits(700, 80), last_call_at=last_call)
        if ask is not None:
            last_call, calls = now, calls + 1
            bars = []
            for label in (one for one in LABELS if ask.start <= one <= ask.end):
                if label in shown and now >= shown[label]:
                    price = 4000.0 + (revises and now >= shown[label] + 100)
                    bars.append(
                        Bar("USDCOP", 300, label, *(price,) * 4, 0, "twelvedata", 0, "closed")
                    )
            by_slot = {bar.open_time: bar for bar in bars}
            for slot in answered(ask, bars):
                bar = by_slot.get(slot)
                if bar is None:
                    if now >= slot + 300 + SETTLE_S:
                        gap = stored[slot].gap
                        asked = 0 if gap is None else gap.asked
                        stored[slot] = replace(stored[slot], gap=VendorGap(asked + 1, now))
                    continue
                version = to_publish(
                    stored[slot], bar, judge(stored[slot], bar, now, VENDOR), today=True
                )
                if version is not None:
                    first_told.setdefault(slot, now)
                    prices[slot] = version.close
                    row = SourceBar(
                        *("twelvedata", *(version.close,) * 4, 0, version.revision, version.status),
                        published=True,
                        seen_at=now,
                    )
                    stored[slot] = replace(
                        stored[slot], bars=(row,), highest_revision=version.revision
                    )
        now += 5
    for label, since in shown.items():
        possible = max(float(since), label + 360.0, float(OPEN + handed_back))
        # Within the usual three minutes, a minute; later, not longer than it was away already.
        patience = 65.0 + max(0.0, possible - (label + 300 + SETTLE_S))
        assert first_told[label] <= possible + patience
        assert stored[label].bars[0].status == "reconciled"
        assert prices[label] == 4000.0 + revises
    assert calls <= 8 + 6 * len(delays)
