"""Settings: frozen, from the environment and ``.env``, with every fault reported at once.

Only ``cli`` and ``service/build`` read them; everything else gets plain values. The variables are
documented in ``.env.enhanced-websocket``, which a test keeps equal to this module.
"""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import platformdirs
from dotenv import dotenv_values
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from .addresses import PostgresAddress
from .clock import Clock, SystemClock, parse_virtual_clock
from .errors import ConfigurationError
from .market.calendar import BAR_SECONDS, TradingCalendar
from .market.source import REAL_PROVIDER, SIMULATOR, Provider, is_simulated
from .telemetry import REDACTED
from .twelvedata.keys import ApiKey

REAL_REST_URL = "https://api.twelvedata.com"
REAL_WS_URL = "wss://ws.twelvedata.com/v1/quotes/price"
DEFAULT_BACKUP_DIR = Path("/data/backups")
MAX_KEYS = 16
_SECRET = frozenset({"password", "sslpassword"})
"""Parameters of an address that hold a secret."""

_KEY_VARIABLES: tuple[tuple[str, str, int], ...] = (
    # (variable, label, group); the first spelling that is set wins for a label.
    *(
        (f"{prefix}_G{group}_{n}", f"G{group}_{n}", group)
        for prefix in ("TWELVEDATA_API_KEY", "API_KEY")
        for group in (1, 2)
        for n in range(1, 9)
    ),
    *(
        (f"TWELVEDATA_API_KEY_{n}", f"G{1 if n <= 8 else 2}_{n if n <= 8 else n - 8}", 1 + (n > 8))
        for n in range(1, MAX_KEYS + 1)
    ),
    ("TWELVEDATA_API_KEY", "G1_1", 1),
)
_KEY_NAMES = {variable for variable, _, _ in _KEY_VARIABLES}
PLACES = frozenset(
    {
        *_KEY_NAMES,
        *("DATABASE_URL", "REDIS_URL", "EMBEDDED", "PROVIDER", "VIRTUAL_CLOCK"),
        *("TWELVEDATA_REST_URL", "TWELVEDATA_WS_URL", "SSL_CERT_PATH", "SSL_KEY_PATH"),
        *("READY_SIGNALS_DIR", "BACKUP_DIR", "STATE_DIR", "LOG_DIR"),
    }
)
"""Variables that lead to servers, folders and accounts. They mean those of `run`, whoever else reads them."""
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]+")
_OURS = re.compile(r"^(TWELVEDATA|API_KEY|EWS|L0|MARKET|JOURNAL|FEED|KEY|CLIENT)_")


def _comma_list(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _clock_time(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", value)
        if match is None:
            raise ValueError("a time of day looks like 08:00")
        return time(int(match[1]), int(match[2]))
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_comma_list)]
Dates = Annotated[tuple[date, ...], BeforeValidator(_comma_list)]
TimeOfDay = Annotated[time, BeforeValidator(_clock_time)]


class Settings(BaseModel):
    """Every setting under the lower-case name of its variable. Durations as their suffix says."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    database_url: str | None = Field(None, repr=False)
    redis_url: str | None = Field(None, repr=False)
    keys: tuple[ApiKey, ...] = Field((), repr=False)

    ready_signals_dir: Path = Path("/data/ready-signals")
    backup_dir: Path = DEFAULT_BACKUP_DIR
    state_dir: Path = Field(default_factory=lambda: _user_state_dir())
    log_dir: Path | None = None

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    cors_origins: Names = ()
    ssl_cert_path: Path | None = None
    ssl_key_path: Path | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"
    embedded: bool = False

    max_clients: int = Field(20_000, ge=1)
    max_clients_per_address: int | None = Field(None, ge=1)
    trusted_proxies: Names = ()
    client_messages_per_s: float = Field(20.0, gt=0)
    client_message_burst: int = Field(100, ge=1)
    client_message_max_bytes: int = Field(65_536, ge=1024)
    client_handshake_s: float = Field(10.0, gt=0)
    client_ping_interval_s: float = Field(20.0, ge=0)
    client_ping_timeout_s: float = Field(20.0, gt=0)
    client_buffer_kb: int = Field(256, ge=8)
    client_buffer_age_s: float = Field(5.0, gt=0)
    client_stall_s: float = Field(30.0, gt=0)
    client_compression: bool = True

    symbols: Names = ("USDCOP",)
    market_open: TimeOfDay = time(8, 0)
    market_close: TimeOfDay = time(12, 55)
    extra_closures: Dates = ()
    extra_openings: Dates = ()
    virtual_clock: str | None = None

    twelvedata_rest_url: str = REAL_REST_URL
    twelvedata_ws_url: str = REAL_WS_URL
    provider: str | None = None
    feed_mode: Literal["auto", "websocket", "rest"] = "auto"
    key_spacing_s: float = Field(8.0, ge=0)
    key_credits_per_minute: int = Field(8, ge=1)
    key_credits_per_day: int = Field(800, ge=1)

    startup_timeout_minutes: float = Field(60.0, gt=0)
    pre_open_minutes: float = Field(15.0, gt=0)
    close_drain_s: float = Field(5.0, ge=0)
    bar_close_delay_ms: int = Field(1000, ge=0)
    late_grace_s: float = Field(60.0, ge=0)
    price_band_pct: float = Field(5.0, gt=0, le=100)
    future_tolerance_s: float = Field(5.0, ge=0)
    journal_fsync_ms: int = Field(50, ge=1)
    journal_keep_hours: float = Field(24.0, ge=0)
    journal_keep_mb: int = Field(1024, ge=0)
    l0_window_days: int = Field(7, ge=1)
    l0_policy: Literal["strict", "degraded"] = "strict"
    health_interval_s: float = Field(60.0, gt=0)
    cpu_latency_us: int | None = Field(None, ge=0, le=1_000_000)
    shutdown_timeout_s: float = Field(20.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        faults = [
            f"SYMBOLS: {symbol!r} is not 6 to 10 capital letters or digits like USDCOP."
            for symbol in self.symbols
            if not re.fullmatch(r"[A-Z0-9]{6,10}", symbol)
        ]
        if not self.symbols or len(set(self.symbols)) != len(self.symbols):
            faults.append("SYMBOLS must name at least one symbol, and each only once.")
        if self.market_open >= self.market_close:
            faults.append("MARKET_OPEN must be before MARKET_CLOSE.")
        for name, at in (("MARKET_OPEN", self.market_open), ("MARKET_CLOSE", self.market_close)):
            if (at.hour * 3600 + at.minute * 60) % BAR_SECONDS:
                faults.append(f"{name} must lie on the 5-minute grid.")
        if (self.ssl_cert_path is None) != (self.ssl_key_path is None):
            faults.append("SSL_CERT_PATH and SSL_KEY_PATH must be set together.")
        if "*" in self.cors_origins and len(self.cors_origins) > 1:
            faults.append("CORS_ORIGINS: '*' already allows every origin; name it alone.")
        faults += [
            f"CORS_ORIGINS: {origin!r} is not an origin; it looks like https://host or "
            "https://host:port, without a path."
            for origin in self.cors_origins
            if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin)
        ]
        for proxy in self.trusted_proxies:
            try:
                ip_network(proxy, strict=False)
            except ValueError:
                faults.append(
                    f"TRUSTED_PROXIES: {proxy!r} is not an address or network like 10.0.0.0/8."
                )
        for name, url, schemes in (
            ("DATABASE_URL", self.database_url, ("postgresql", "postgres")),
            ("REDIS_URL", self.redis_url, ("redis", "rediss", "unix")),
            ("TWELVEDATA_REST_URL", self.twelvedata_rest_url, ("http", "https")),
            ("TWELVEDATA_WS_URL", self.twelvedata_ws_url, ("ws", "wss")),
        ):
            if url is None:
                continue
            try:
                scheme = urlsplit(url).scheme
                if name == "DATABASE_URL" and scheme in schemes:
                    PostgresAddress.of(url)  # it may have several hosts, each with its port
                else:
                    _ = urlsplit(url).port
            except (ValueError, ConfigurationError):
                # Without the parser's words: they may quote the part with the password.
                faults.append(
                    f"{name} cannot be understood. It looks like {schemes[0]}://user:password@host:port/"
                    "name; special characters in the password are percent-encoded."
                )
                continue
            if scheme not in schemes:
                faults.append(f"{name} must begin with {' or '.join(s + '://' for s in schemes)}.")
        faults += self._provider_faults()
        if self.virtual_clock is not None:
            try:
                parse_virtual_clock(self.virtual_clock, lambda _day: True)
            except ConfigurationError as error:
                faults += error.faults
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _provider_faults(self) -> list[str]:
        if self.provider is None:
            return []
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,29}", self.provider):
            return ["PROVIDER must be lower-case letters, digits and _, at most 30."]
        if (
            self._foreign_hosts()
            and self.provider != REAL_PROVIDER
            and not is_simulated(self.provider)
        ):
            return [
                f"PROVIDER={self.provider}: the vendor's address is not TwelveData's own, so its prices are "
                f"simulated; name it {SIMULATOR} or {SIMULATOR}_..., or {REAL_PROVIDER} if they are real."
            ]
        return []

    def _foreign_hosts(self) -> tuple[str, ...]:
        """The hosts among the vendor's addresses that are not TwelveData's own."""
        real = {urlsplit(REAL_REST_URL).hostname, urlsplit(REAL_WS_URL).hostname}
        try:
            given = {
                urlsplit(url).hostname for url in (self.twelvedata_rest_url, self.twelvedata_ws_url)
            }
        except ValueError:  # reported as a fault of its own
            return ()
        return tuple(sorted(host or "" for host in given - real))

    @property
    def data_provider(self) -> Provider:
        """Who the prices are from: an address that is not the vendor's own is the simulator."""
        if self.provider is not None:
            return Provider(self.provider)
        return Provider(SIMULATOR if self._foreign_hosts() else REAL_PROVIDER)

    @property
    def provider_warning(self) -> str | None:
        """Why prices that count as real may be invented all the same; ``None``: nothing says so."""
        if self.data_provider.simulated:
            return None
        if foreign := self._foreign_hosts():
            return (
                f"PROVIDER={self.provider} is set by hand: prices from {', '.join(foreign)}, which is "
                "not TwelveData's own address, count as real."
            )
        if self.virtual_clock is not None:
            return "VIRTUAL_CLOCK is set: real prices get times that are invented."
        return None

    def calendar(self) -> TradingCalendar:
        """The calendar of the Colombian session with the configured exceptions."""
        return TradingCalendar(
            self.market_open,
            self.market_close,
            extra_closures=self.extra_closures,
            extra_openings=self.extra_openings,
        )

    def clock(self) -> Clock:
        """The machine's clock, or the one ``VIRTUAL_CLOCK`` describes."""
        if self.virtual_clock is None:
            return SystemClock()
        return parse_virtual_clock(self.virtual_clock, self.calendar().is_trading_day)

    def secrets(self) -> set[str]:
        """Every text that must never be shown: keys, and passwords inside addresses."""
        found = {key.secret for key in self.keys}
        for url in (self.database_url, self.redis_url):
            if url is None:
                continue
            parts = urlsplit(url)
            written = [
                parts.password or "",
                *(v for n, v in parse_qsl(parts.query) if n in _SECRET),
            ]
            # As it stands in the address, and as libraries quote it.
            found.update(text for one in written for text in (one, unquote(one)) if text)
        return found

    def redacted(self) -> dict[str, Any]:
        """The effective settings by variable name, fit to be shown to anyone."""
        shown: dict[str, Any] = {}
        for name, value in self:
            if name == "keys":
                continue
            if name in ("database_url", "redis_url") and value is not None:
                value = redact_url(value)
            elif isinstance(value, tuple):
                value = ",".join(str(item) for item in value)
            elif isinstance(value, time):
                value = value.strftime("%H:%M")
            elif isinstance(value, Path):
                value = str(value)
            shown[name.upper()] = value
        shown.update({f"TWELVEDATA_API_KEY_{key.label}": REDACTED for key in self.keys})
        return shown


def _user_state_dir() -> Path:
    try:
        return Path(platformdirs.user_state_dir("enhanced-websocket-service"))
    except RuntimeError as error:  # a user id that no home directory belongs to
        raise ConfigurationError(
            "STATE_DIR is not set and this user has no home directory; set STATE_DIR (for `demo`: "
            "--state-dir)."
        ) from error


_VARIABLES = {name.upper() for name in Settings.model_fields if name != "keys"}


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and what deserves a warning about where they came from."""

    settings: Settings
    warnings: tuple[str, ...]


def load_settings(
    environ: Mapping[str, str],
    *,
    dotenv: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    ignored: Collection[str] = (),
) -> Loaded:
    """Read the settings: ``overrides`` (options) win over ``environ``, which wins over ``dotenv``.

    Empty values and ``your_...`` placeholders count as unset.

    :param ignored: variables that are not looked at, neither in ``environ`` nor in ``dotenv``.
    :raises ConfigurationError: with one sentence per fault, all faults at once.
    """
    warnings: list[str] = []
    from_file: dict[str, str] = {}
    if dotenv is not None and dotenv.is_file():
        try:
            from_file = {name: value or "" for name, value in dotenv_values(dotenv).items()}
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{dotenv} cannot be read ({error}); it must be a text file in UTF-8."
            ) from error
        warnings += _unknown(from_file, f"in {dotenv}")
    warnings += _unknown({n: v for n, v in environ.items() if _OURS.match(n)}, "in the environment")
    # Each by itself: an unset value of the environment must not hide the one in the file.
    merged = {
        name: value
        for name, value in {**_given(from_file), **_given(environ)}.items()
        if name not in ignored
    }
    values: dict[str, Any] = {
        name.lower(): value for name, value in merged.items() if name in _VARIABLES
    }
    for name in ("log_level",):
        if name in values:
            values[name] = values[name].upper()
    for name in ("log_format", "feed_mode", "l0_policy"):
        if name in values:
            values[name] = values[name].lower()
    values.update({name: value for name, value in (overrides or {}).items() if value is not None})
    keys, key_warnings, key_faults = _keys(merged)
    warnings += key_warnings
    settings = _validated({**values, "keys": keys}, merged, key_faults)
    return Loaded(settings, tuple(warnings))


def _given(values: Mapping[str, str]) -> dict[str, str]:
    stripped = {name: value.strip() for name, value in values.items()}
    return {
        name: value
        for name, value in stripped.items()
        if value and not value.lower().startswith("your_")
    }


def _validated(values: dict[str, Any], given: Mapping[str, str], found: Sequence[str]) -> Settings:
    """Validate twice when needed: rules across fields only run once each field alone is valid.

    :param found: faults that are known already and reported with the others.
    """
    faults: list[str] = list(found)
    while True:
        try:
            settings = Settings(**values)
        except ValidationError as error:
            faulty = [item for item in error.errors(include_url=False) if item["loc"]]
            for item in faulty:
                name = str(item["loc"][0])
                shown = f"={given[name.upper()]!r}" if name.upper() in given else ""
                message = item["msg"].removeprefix("Value error, ")
                faults.append(f"{name.upper()}{shown}: {message}.")
                values.pop(name, None)
            if faulty:
                continue
            for item in error.errors(include_url=False):
                faults += item["msg"].removeprefix("Value error, ").split("\n")
        else:
            if not faults:
                return settings
        raise ConfigurationError(*dict.fromkeys(faults))


def usable_backup_dir(
    configured: Path, fallback: Path = DEFAULT_BACKUP_DIR
) -> tuple[Path, str | None]:
    """``configured``, made if need be, or ``fallback`` with a warning. When neither can be created it is
    ``configured`` all the same: backup files are no reason to collect nothing.
    """
    try:
        configured.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"BACKUP_DIR={configured} cannot be created ({error.strerror}); "
    else:
        return configured, None
    try:
        fallback.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return configured, (
            f"{problem}neither can {fallback} ({error.strerror}). No backup files are written until "
            "BACKUP_DIR is a folder that this user may write."
        )
    return fallback, f"{problem}using {fallback}."


def redact_url(url: str) -> str:
    """``url`` with its password, if any, replaced."""
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query)
    if any(name in _SECRET for name, _ in pairs):
        shown = [(name, REDACTED if name in _SECRET else value) for name, value in pairs]
        parts = parts._replace(query=urlencode(shown, safe="[]/"))
        url = urlunsplit(parts)
    if not parts.password:
        return url  # as it is: unix:///path would not survive the way there and back
    userinfo, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{userinfo.partition(':')[0]}:{REDACTED}@{host}"))


def _keys(merged: Mapping[str, str]) -> tuple[tuple[ApiKey, ...], list[str], list[str]]:
    """The keys, warnings about them, and faults in them."""
    by_label: dict[str, ApiKey] = {}
    seen: dict[str, str] = {}
    warnings: list[str] = []
    faults: list[str] = []
    for variable, label, group in _KEY_VARIABLES:
        secret = merged.get(variable)
        if secret is None:
            continue
        if label in by_label:
            if by_label[label].secret != secret:
                warnings.append(f"{variable} is ignored: key {label} is set by another variable.")
            continue
        if secret in seen:
            if seen[secret] != variable:
                warnings.append(f"{variable} repeats the key of {seen[secret]}; it counts once.")
            continue
        seen[secret] = variable
        try:
            by_label[label] = ApiKey(label=label, secret=secret, group=group)
        except ConfigurationError as error:
            faults.append(f"{variable}: {error}")
    return tuple(by_label[label] for label in sorted(by_label)), warnings, faults


def _unknown(values: Mapping[str, str], where: str) -> list[str]:
    known = _VARIABLES | _KEY_NAMES
    warnings = []
    for name in values:
        if name in known or name.startswith(("POSTGRES_", "COMPOSE_", "EWS_")):
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        warnings.append(f"{name} {where} is not a setting of this service and is ignored.{hint}")
    return warnings
