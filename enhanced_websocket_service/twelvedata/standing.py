"""Whether any key is left to poll or to stream with and, when none is, what to tell people. Pure.

Works on what the vendor last said to each key (``ledger.Account``). A key counts as refused until the
vendor accepts it, also when it is due to be tried again: nothing else has shown that it works.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from enhanced_websocket_service.market.calendar import iso_local

from .ledger import DAY, KEY, REFUSED_FOR_S, STREAM, Access, Account

_LONGEST_QUOTE: Final = 160


@dataclass(frozen=True, slots=True)
class Shortage:
    """No key may do something."""

    sentence: str  # how many keys, why, since when, what to do
    since: float  # when the last one was lost, unix seconds UTC
    lasting: bool  # the next day's credits alone will not end it


@dataclass(frozen=True, slots=True)
class _Loss:
    """Why one key may not."""

    kind: Literal["wrong", "plan", "spent"]
    since: float
    refusal: Access | None = None


def no_key_to_poll(accounts: Sequence[Account], topics: Sequence[str]) -> Shortage | None:
    """Why one of ``topics`` can be asked with no key; ``None``: each can with some key.

    Spacing and the limit of a minute are no loss: they end by themselves before anybody can look.

    :param accounts: as of now.
    """
    for topic in topics:
        losses = [_no_poll(account, topic) for account in accounts]
        if (found := _all_lost(losses)) is not None:
            what = f" for {topic}" if any(one.kind == "plan" for one in found) else ""
            remedies = [_told(found), _wrong_remedy(accounts), _spent_remedy(accounts, found)]
            if what:
                remedies.append("Use keys of a plan that includes it.")
            return _shortage(f"No usable API key{what}", found, "does not include it", remedies)
    return None


def no_key_to_stream(
    accounts: Sequence[Account], symbols: Sequence[str], *, polled: bool
) -> Shortage | None:
    """Why no key may stream; ``None``: one may, or none has been tried yet.

    :param symbols: as the vendor writes them.
    :param polled: prices come by REST where there is no stream.
    """
    found = _all_lost([_no_stream(account) for account in accounts])
    if found is None:
        return None
    remedy = "Use a key of a plan that streams (Pro, Venture or better)"
    remedy += (
        "; until then prices come by REST." if polled else ", or FEED_MODE=auto to poll prices."
    )
    what = f"No API key may stream {', '.join(symbols)}"
    remedies = [_told(found), _wrong_remedy(accounts), remedy]
    return _shortage(what, found, "does not stream it", remedies)


def has_streamed(accounts: Sequence[Account]) -> bool:
    """Whether the vendor has ever streamed with one of these keys."""
    return any((one := account.access.get(STREAM)) and one.granted for account in accounts)


def _no_poll(account: Account, topic: str) -> _Loss | None:
    return (
        _refused(account, KEY, "wrong")
        or _refused(account, topic, "plan")
        or (None if account.day.left else _Loss("spent", account.last_used))
    )


def _no_stream(account: Account) -> _Loss | None:
    return _refused(account, KEY, "wrong") or _refused(account, STREAM, "plan")


def _refused(account: Account, topic: str, kind: Literal["wrong", "plan"]) -> _Loss | None:
    refusal = account.refused(topic)
    if refusal is None:
        return None
    return _Loss(kind, refusal.at if refusal.since is None else refusal.since, refusal)


def _all_lost(losses: Sequence[_Loss | None]) -> list[_Loss] | None:
    found = [one for one in losses if one is not None]
    return found if len(found) == len(losses) else None


def _shortage(
    what: str, losses: Sequence[_Loss], plan_lacks: str, remedies: Sequence[str]
) -> Shortage:
    kinds = [one.kind for one in losses]
    said = {
        "wrong": f"{kinds.count('wrong')} refused by the vendor (401)",
        "plan": f"{kinds.count('plan')} whose plan {plan_lacks}",
        "spent": f"{kinds.count('spent')} out of credits for the day",
    }
    why = ", ".join(text for kind, text in said.items() if kind in kinds)
    since = max(one.since for one in losses)
    told = " ".join(one for one in remedies if one)
    return Shortage(
        f"{what}: {why}, since {iso_local(int(since))}. {told}", since, "spent" not in kinds
    )


def _told(losses: Sequence[_Loss]) -> str:
    """The vendor's last word, its first sentence."""
    refusals = [one.refusal for one in losses if one.refusal is not None]
    if not refusals:
        return ""
    words = max(refusals, key=lambda one: one.at).refusal.partition(". ")[0]
    return f"Last answer: {words[:_LONGEST_QUOTE].rstrip('.')}."


def _wrong_remedy(accounts: Sequence[Account]) -> str:
    tries = [one.at + REFUSED_FOR_S for account in accounts if (one := account.refused(KEY))]
    if not tries:
        return ""
    return (
        "Check the TWELVEDATA_API_KEY settings and the keys at the vendor's site. A refused key is "
        f"tried again once an hour, the next one at {iso_local(int(min(tries)))}."
    )


def _spent_remedy(accounts: Sequence[Account], losses: Sequence[_Loss]) -> str:
    if all(one.kind != "spent" for one in losses):
        return ""
    midnight = max(account.day.period for account in accounts) * DAY + DAY
    return f"New credits come at {iso_local(midnight)}; more keys or a larger plan bring more."
