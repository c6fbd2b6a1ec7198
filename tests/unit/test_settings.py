"""Settings: every fault at once, every spelling of the keys, no secret shown."""

from datetime import date, time
from pathlib import Path

import pytest

from enhanced_websocket_service.clock import SystemClock, VirtualClock
from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.service.build import _limits
from enhanced_websocket_service.serving.limits import Limits
from enhanced_websocket_service.settings import (
    FaultySettings,
    Settings,
    load_settings,
    usable_backup_dir,
)


def settings(**environ: str) -> Settings:
    return load_settings(environ).settings


def test_defaults_are_those_of_the_documents() -> None:
    made = settings()
    assert (made.host, made.port, made.symbols) == ("127.0.0.1", 8080, ("USDCOP",))
    assert (made.market_open, made.market_close) == (time(8, 0), time(12, 55))
    assert made.keys == ()
    assert made.database_url is None
    assert made.key_spacing_s == 8.0
    assert isinstance(made.clock(), SystemClock)
    assert made.data_provider == Provider("twelvedata")


def test_what_clients_may_cost_is_the_same_without_settings() -> None:
    """The serving side has defaults of its own, for whoever uses it without a service."""
    assert _limits(settings()) == Limits()


def test_all_faults_are_reported_at_once_each_with_its_variable() -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(
            PORT="eighty",
            SYMBOLS="usd/cop",
            DATABASE_URL="mysql://u:hunter2@h/db",
            MARKET_OPEN="25:00",
            SSL_CERT_PATH="/tmp/cert.pem",
            FEED_MODE="carrier-pigeon",
            VIRTUAL_CLOCK="tomorrow",
            L0_WINDOW_DAYS="0",
            REDIS_URL="redis://me:hunter3@h:port/0",
            TWELVEDATA_API_KEY_G1_2="k\u00e9y",
        )
    faults = caught.value.faults
    for name in (
        "PORT",
        "SYMBOLS",
        "DATABASE_URL",
        "MARKET_OPEN",
        "SSL_CERT_PATH",
        "FEED_MODE",
        "VIRTUAL_CLOCK",
        "L0_WINDOW_DAYS",
        "REDIS_URL",
        "TWELVEDATA_API_KEY_G1_2",
    ):
        assert sum(fault.startswith(name) for fault in faults) == 1, (name, faults)
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "label", "group"),
    [
        ("TWELVEDATA_API_KEY_G1_1", "G1_1", 1),
        ("TWELVEDATA_API_KEY_G2_8", "G2_8", 2),
        ("API_KEY_G1_3", "G1_3", 1),
        ("API_KEY_G2_1", "G2_1", 2),
        ("TWELVEDATA_API_KEY_1", "G1_1", 1),
        ("TWELVEDATA_API_KEY_16", "G2_8", 2),
        ("TWELVEDATA_API_KEY", "G1_1", 1),
    ],
)
def test_every_spelling_of_a_key_is_accepted(variable: str, label: str, group: int) -> None:
    (key,) = settings(**{variable: "0123456789abcdef"}).keys
    assert (key.label, key.group, key.secret) == (label, group, "0123456789abcdef")
    assert "0123" not in repr(key)


def test_sixteen_keys_in_two_groups() -> None:
    environ = {
        f"TWELVEDATA_API_KEY_G{group}_{n}": f"secret-{group}-{n}"
        for group in (1, 2)
        for n in range(1, 9)
    }
    made = settings(**environ)
    assert len(made.keys) == 16
    assert [key.group for key in made.keys] == [1] * 8 + [2] * 8
    assert "secret-" not in repr(made)
    assert "secret-" not in str(made.redacted())
    assert made.secrets() >= set(environ.values())


def test_placeholders_and_empty_values_count_as_unset() -> None:
    made = settings(TWELVEDATA_API_KEY_G1_1="your_real_api_key_here", PORT="", DATABASE_URL="  ")
    assert made.keys == ()
    assert made.port == 8080
    assert made.database_url is None


def test_a_repeated_key_counts_once_and_is_warned_about_without_being_shown() -> None:
    loaded = load_settings({"TWELVEDATA_API_KEY_G1_1": "samekey1", "API_KEY_G1_2": "samekey1"})
    assert len(loaded.settings.keys) == 1
    (warning,) = [one for one in loaded.warnings if "repeats" in one]
    assert "samekey1" not in warning


def test_the_environment_wins_over_the_file_and_options_over_both(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("PORT=1111\nHOST=0.0.0.0\nPROT=3\n")
    loaded = load_settings({"PORT": "2222"}, dotenv=dotenv, overrides={"port": 3333, "host": None})
    assert (loaded.settings.port, loaded.settings.host) == (3333, "0.0.0.0")
    assert any("PROT" in one and "PORT" in one for one in loaded.warnings)


def test_an_unset_value_of_the_environment_does_not_hide_the_file(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("PORT=9999\nTWELVEDATA_API_KEY_G1_1=realkey1\nLOG_LEVEL=debug\n")
    environ = {"PORT": "", "TWELVEDATA_API_KEY_G1_1": "your_real_api_key_here"}
    made = load_settings(environ, dotenv=dotenv).settings
    assert (made.port, made.log_level) == (9999, "DEBUG")
    assert [key.secret for key in made.keys] == ["realkey1"]


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_bytes(b"PORT=\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"\.env"):
        load_settings({}, dotenv=dotenv)


def test_a_second_key_for_the_same_place_is_warned_about() -> None:
    loaded = load_settings(
        {"TWELVEDATA_API_KEY_G1_1": "onekey11", "TWELVEDATA_API_KEY": "other222"}
    )
    assert [key.secret for key in loaded.settings.keys] == ["onekey11"]
    (warning,) = [one for one in loaded.warnings if "G1_1" in one]
    assert "TWELVEDATA_API_KEY is ignored" in warning
    assert "other222" not in warning


def test_other_addresses_than_the_vendors_own_are_the_simulator_unless_told_otherwise() -> None:
    assert settings(TWELVEDATA_REST_URL="http://127.0.0.1:9").data_provider == Provider("simulator")
    assert settings(TWELVEDATA_WS_URL="ws://127.0.0.1:9/x").data_provider.simulated
    told = settings(TWELVEDATA_REST_URL="http://127.0.0.1:9", PROVIDER="twelvedata")
    assert told.data_provider == Provider("twelvedata")


def test_calendar_and_clock_follow_the_settings() -> None:
    made = settings(
        MARKET_CLOSE="13:00",
        EXTRA_CLOSURES="2025-01-20,2025-01-21",
        VIRTUAL_CLOCK="2025-01-20T08:00:00-05:00,60,1700000000",
    )
    assert not made.calendar().is_trading_day(date(2025, 1, 21))
    assert len(made.calendar().live_labels(date(2025, 1, 22))) == 60
    assert isinstance(made.clock(), VirtualClock)


def test_the_secrets_of_every_address_are_known() -> None:
    made = settings(
        DATABASE_URL="postgresql://h/db?user=me&password=hunter2",
        REDIS_URL="redis://:p%40ss1234@h/0",
        TWELVEDATA_REST_URL="https://me:restpw77@h/?apikey=restkey77",
        TWELVEDATA_WS_URL="wss://me:wstoken77@h/",
    )
    found = {"hunter2", "p%40ss1234", "p@ss1234", "restpw77", "restkey77", "wstoken77"}
    assert made.secrets() == found
    shown = str(made.redacted())
    assert not any(secret in shown for secret in found)


@pytest.mark.parametrize(
    "variable", ["DATABASE_URL", "REDIS_URL", "TWELVEDATA_API_KEY_G2_8", "API_KEY_G1_1"]
)
def test_a_secret_may_stand_in_a_file_of_its_own(variable: str, tmp_path: Path) -> None:
    value = {"DATABASE_URL": "postgresql://h/db", "REDIS_URL": "redis://h/0"}.get(
        variable, "0" * 32
    )
    file = tmp_path / "secret"
    file.write_text(f"{value}\n")
    dotenv = tmp_path / ".env"
    dotenv.write_text(f"{variable}_FILE={file}\n")
    for made in (
        settings(**{f"{variable}_FILE": str(file)}),
        load_settings({}, dotenv=dotenv).settings,
    ):
        assert made == settings(**{variable: value})


def test_the_environment_wins_over_the_file_also_where_one_of_them_names_a_file(
    tmp_path: Path,
) -> None:
    file = tmp_path / "secret"
    file.write_text("redis://in-the-file/0")
    dotenv = tmp_path / ".env"
    dotenv.write_text(f"REDIS_URL_FILE={file}\n")
    told = load_settings({"REDIS_URL": "redis://environment/0"}, dotenv=dotenv).settings
    assert told.redis_url == "redis://environment/0"
    dotenv.write_text("REDIS_URL=redis://dotenv/0\n")
    told = load_settings({"REDIS_URL_FILE": str(file)}, dotenv=dotenv).settings
    assert told.redis_url == "redis://in-the-file/0"


@pytest.mark.parametrize("content", [None, b"", b"\n", b"one\ntwo\n", b"\xff\xfe"])
def test_a_file_without_a_secret_is_named(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        settings(TWELVEDATA_API_KEY_G1_1_FILE=str(file), PORT="eighty")
    (first, second) = sorted(caught.value.faults)
    assert first.startswith("PORT=")
    assert second.startswith(f"TWELVEDATA_API_KEY_G1_1_FILE={file} ")


def test_a_secret_set_twice_is_a_fault() -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL and REDIS_URL_FILE are both set"):
        settings(REDIS_URL="redis://h/0", REDIS_URL_FILE="/nowhere")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hun@ter2@h/x",
        "postgresql://me:1/hunter2@h/x",
        "postgresql://me:1#hunter2@h/x",
        "postgresql://me:hunter2/x@h/x",
    ],
)
def test_a_password_that_is_not_encoded_is_a_fault_and_is_not_shown(url: str) -> None:
    """Half of it would be taken, and shown, for the name of a host or of a database."""
    with pytest.raises(ConfigurationError, match="DATABASE_URL cannot be understood") as caught:
        settings(DATABASE_URL=url)
    assert "hun" not in str(caught.value)


def test_what_is_usable_is_known_beside_the_faults() -> None:
    with pytest.raises(FaultySettings) as caught:
        settings(
            PORT="eighty", HOST="0.0.0.0", MARKET_OPEN="13:00", SSL_CERT_PATH="/x", PROVIDER="X"
        )
    assert len(caught.value.faults) == 4
    assert caught.value.fields == {"port", "market_open", "ssl_cert_path", "provider"}
    usable = caught.value.usable
    assert (usable.host, usable.port, usable.market_open) == ("0.0.0.0", 8080, time(8, 0))


BAD_VALUES = {
    **dict.fromkeys(("MAX_CLIENTS", "CLIENT_MESSAGE_BURST", "L0_WINDOW_DAYS"), "0"),
    **dict.fromkeys(("MAX_CLIENTS_PER_ADDRESS", "JOURNAL_FSYNC_MS", "KEY_CREDITS_PER_DAY"), "0.5"),
    **dict.fromkeys(("CLIENT_MESSAGES_PER_S", "CLIENT_HANDSHAKE_S", "CLIENT_STALL_S"), "0"),
    **dict.fromkeys(("CLIENT_PING_INTERVAL_S", "CLIENT_PING_TIMEOUT_S", "KEY_SPACING_S"), "-1"),
    **dict.fromkeys(("STARTUP_TIMEOUT_MINUTES", "PRE_OPEN_MINUTES", "PRICE_BAND_PCT"), "soon"),
    **dict.fromkeys(("CLOSE_DRAIN_S", "BAR_CLOSE_DELAY_MS", "LATE_GRACE_S"), "-0.1"),
    **dict.fromkeys(("JOURNAL_KEEP_HOURS", "JOURNAL_KEEP_MB", "FUTURE_TOLERANCE_S"), "-1"),
    **dict.fromkeys(("HEALTH_INTERVAL_S", "SHUTDOWN_TIMEOUT_S", "CLIENT_BUFFER_AGE_S"), "0"),
    **dict.fromkeys(("HEALTH_UNDONE_S", "HEALTH_HELD_S", "HEALTH_BAR_S"), "0"),
    **{"HEALTH_PROBE_S": "-1", "HEALTH_RECONCILED_S": "0"},
    **dict.fromkeys(("CPU_LATENCY_US", "CLIENT_BUFFER_KB", "CLIENT_MESSAGE_MAX_BYTES"), "7.5"),
    **dict.fromkeys(("LOG_LEVEL", "LOG_FORMAT", "FEED_MODE", "L0_POLICY"), "loud"),
    **dict.fromkeys(("EMBEDDED", "CLIENT_COMPRESSION"), "perhaps"),
    **dict.fromkeys(("EXTRA_CLOSURES", "EXTRA_OPENINGS"), "2025-02-30"),
    **{"PORT": "-1", "KEY_CREDITS_PER_MINUTE": "0", "MARKET_OPEN": "8", "MARKET_CLOSE": "24:05"},
    **{"SYMBOLS": "A,B", "CORS_ORIGINS": "x", "TRUSTED_PROXIES": "x", "PROVIDER": "X"},
    **{"VIRTUAL_CLOCK": "now", "SSL_CERT_PATH": "/x", "SSL_KEY_PATH": "/x"},
    **dict.fromkeys(
        ("DATABASE_URL", "REDIS_URL", "TWELVEDATA_REST_URL", "TWELVEDATA_WS_URL"), "x://h"
    ),
}


def test_a_bad_value_of_every_setting_is_a_fault_that_names_it() -> None:
    # Any text may name a folder or a host: what those are worth only the machine can tell.
    fields = {name.upper() for name in Settings.model_fields} - {"KEYS", "SYMBOL_CALENDARS", "HOST"}
    assert BAD_VALUES.keys() == {name for name in fields if not name.endswith("_DIR")}
    for name, value in BAD_VALUES.items():
        with pytest.raises(FaultySettings) as caught:
            settings(**{name: value})
        assert caught.value.faults[0].startswith(name) or name == "SSL_KEY_PATH"
        assert caught.value.fields == {name.lower()}


def test_a_file_with_secrets_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("TWELVEDATA_API_KEY_G1_1=0123456789abcdef\nfedcba9876543210\n")
    dotenv.chmod(0o640)
    told = load_settings({}, dotenv=dotenv).warnings
    assert any("chmod 600" in one and str(dotenv) in one for one in told)
    # A key that was pasted without its name is no name to be repeated.
    assert not any("fedcba" in one for one in told)
    dotenv.chmod(0o600)
    assert not any("chmod" in one for one in load_settings({}, dotenv=dotenv).warnings)
    dotenv.write_text("PORT=9999\n")
    dotenv.chmod(0o644)
    assert load_settings({}, dotenv=dotenv).warnings == ()


def test_an_uncreatable_backup_dir_is_replaced_with_a_warning(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert usable_backup_dir(tmp_path / "new") == (tmp_path / "new", None)
    used, warning = usable_backup_dir(blocked / "below", tmp_path / "fallback")
    assert used == tmp_path / "fallback"
    assert used.is_dir()
    assert warning is not None
    assert "BACKUP_DIR" in warning
    used, warning = usable_backup_dir(blocked / "below", blocked / "fallback")
    assert used == blocked / "below", "backup files are no reason to collect nothing"
    assert warning is not None
    assert "No backup files are written" in warning


def test_symbols_have_calendars_by_name() -> None:
    made = settings(SYMBOLS="USDCOP, EURUSD@fx,BTCUSD@24x7")
    assert made.symbols == ("USDCOP", "EURUSD", "BTCUSD")
    names = {symbol: calendar.name for symbol, calendar in made.calendars().items()}
    assert names == {"USDCOP": "default", "EURUSD": "fx", "BTCUSD": "24x7"}
    assert made.redacted()["SYMBOLS"] == "USDCOP,EURUSD@fx,BTCUSD@24x7"
    # The configured session is that of the default calendar alone.
    closing = settings(SYMBOLS="USDCOP,EURUSD@fx", MARKET_OPEN="00:00", MARKET_CLOSE="24:00")
    assert len(closing.calendar_of("USDCOP").expected_labels(date(2025, 1, 22))) == 288
    assert closing.redacted()["MARKET_CLOSE"] == "24:00"
    assert closing.calendar_of("EURUSD").zone.key == "America/New_York"


@pytest.mark.parametrize(
    ("symbols", "told"),
    [
        (
            "EURUSD@nyse",
            "SYMBOLS: EURUSD@nyse: there is no calendar 'nyse'; there are default, fx, 24x7.",
        ),
        ("EURUSD@", "SYMBOLS: EURUSD@: there is no calendar ''; there are default, fx, 24x7."),
        ("EURUSD,EURUSD@fx", "SYMBOLS must name at least one symbol, and each only once."),
        ("@fx", "SYMBOLS: '' is not 6 to 10 capital letters or digits like USDCOP."),
    ],
)
def test_a_calendar_that_there_is_not(symbols: str, told: str) -> None:
    with pytest.raises(FaultySettings) as caught:
        settings(SYMBOLS=symbols)
    assert told in caught.value.faults
    assert caught.value.fields == {"symbols"}
