"""Every fault with what it must do, and the stages in which they happen."""

from .expectation import NONE, Bounds, Expectation, Stage

# A connection that ends is known at once; the bound is what a busy machine needs.
AT_ONCE_REAL_S = 1.5
FEW_POLLS = {"poll": Bounds(0, 6), "liveness": Bounds(0, 2)}


def _broken(name: str, what: str, sets: dict[str, object]) -> Expectation:
    return Expectation(
        name,
        what,
        sets,
        verdicts=("suspect?", "dead", "suspect?", "live"),
        real_found_s=AT_ONCE_REAL_S,
        credits=FEW_POLLS,
        rest_prices=Bounds(0, 6),
        ticks="broken_off",
        live_bars=False,
    )


def _refused(name: str, what: str, sets: dict[str, object]) -> Expectation:
    """Forty seconds without a connection: REST at once, attempts at growing distances."""
    return Expectation(
        name,
        what,
        {**sets, "drop": True},
        lasts_s=40.0,
        verdicts=("suspect?", "dead", "suspect?", "live"),
        real_found_s=AT_ONCE_REAL_S,
        reconnects=Bounds(3, 9),
        credits={"poll": Bounds(5, 100), "liveness": Bounds(0, 2)},
        rest_prices=Bounds(3, 100),
        ticks="broken_off",
        live_bars=False,
    )


CONNECTIONS = Stage(
    "connections",
    title="The connection breaks",
    speed=20,
    starts="13:00:00",
    faults=(
        _broken("reset", "TCP RST", {"drop": True}),
        _broken("close_1000", "close frame 1000 (normal)", {"close": 1000}),
        _broken("close_1001", "close frame 1001 (going away)", {"close": 1001}),
        _broken("close_1008", "close frame 1008 (policy)", {"close": 1008}),
        _broken("close_1011", "close frame 1011 (internal error)", {"close": 1011}),
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
    ),
)

REFUSALS = Stage(
    "refusals",
    title="The connection is refused",
    speed=20,
    starts="12:46:00",
    faults=(
        _refused("handshake_503", "the handshake is answered with 503", {"refuse_handshake": 503}),
        _refused("handshake_429", "the handshake is answered with 429", {"refuse_handshake": 429}),
        _refused("handshake_404", "the handshake is answered with 404", {"refuse_handshake": 404}),
        _refused("handshake_403", "the handshake is answered with 403", {"refuse_handshake": 403}),
        _refused("handshake_401", "the handshake is answered with 401", {"refuse_handshake": 401}),
        _refused("fails", "the symbol is in `fails`", {"fails": ["USD/COP"]}),
    ),
)

SILENCE = Stage(
    "silence",
    title="The socket says nothing",
    speed=10,
    starts="12:58:00",
    taught=True,
    set_before_start=True,
    faults=(
        Expectation(
            "mute_from_birth",
            "the socket opens, answers heartbeats and pings, and never brings a price",
            {"mute": True},
            lasts_s=60.0,
            verdicts=("suspect?", "dead", "suspect?", "live"),
            found_s=30.0,
            reconnects=Bounds(1, 6),
            credits={"liveness": Bounds(2, 10), "poll": Bounds(1, 60)},
            rest_prices=Bounds(1, 60),
            live_bars=False,
        ),
        Expectation(
            "mute",
            "prices stop in mid-session; heartbeats and pings are answered",
            {"mute": True},
            lasts_s=60.0,
            verdicts=("suspect", "dead", "suspect?", "live"),
            found_s=30.0,
            reconnects=Bounds(1, 6),
            credits={"liveness": Bounds(2, 10), "poll": Bounds(1, 60)},
            rest_prices=Bounds(1, 60),
            live_bars=False,
        ),
    ),
)

STAGES = (CONNECTIONS, REFUSALS, SILENCE)
ALL = tuple((stage, one) for stage in STAGES for one in stage.faults)
