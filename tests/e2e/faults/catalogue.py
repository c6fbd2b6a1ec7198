"""Every fault with what it must do, and the stages in which they happen."""

from .expectation import NONE, Bounds, Expectation, Stage
from .prices import HISTORY, POLLING, TICKS

AT_ONCE_REAL_S = 1.5
"""A connection that ends is known at once; this is what a busy machine needs."""
PING_REAL_S = 27.0
"""A ping every 15 s, and 10 s for its pong."""
STEADY_S = 35.0
"""After that long a connection counts as steady: the back-off begins anew with the next fault."""
FEW_POLLS = {"poll": Bounds(0, 6), "liveness": Bounds(0, 2)}
DIED = ("suspect?", "dead", "suspect?", "live")
# REST that lags agrees with the socket at first. A new socket of a mute vendor is given up, too.
GIVEN_UP = ("suspect, live*", "suspect", "dead", "suspect, dead*", "suspect?", "live")


# Of many polled prices one may equal the repeated one within rounding: quiet for a moment, and not back.
LIED = (
    *("suspect, live*", "suspect", "dead", "suspect, dead*"),
    *("suspect, live*", "suspect, dead*", "suspect?", "live"),
)


def _broken(name: str, what: str, sets: dict[str, object], also: str = "") -> Expectation:
    return Expectation(
        name,
        what,
        sets,
        also=also,
        verdicts=DIED,
        real_found_s=AT_ONCE_REAL_S,
        credits=FEW_POLLS,
        rest_prices=Bounds(0, 6),
        ticks="broken_off",
        live_bars=False,
        partial=True,
    )


def _refused(
    name: str, what: str, sets: dict[str, object], verdicts: tuple[str, ...] = DIED
) -> Expectation:
    """Forty seconds without a connection: REST at once, attempts at growing distances."""
    return Expectation(
        name,
        what,
        {**sets, "drop": True},
        lasts_s=40.0,
        verdicts=verdicts,
        real_found_s=AT_ONCE_REAL_S,
        reconnects=Bounds(3, 9),
        credits={"poll": Bounds(5, 100), "liveness": Bounds(0, 2)},
        rest_prices=Bounds(3, 100),
        ticks="broken_off",
        live_bars=False,
        partial=True,
    )


def _mute(
    name: str,
    what: str,
    sets: dict[str, object],
    *,
    lasts_s: float = 45.0,
    found_s: float = 30.0,
) -> Expectation:
    return Expectation(
        name,
        what,
        sets,
        lasts_s=lasts_s,
        verdicts=GIVEN_UP,
        found_s=found_s,
        reconnects=Bounds(1, 8),
        credits={"liveness": Bounds(2, 10), "poll": Bounds(1, 80)},
        rest_prices=Bounds(1, 80),
        live_bars=False,
        partial=True,
    )


def _lie(
    name: str,
    what: str,
    sets: dict[str, object],
    *,
    lasts_s: float,
    rejected: Bounds = NONE,
) -> Expectation:
    """The socket is dead within two minutes although prices come, and REST serves until they are new."""
    return Expectation(
        name,
        what,
        sets,
        lasts_s=lasts_s,
        verdicts=LIED,
        found_s=120.0,
        reconnects=Bounds(1, 12),
        credits={"liveness": Bounds(2, 10), "poll": Bounds(1, 400)},
        rest_prices=Bounds(1, 400),
        ticks="withheld",
        flags={},
        rejected=rejected,
        live_bars=False,
        partial=True,
    )


CONNECTIONS = Stage(
    "connections",
    title="The connection breaks",
    speed=20,
    starts="12:51:00",
    calm_s=STEADY_S,
    faults=(
        _broken("reset", "TCP RST", {"drop": True}),
        _broken("fin", "TCP FIN without a close frame", {"fin": True}),
        _broken("close_1000", "close frame 1000 (normal)", {"close": 1000}),
        _broken("close_1001", "close frame 1001 (going away)", {"close": 1001}),
        _broken("close_1008", "close frame 1008 (policy)", {"close": 1008}),
        _broken("close_1011", "close frame 1011 (internal error)", {"close": 1011}),
        _broken(
            "eviction",
            "another process connects with the same key, of which the vendor allows one connection",
            {"max_connections": 1},
            also="connections with the key in use",
        ),
        _broken("evict", "close frame 1008, as for a newer connection", {"evict": True}),
        Expectation(
            "garbage_frames",
            "200 frames that are no price: not JSON, arrays, unknown events",
            {"garbage_frames": 200},
            verdicts=(),
            found_s=None,
            reconnects=NONE,
            credits={"poll": NONE, "liveness": NONE},
            rest_prices=NONE,
            rejected=Bounds(1, 200),
        ),
        Expectation(
            "no_pong",
            "pings are not answered, though prices come",
            {"no_pong": True},
            lasts_s=60.0,
            verdicts=DIED,
            real_found_s=PING_REAL_S,
            credits=FEW_POLLS,
            rest_prices=Bounds(0, 6),
            ticks="broken_off",
            live_bars=False,
            partial=True,
        ),
    ),
)

REFUSALS = Stage(
    "refusals",
    title="The connection is refused",
    speed=20,
    starts="12:51:00",
    calm_s=STEADY_S,
    faults=(
        _refused("handshake_503", "the handshake is answered with 503", {"refuse_handshake": 503}),
        _refused("handshake_429", "the handshake is answered with 429", {"refuse_handshake": 429}),
        _refused("handshake_404", "the handshake is answered with 404", {"refuse_handshake": 404}),
        _refused("handshake_403", "the handshake is answered with 403", {"refuse_handshake": 403}),
        _refused("handshake_401", "the handshake is answered with 401", {"refuse_handshake": 401}),
        _refused(
            "fails",
            "the symbol is in `fails`",
            {"fails": ["USD/COP"]},
            verdicts=("suspect?", "dead", "suspect, dead*", "suspect?", "live"),
        ),
        Expectation(
            "hang_handshake",
            "the handshake is never answered; given up after 10 real seconds",
            {"hang_handshake": True, "drop": True},
            lasts_s=40.0,
            verdicts=DIED,
            real_found_s=AT_ONCE_REAL_S,
            back_s=300.0,
            reconnects=Bounds(1, 4),
            credits={"poll": Bounds(5, 220), "liveness": Bounds(0, 2)},
            rest_prices=Bounds(3, 220),
            ticks="broken_off",
            live_bars=False,
            partial=True,
        ),
    ),
)

SILENCE = Stage(
    "silence",
    title="The socket says nothing",
    about="The service has seen the same minutes of the day before",
    speed=12,
    starts="12:58:30",
    calm_s=75.0,  # what is usual today counts from the sixtieth price on
    taught=True,
    set_before_start=True,
    faults=(
        _mute(
            "mute_from_birth",
            "a socket opens, answers heartbeats and pings, and never brings a price",
            {"mute_from_birth": True},
        ),
        _mute(
            "mute",
            "prices stop in mid-session, on new sockets too; heartbeats and pings are answered",
            {"mute": True},
        ),
        _mute(
            "stall_lagging",
            "one socket stops bringing prices while REST lags 20 s and rounds",
            {"stall": True, "rest_lag_s": 20, "rest_decimals": 2},
            lasts_s=30.0,
            found_s=35.0,  # the first price that proves something can be asked after 21 s
        ),
        _mute(
            "half_open",
            "the peer is gone without a word: nothing comes, not even pongs",
            {"half_open": True},
            lasts_s=30.0,
        ),
    ),
)

LIES = Stage(
    "lies",
    title="The socket, or REST, brings what is long past",
    speed=12,
    starts="12:56:00",
    calm_s=75.0,
    faults=(
        Expectation(
            "rest_frozen",
            "REST repeats one price, while the stream moves",
            {"rest_frozen": True},
            lasts_s=40.0,
            verdicts=(),
            found_s=None,
            reconnects=NONE,
            credits={"poll": NONE, "liveness": NONE},
            rest_prices=NONE,
        ),
        _lie(
            "frozen",
            "prices go on with fresh stamps, but each is that of the beginning, on new sockets too",
            {"frozen": True},
            lasts_s=60.0,
        ),
        _lie(
            "scale",
            "the stream quotes in hundreds, on new sockets too",
            {"scale": {"factor": 0.01, "at": ["stream"]}},
            lasts_s=60.0,
            rejected=Bounds(1, 200),
        ),
        _lie(
            "late",
            "each tick comes three minutes after its stamp",
            {"delay_s": 180},
            lasts_s=300.0,
        ),
    ),
)

STAGES = (CONNECTIONS, REFUSALS, SILENCE, LIES, POLLING, TICKS, HISTORY)
ALL = tuple((stage, one) for stage in STAGES for one in stage.faults)
