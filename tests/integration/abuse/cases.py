"""Seeded abuse: what a client may send that it should not. Each case is determined by seed and number."""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from .rfc6455 import BINARY, CLOSE, CONT, PING, PONG, TEXT

KEY: Final = b"dGhlIHNhbXBsZSBub25jZQ=="
_LINES: Final = (
    b"Host: fuzz",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Key: " + KEY,
    b"Sec-WebSocket-Version: 13",
)
OFFER: Final = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
HANDSHAKE: Final = b"\r\n".join((b"GET /ws HTTP/1.1", *_LINES, b"", b""))
DEFLATE_HANDSHAKE: Final = b"\r\n".join((b"GET /ws HTTP/1.1", *_LINES, OFFER, b"", b""))

_BAD_UTF8: Final = (
    *(b"\xff", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80"),
    *(
        b"ab\x80",
        b"\xce",
        b"\xf0\x9f\x98",
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80",
    ),
)
_GOOD_TEXT: Final = (
    *(b'{"type":"heartbeat"}', b"{}", b"[1]", b"", b"null", "κόσμε €𝄞".encode(), b'{"type":"x"}'),
    *(b'{"type":"subscribe","channels":["bars"]}', b'{"type":"unsubscribe","symbols":["NOPE99"]}'),
    b'{"type":"resume","symbol":"NOPE99","epoch":1,"offset":1}',
    b"[" * 5000,
)


@dataclass(frozen=True)
class Case:
    """``parts`` are sent one after the other; ``ending``: what the client does when it may go on."""

    kind: str
    parts: tuple[bytes, ...]
    http: bool = False  # the parts are the request itself; nothing is sent behind it
    deflate: bool = False  # the client has offered permessage-deflate
    early: bool = False  # the first part leaves together with the handshake
    ending: Literal["goodbye", "reset"] = "goodbye"

    @property
    def stream(self) -> bytes:
        return b"".join(self.parts)


def make_case(seed: int, number: int) -> Case:
    """Case ``number`` of the run ``seed``."""
    rng = random.Random(f"{seed}:{number}")
    name, make = rng.choices(_KINDS, _WEIGHTS)[0]
    stream = make(rng)
    if name.startswith("http"):
        return Case(name, _split(rng, stream), http=True)
    ending: Literal["goodbye", "reset"] = "reset" if rng.random() < 0.05 else "goodbye"
    deflate = name == "compressed" or rng.random() < 0.15
    return Case(
        name, _split(rng, stream), deflate=deflate, early=rng.random() < 0.05, ending=ending
    )


def _split(rng: random.Random, stream: bytes) -> tuple[bytes, ...]:
    how = rng.random()
    if how < 0.5 or len(stream) < 2:
        return (stream,)
    if how < 0.6 and len(stream) <= 60:
        return tuple(bytes((byte,)) for byte in stream)
    cuts = sorted(rng.sample(range(1, len(stream)), min(rng.randint(1, 4), len(stream) - 1)))
    return tuple(stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True))


def frame(
    rng: random.Random,
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    masked: bool = True,
    form: int | None = None,
    claim: int | None = None,
) -> bytes:
    """A client's frame. ``form``: bytes of the length field beyond its first; ``claim``: a false length."""
    size = len(payload) if claim is None else claim
    if form is None:
        form = 0 if size < 126 else 2 if size < 65536 else 8
    short = {0: size & 127, 2: 126, 8: 127}[form]
    extended = (size & ((1 << 8 * form) - 1)).to_bytes(form) if form else b""
    mask = rng.randbytes(4) if masked else b""
    if masked:
        whole = (mask * (len(payload) // 4 + 1))[: len(payload)]
        payload = (int.from_bytes(payload) ^ int.from_bytes(whole)).to_bytes(len(payload))
    return (
        bytes((fin << 7 | reserved << 4 | opcode, masked << 7 | short)) + extended + mask + payload
    )


# --- streams of frames ----------------------------------------------------------------------------


def _message(rng: random.Random) -> bytes:
    text = rng.choice(_GOOD_TEXT)
    opcode = TEXT if rng.random() < 0.7 else BINARY
    if rng.random() < 0.6:
        return frame(rng, opcode, text)
    cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randint(1, 3)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    out = b""
    for number, piece in enumerate(pieces):
        out += frame(rng, CONT if number else opcode, piece, fin=number == len(pieces) - 1)
        if rng.random() < 0.3:
            out += frame(rng, rng.choice((PING, PONG)), rng.randbytes(rng.randint(0, 125)))
    return out


def _conversation(rng: random.Random) -> bytes:
    out = b""
    for _ in range(rng.randint(1, 5)):
        out += (
            _message(rng)
            if rng.random() < 0.7
            else frame(rng, rng.choice((PING, PONG)), rng.randbytes(rng.randint(0, 125)))
        )
    return out + (_good_close(rng) if rng.random() < 0.3 else b"")


def _good_close(rng: random.Random) -> bytes:
    code = rng.choice((1000, 1001, 1003, 1008, 3000, 4000, 4999))
    return frame(rng, CLOSE, rng.choice((b"", code.to_bytes(2), code.to_bytes(2) + b"bye")))


def _one_wrong_frame(rng: random.Random) -> bytes:
    before = _conversation_without_close(rng) if rng.random() < 0.5 else b""
    opcode = rng.choice((CONT, TEXT, BINARY, CLOSE, PING, PONG))
    payload = rng.randbytes(rng.randint(0, 200))
    wrong = rng.choice(
        (
            lambda: frame(rng, opcode, payload[:100], masked=False),
            lambda: frame(rng, opcode, payload[:100], reserved=rng.randint(1, 7)),
            lambda: frame(rng, rng.choice((3, 4, 5, 6, 7, 11, 12, 13, 14, 15)), payload),
            lambda: frame(rng, rng.choice((CLOSE, PING, PONG)), payload[:50], fin=False),
            lambda: frame(
                rng, rng.choice((CLOSE, PING, PONG)), rng.randbytes(rng.randint(126, 300))
            ),
            lambda: frame(rng, CONT, payload),
            lambda: frame(rng, TEXT, b"a", fin=False) + frame(rng, TEXT, b"b"),
            lambda: frame(rng, opcode, payload[:20], form=rng.choice((2, 8))),
        )
    )()
    return before + wrong + (_conversation(rng) if rng.random() < 0.5 else b"")


def _conversation_without_close(rng: random.Random) -> bytes:
    return b"".join(_message(rng) for _ in range(rng.randint(1, 3)))


def _noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(1, 300))


def _mutated(rng: random.Random) -> bytes:
    stream = bytearray(_conversation(rng))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(stream)) if stream else 0
        match rng.randrange(4):
            case 0 if stream:
                stream[at] ^= 1 << rng.randrange(8)
            case 1 if stream:
                stream[at] = rng.randrange(256)
            case 2 if stream:
                del stream[at : at + rng.randint(1, 4)]
            case _:
                stream[at:at] = rng.randbytes(rng.randint(1, 4))
    return bytes(stream)


def _lengths(rng: random.Random) -> bytes:
    size = rng.choice((0, 1, 125, 126, 127, 128, 65535, 65536, 65537, 70_000))
    claim = rng.choice((None, None, size + 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, 1 << 20))
    opcode = rng.choice((TEXT, BINARY, PING))
    form = 8 if claim is not None and claim > 65535 else None
    first = b"" if rng.random() < 0.7 else frame(rng, BINARY, bytes(40_000), fin=False)
    if first:
        opcode = CONT
    return first + frame(rng, opcode, b"x" * size, form=form, claim=claim)


def _utf8(rng: random.Random) -> bytes:
    text = "ok €".encode() * rng.randint(0, 3) + rng.choice(_BAD_UTF8)
    if rng.random() < 0.3:
        text += b" more"
    if rng.random() < 0.5:
        return frame(rng, TEXT, text)
    cut = rng.randint(0, len(text))
    middle = frame(rng, PING, b"between") if rng.random() < 0.5 else b""
    fin = rng.random() < 0.8
    return frame(rng, TEXT, text[:cut], fin=False) + middle + frame(rng, CONT, text[cut:], fin=fin)


def _fragments(rng: random.Random) -> bytes:
    out = b""
    for _ in range(rng.randint(2, 12)):
        opcode = rng.choice((CONT, CONT, CONT, TEXT, BINARY, PING))
        out += frame(
            rng, opcode, b"z" * rng.randint(0, 50), fin=opcode == PING or rng.random() < 0.3
        )
    return out


def _flood(rng: random.Random) -> bytes:
    count = rng.choice((50, 90, 101, 150, 450, 600))
    opcode = rng.choice((PING, PONG, TEXT, CONT))
    if opcode == CONT:
        return frame(rng, BINARY, fin=False) + frame(rng, CONT, fin=False) * count
    return frame(rng, opcode, b"{}") * count


def _closes(rng: random.Random) -> bytes:
    code = rng.choice(
        (
            0,
            1,
            999,
            1004,
            1005,
            1006,
            1015,
            1016,
            1100,
            2000,
            2999,
            5000,
            65535,
            rng.randrange(65536),
        )
    )
    reason = rng.choice((b"", b"bye", rng.choice(_BAD_UTF8), b"x" * 123))
    payload = rng.choice((b"", b"\x03", code.to_bytes(2) + reason, b"\x03\xe8" + reason))
    after = rng.choice((b"", _noise(rng), _conversation(rng), b"\x88\x80\0\0\0\0" * 200))
    return frame(rng, CLOSE, payload) + after


def _deflate(rng: random.Random, payload: bytes) -> bytes:
    compressor = zlib.compressobj(rng.choice((0, 1, 9)), zlib.DEFLATED, -rng.choice((9, 15)))
    flush = rng.choice((zlib.Z_SYNC_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FINISH))
    return (compressor.compress(payload) + compressor.flush(flush)).removesuffix(b"\0\0\xff\xff")


def _compressed(rng: random.Random) -> bytes:
    out = b""
    for _ in range(rng.randint(1, 4)):
        plain = rng.choice(
            (*_GOOD_TEXT, *_BAD_UTF8, b"a" * 65_536, b"a" * 65_537, bytes(5_000_000))
        )
        body = _deflate(rng, plain)
        match rng.randrange(5):
            case 0:
                at = rng.randrange(len(body))
                body = body[:at] + bytes((body[at] ^ 1 << rng.randrange(8),)) + body[at + 1 :]
            case 1:
                body = rng.randbytes(rng.randint(0, 60))
            case _:
                pass
        cut = rng.randint(0, len(body)) if rng.random() < 0.4 else len(body)
        opcode = rng.choice((TEXT, BINARY))
        out += frame(rng, opcode, body[:cut], reserved=4, fin=cut == len(body))
        if cut < len(body):
            reserved = 4 if rng.random() < 0.1 else 0
            out += frame(rng, CONT, body[cut:], reserved=reserved)
        if rng.random() < 0.3:
            out += _message(rng)
        if rng.random() < 0.1:
            out += frame(rng, PING, b"x", reserved=4)
    return out


# --- requests -------------------------------------------------------------------------------------


def _http_noise(rng: random.Random) -> bytes:
    return rng.choice(
        (
            rng.randbytes(rng.randint(1, 400)),
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"
            + rng.randbytes(100),  # TLS on the plain port
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET " + rng.randbytes(rng.randint(1, 60)) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\r\n" * rng.randint(1, 50),
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /%zz%00?%ff=\xff&a=%C3%28 HTTP/1.1\r\nHost: x\r\n\r\n",
        )
    )


def _http_half(rng: random.Random) -> bytes:
    return HANDSHAKE[: rng.randrange(1, len(HANDSHAKE))]


def _http_wrong_handshake(rng: random.Random) -> bytes:
    lines = list(_LINES)
    at = rng.randrange(len(lines))
    name, _, value = lines[at].partition(b": ")
    lines[at : at + 1] = rng.choice(
        (
            [],
            [lines[at], lines[at]],
            [name + b": " + rng.choice((b"", b"x", b"8", b"!!!", value + b"=", value * 300))],
            [name + b":" + value, b" folded: 1"],
            [name + b": " + rng.randbytes(8).replace(b"\n", b"-").replace(b"\r", b"-")],
            [lines[at], b"X-" + rng.randbytes(3).hex().encode() + b": \xe9\xff"],
            [lines[at], b"Transfer-Encoding: chunked"],
            [lines[at], b"Content-Length: " + rng.choice((b"5", b"-1", b"99999999999999999999"))],
            [lines[at], b"Sec-WebSocket-Extensions: permessage-deflate; bogus=1, x; ;,"],
            [lines[at], b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99"],
            [lines[at], b"Sec-WebSocket-Protocol: a, b,,\x80"],
            [lines[at], b"Origin: http://[bad"],
            [lines[at], b"Origin: https://evil.example"],
            [lines[at], *(b"X-%d: %d" % (n, n) for n in range(rng.choice((50, 200))))],
        )
    )
    target = rng.choice(
        (b"/ws", b"/ws/%FF", b"/ws/NOPE99", b"/ws?since=x&mode=\xff", b"/w\xe9", b"/none")
    )
    method = rng.choice((b"GET", b"GET", b"GET", b"POST", b"HEAD", b"get"))
    version = rng.choice((b"HTTP/1.1",) * 4 + (b"HTTP/1.0", b"HTTP/9.9"))
    return b"\r\n".join((b" ".join((method, target, version)), *lines, b"", b""))


def _http_pipelined(rng: random.Random) -> bytes:
    plain = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    body = b"POST /status HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    return rng.choice((plain, body)) * rng.randint(1, 3) + rng.choice(
        (HANDSHAKE, _noise(rng), plain, b"")
    )


_KINDS: Final[tuple[tuple[str, Callable[[random.Random], bytes]], ...]] = (
    ("conversation", _conversation),
    ("one wrong frame", _one_wrong_frame),
    ("noise", _noise),
    ("mutated", _mutated),
    ("lengths", _lengths),
    ("utf-8", _utf8),
    ("fragments", _fragments),
    ("flood", _flood),
    ("closes", _closes),
    ("compressed", _compressed),
    ("http noise", _http_noise),
    ("http half handshake", _http_half),
    ("http wrong handshake", _http_wrong_handshake),
    ("http pipelined", _http_pipelined),
)
_WEIGHTS: Final = (10, 20, 8, 20, 4, 10, 10, 2, 10, 8, 4, 3, 8, 2)
