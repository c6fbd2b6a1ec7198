"""Settings: frozen, from the environment and ``.env``, with every fault reported at once.

Only ``cli`` and ``service/build`` read them; everything else gets plain values. The variables are
documented in ``.env.enhanced-websocket``, which a test keeps equal to this module. A secret may stand in a
file of its own instead: ``NAME_FILE`` names the file that holds the value of ``NAME``.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import time
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import platformdirs
from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from websockets.exceptions import InvalidURI
from websockets.uri import parse_uri

from .addresses import PostgresAddress
from .clock import Clock, SystemClock, parse_virtual_clock
from .errors import ConfigurationError
from .market.calendar import (
    BAR_SECONDS,
    CALENDARS,
    DEFAULT_CALENDAR,
    MIDNIGHT,
    TradingCalendar,
    named_calendar,
)
from .market.source import REAL_PROVIDER, SIMULATOR, Provider, is_simulated
from .redaction import REDACTED, redact_url, secrets_in_url
from .secret_files import content_of, readable_by_others
from .setting_values import Close, Dates, Names, TimeOfDay, faults_in_clock, split_symbols
from .twelvedata.keys import MAX_KEYS, ApiKey

REAL_REST_URL = "https://api.twelvedata.com"
REAL_WS_URL = "wss://ws.twelvedata.com/v1/quotes/price"
DEFAULT_BACKUP_DIR = Path("/data/backups")
_ADDRESSES = {
    "DATABASE_URL": ("postgresql", "postgres"),
    "REDIS_URL": ("redis", "rediss", "unix"),
    "TWELVEDATA_REST_URL": ("http", "https"),
    "TWELVEDATA_WS_URL": ("ws", "wss"),
}
"""Settings that may hold a password, with the schemes they may have."""

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
_IN_FILES = {f"{name}_FILE": name for name in ("DATABASE_URL", "REDIS_URL", *sorted(_KEY_NAMES))}
"""Variables that name the file in which the value of another one stands."""
PLACES = frozenset(
    {
        *(_KEY_NAMES | _IN_FILES.keys()),
        *("DATABASE_URL", "REDIS_URL", "EMBEDDED", "PROVIDER", "VIRTUAL_CLOCK"),
        *("TWELVEDATA_REST_URL", "TWELVEDATA_WS_URL", "SSL_CERT_PATH", "SSL_KEY_PATH"),
        *("READY_SIGNALS_DIR", "BACKUP_DIR", "STATE_DIR", "LOG_DIR"),
    }
)
"""Variables that lead to servers, folders and accounts. They mean those of `run`, whoever else reads them."""
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]+")
_OURS = re.compile(r"^(TWELVEDATA|API_KEY|EWS|L0|MARKET|JOURNAL|FEED|KEY|CLIENT)_")


_DERIVED = frozenset({"keys", "symbol_calendars"})
"""Fields that are no variables: what the variables of the keys, and ``SYMBOLS``, tell."""


class Settings(BaseModel):
    """Every setting under the lower-case name of its variable. Durations as their suffix says."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

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
    symbol_calendars: dict[str, str] = {}
    """The calendar of each symbol that ``SYMBOLS`` names one for: of EURUSD where it says EURUSD@fx."""
    market_open: TimeOfDay = time(8, 0)
    market_close: Close = time(12, 55)
    extra_closures: Dates = ()
    extra_openings: Dates = ()
    virtual_clock: str | None = None

    twelvedata_rest_url: str = REAL_REST_URL
    twelvedata_ws_url: str = REAL_WS_URL
    provider: str | None = None
    feed_mode: Literal["auto", "websocket", "rest"] = "auto"
    key_spacing_s: float = Field(8.0, ge=0)
    key_credits_per_minute: int = Field(8, ge=1)
    key_credits_per_day: int = Field(800, ge=1, le=1_000_000_000)

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
    l0_window_days: int = Field(7, ge=1, le=3650)
    l0_policy: Literal["strict", "degraded"] = "strict"
    health_interval_s: float = Field(60.0, gt=0)
    health_probe_s: float = Field(5.0, ge=0)
    health_undone_s: float = Field(5.0, gt=0)
    health_held_s: float = Field(60.0, gt=0)
    health_bar_s: float = Field(10.0, gt=0)
    health_reconciled_s: float = Field(3600.0, gt=0)
    cpu_latency_us: int | None = Field(None, ge=0, le=1_000_000)
    shutdown_timeout_s: float = Field(20.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _split_symbols(cls, values: Any) -> Any:
        """``EURUSD@fx`` is a symbol and the name of its calendar."""
        if not isinstance(values, Mapping):
            return values
        found = split_symbols(values.get("symbols"))
        if found is None:
            return values
        given = values.get("symbol_calendars", {})
        return {**values, "symbols": found[0], "symbol_calendars": {**given, **found[1]}}

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        faults = [
            f"SYMBOLS: {symbol!r} is not 6 to 10 capital letters or digits like USDCOP."
            for symbol in self.symbols
            if not re.fullmatch(r"[A-Z0-9]{6,10}", symbol)
        ]
        if not self.symbols or len(set(self.symbols)) != len(self.symbols):
            faults.append("SYMBOLS must name at least one symbol, and each only once.")
        faults += [
            f"SYMBOLS: {symbol}@{name}: there is no calendar {name!r}; there are {', '.join(CALENDARS)}."
            for symbol, name in self.symbol_calendars.items()
            if name not in CALENDARS
        ]
        if self.market_open >= self.market_close != MIDNIGHT:
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
        for name in _ADDRESSES:
            if (url := getattr(self, name.lower())) is not None:
                faults += _faults_in_address(name, url)
        faults += self._provider_faults()
        if self.virtual_clock is not None:
            faults += faults_in_clock(self.virtual_clock)
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
        told = []
        if foreign := self._foreign_hosts():
            told.append(
                f"PROVIDER={self.provider} is set by hand: prices from {', '.join(foreign)}, which is "
                "not TwelveData's own address, count as real."
            )
        if self.virtual_clock is not None:
            told.append("VIRTUAL_CLOCK is set: real prices get times that are invented.")
        return " ".join(told) or None

    def calendar_of(self, symbol: str) -> TradingCalendar:
        """The calendar that ``SYMBOLS`` names for ``symbol``."""
        name = self.symbol_calendars.get(symbol, DEFAULT_CALENDAR)
        return self.calendar() if name == DEFAULT_CALENDAR else named_calendar(name)

    def calendars(self) -> dict[str, TradingCalendar]:
        """By symbol, in their order. Each its own: a calendar remembers the day it was asked about."""
        return {symbol: self.calendar_of(symbol) for symbol in self.symbols}

    def calendar(self) -> TradingCalendar:
        """The default calendar: the Colombian session with the configured exceptions."""
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

    def _named_symbol(self, symbol: str) -> str:
        """As ``SYMBOLS`` has it."""
        name = self.symbol_calendars.get(symbol)
        return symbol if name is None else f"{symbol}@{name}"

    def secrets(self) -> set[str]:
        """Every text that must never be shown: keys, and passwords inside addresses."""
        found = {key.secret for key in self.keys}
        for name in _ADDRESSES:
            found |= secrets_in_url(getattr(self, name.lower()) or "")
        return found

    def redacted(self) -> dict[str, Any]:
        """The effective settings by variable name, fit to be shown to anyone."""
        shown: dict[str, Any] = {}
        for name, value in self:
            if name in _DERIVED:
                continue
            if name == "symbols":
                value = ",".join(map(self._named_symbol, value))
            elif name == "market_close" and value == MIDNIGHT:
                value = "24:00"
            elif name.upper() in _ADDRESSES and value is not None:
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


_VARIABLES = {name.upper() for name in Settings.model_fields if name not in _DERIVED}


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and what deserves a warning about where they came from."""

    settings: Settings
    warnings: tuple[str, ...]


class FaultySettings(ConfigurationError):
    """Values that cannot be used.

    ``usable`` are the settings without them, for whoever judges the rest at once; ``fields`` names
    what has its default there, and of which nothing can be concluded.
    """

    def __init__(
        self,
        faults: Sequence[str],
        usable: Settings,
        fields: Iterable[str],
        warnings: Sequence[str],
    ) -> None:
        super().__init__(*dict.fromkeys(faults))
        self.usable = usable
        self.fields = frozenset(fields)
        self.warnings = tuple(warnings)


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
    :raises FaultySettings: with one sentence per fault, all faults at once.
    """
    found = _Findings()
    environ = {name: value for name, value in environ.items() if name not in ignored}
    from_file: dict[str, str] = {}
    if dotenv is not None and dotenv.exists() and not dotenv.is_file():
        found.warnings.append(f"{dotenv} is ignored: it is no file.")
    elif dotenv is not None and dotenv.is_file():
        try:
            read = dotenv_values(dotenv)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{dotenv} cannot be read ({error}); it must be a text file in UTF-8."
            ) from error
        # A line without a sign may be a key that was pasted alone: its words are not repeated.
        from_file = {name: value for name, value in read.items() if value is not None}
        if len(from_file) < len(read):
            found.warnings.append(f"A line without = in {dotenv} is ignored.")
        from_file = {name: value for name, value in from_file.items() if name not in ignored}
        found.warnings += _unknown(from_file, f"in {dotenv}")
        if any(n in _KEY_NAMES or secrets_in_url(v) for n, v in _given(from_file).items()):
            found.warnings += readable_by_others(dotenv)
    ours = {name: value for name, value in environ.items() if _OURS.match(name)}
    found.warnings += _unknown(ours, "in the environment")
    # Each by itself: an unset value of the environment must not hide the one in the file.
    merged = found.with_files({**_without_replaced(from_file, environ), **_given(environ)})
    values: dict[str, Any] = {
        name.lower(): value for name, value in merged.items() if name in _VARIABLES
    }
    for name in {"log_level", "log_format", "feed_mode", "l0_policy"} & values.keys():
        values[name] = values[name].upper() if name == "log_level" else values[name].lower()
    values.update({name: value for name, value in (overrides or {}).items() if value is not None})
    values["keys"] = found.keys(merged)
    settings = found.validated(values, merged)
    if found.faults:
        raise FaultySettings(found.faults, settings, found.fields, found.warnings)
    return Loaded(settings, tuple(found.warnings))


def _given(values: Mapping[str, str]) -> dict[str, str]:
    stripped = {name: value.strip() for name, value in values.items()}
    return {
        name: value
        for name, value in stripped.items()
        if value and not value.lower().startswith("your_")
    }


def _without_replaced(from_file: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """What ``.env`` gives and the environment does not, be it by a value or by the name of a file."""
    given, replaced = _given(from_file), set(_given(environ))
    for in_file, name in _IN_FILES.items():
        if {in_file, name} & replaced:
            given.pop(in_file, None)
            given.pop(name, None)
    return given


def _faults_in_address(name: str, url: str) -> list[str]:
    schemes = _ADDRESSES[name]
    try:
        parts = urlsplit(url)
        if name == "DATABASE_URL" and parts.scheme in schemes:
            try:
                PostgresAddress.of(url)  # it may have several hosts, each with its port
            except ConfigurationError as error:
                return list(error.faults)
            return []
        if name == "TWELVEDATA_WS_URL" and parts.scheme in schemes:
            parse_uri(url)  # stricter: no fragment, no user without a password
        understood = parts.port is None or parts.port >= 0
    except (ValueError, InvalidURI):
        understood = False
    else:
        # A password with a bare / or @ is cut there: the rest would be taken, and shown, as a name.
        stray = "@" in parts.path + parts.fragment or parts.netloc.count("@") > 1
        stray = stray or ("@" in parts.query and not parts.path)
        understood = understood and (not stray or parts.scheme == "unix")
    if not understood:
        # Without the parser's words: they may quote the part with the password.
        return [
            f"{name} cannot be understood. It looks like {schemes[0]}://user:password@host:port/"
            "name; special characters in the password are percent-encoded."
        ]
    if parts.scheme not in schemes:
        return [f"{name} must begin with {' or '.join(s + '://' for s in schemes)}."]
    return []


class _Findings:
    """What is found while settings are read. ``fields`` are those whose given value cannot be used."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.warnings: list[str] = []
        self.fields: set[str] = set()

    def with_files(self, given: dict[str, str]) -> dict[str, str]:
        """``given`` with the values that stand in files of their own."""
        read = dict(given)
        for in_file, name in _IN_FILES.items():
            if in_file not in given:
                continue
            try:
                if name in given:
                    raise ValueError(f"{name} and {in_file} are both set; keep one of them.")
                read |= _given({name: content_of(in_file, Path(given[in_file]))})
            except ValueError as fault:
                self.faults.append(str(fault))
                self.fields.add("keys" if name in _KEY_NAMES else name.lower())
        return read

    def keys(self, merged: Mapping[str, str]) -> tuple[ApiKey, ...]:
        by_label: dict[str, ApiKey] = {}
        seen: dict[str, str] = {}
        for variable, label, group in _KEY_VARIABLES:
            secret = merged.get(variable)
            if secret is None:
                continue
            if label in by_label:
                if by_label[label].secret != secret:
                    self.warnings.append(
                        f"{variable} is ignored: key {label} is set by another variable."
                    )
                continue
            if secret in seen:
                if seen[secret] != variable:
                    self.warnings.append(
                        f"{variable} repeats the key of {seen[secret]}; it counts once."
                    )
                continue
            seen[secret] = variable
            try:
                by_label[label] = ApiKey(label=label, secret=secret, group=group)
            except ConfigurationError as error:
                self.faults.append(f"{variable}: {error}")
                self.fields.add("keys")
        return tuple(by_label[label] for label in sorted(by_label))

    def validated(self, values: dict[str, Any], given: Mapping[str, str]) -> Settings:
        """The settings without what is faulty: rules across fields only run once each is valid."""
        while True:
            try:
                return Settings(**values)
            except ConfigurationError as error:  # no home directory to put STATE_DIR into
                self.faults += error.faults
                self.fields.add("state_dir")
                values["state_dir"] = Path()
            except ValidationError as error:
                self._drop_faulty(error, values, given)

    def _drop_faulty(
        self, error: ValidationError, values: dict[str, Any], given: Mapping[str, str]
    ) -> None:
        items = error.errors(include_url=False)
        faulty = {str(item["loc"][0]): item["msg"] for item in items if item["loc"]}
        for name, message in faulty.items():
            shown = f"={given[name.upper()]!r}" if name.upper() in given else ""
            self.faults.append(f"{name.upper()}{shown}: {message.removeprefix('Value error, ')}.")
        named = set(faulty)
        for item in items:
            if not item["loc"]:
                faults = item["msg"].removeprefix("Value error, ").split("\n")
                self.faults += faults
                named |= {name.lower() for name in re.findall(r"[A-Z][A-Z0-9_]+", " ".join(faults))}
        dropped = named & values.keys()
        if not dropped:  # nothing is left that could be wrong: the same again would last for ever
            raise ConfigurationError(*dict.fromkeys(self.faults))
        self.fields |= dropped
        for name in dropped:
            del values[name]


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


def _unknown(values: Mapping[str, str], where: str) -> list[str]:
    known = _VARIABLES | _KEY_NAMES | _IN_FILES.keys()
    warnings = []
    for name in values:
        if name in known or name.startswith(("POSTGRES_", "COMPOSE_", "EWS_")):
            continue
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        warnings.append(f"{name} {where} is not a setting of this service and is ignored.{hint}")
    return warnings
