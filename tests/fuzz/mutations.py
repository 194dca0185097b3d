"""Mutations of encoded files: of any bytes, and of a format's own parts, with lengths and sums that fit."""

import random
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress

NUMBERS = (0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Where arithmetic on sides, lengths and offsets goes wrong."""
HEADER_BYTES = 96
Mutation = Callable[[bytes, random.Random], bytes]


def place(data: bytes, source: random.Random) -> int:
    """A position; half of them in the header."""
    return source.randrange(min(len(data), HEADER_BYTES) if source.random() < 0.5 else len(data))


def flipped(data: bytes, source: random.Random) -> bytes:
    """One bit is another."""
    found, at = bytearray(data), place(data, source)
    found[at] ^= 1 << source.randrange(8)
    return bytes(found)


def numbered(data: bytes, source: random.Random) -> bytes:
    """A field of one, two or four bytes holds a number of `NUMBERS`."""
    at, width = place(data, source), source.choice((1, 2, 4))
    number = source.choice(NUMBERS) % 256**width
    return data[:at] + number.to_bytes(width, source.choice(("big", "little"))) + data[at + width :]


def cut(data: bytes, source: random.Random) -> bytes:
    """The end is missing."""
    return data[: place(data, source)]


def removed(data: bytes, source: random.Random) -> bytes:
    """A piece is missing."""
    at = place(data, source)
    return data[:at] + data[at + source.choice((1, 2, 4, 64)) :]


def doubled(data: bytes, source: random.Random) -> bytes:
    """A piece stands twice."""
    at, size = place(data, source), source.choice((1, 2, 4, 64, 512))
    return data[: at + size] + data[at:]


def noisy(data: bytes, source: random.Random) -> bytes:
    """A piece is noise."""
    at, size = place(data, source), source.choice((1, 4, 32, 200))
    return data[:at] + source.randbytes(size) + data[at + size :]


def moved(data: bytes, source: random.Random) -> bytes:
    """Two pieces have changed places."""
    a, b, size = place(data, source), place(data, source), source.choice((1, 4, 32))
    a, b = sorted((a, b))
    if b < a + size:
        return flipped(data, source)
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


ANYWHERE: tuple[Mutation, ...] = (flipped, numbered, numbered, cut, removed, doubled, noisy, moved)


def scattered(data: bytes, source: random.Random) -> bytes:
    """One to eight mutations that know nothing of the format."""
    for _ in range(source.choice((1, 1, 2, 3, 8))):
        data = source.choice(ANYWHERE)(data, source) if data else data
    return data


def png(data: bytes, source: random.Random) -> bytes:
    """Chunks of a PNG, with lengths and sums that fit; what IDAT holds is unpacked before."""
    parts, at = [], 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    return data[:8] + b"".join(_png_chunk(*part) for part in rearranged(parts, source, _png_body))


def _png_body(kind: bytes, body: bytes, source: random.Random) -> bytes:
    if kind == b"IDAT" and source.random() < 0.5:
        with suppress(zlib.error):  # an animation has several, or it is changed for the second time
            return zlib.compress(scattered(zlib.decompress(body), source))
    return scattered(body, source)


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def riff(data: bytes, source: random.Random) -> bytes:
    """Chunks of a WebP, with lengths that fit."""
    parts, at = [], 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append((data[at : at + 4], data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    chunks = rearranged(parts, source, lambda _kind, body, generator: scattered(body, generator))
    body = b"".join(kind + struct.pack("<I", len(c)) + c + b"\0" * (len(c) % 2) for kind, c in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def jpeg(data: bytes, source: random.Random) -> bytes:
    """Segments of a JPEG, with lengths that fit; the last is the first scan and all that follows."""
    parts, at = [], 2
    while at + 4 <= len(data) and data[at + 1] != 0xDA:
        size = int.from_bytes(data[at + 2 : at + 4])
        parts.append((data[at : at + 2], data[at + 4 : at + 2 + size]))
        at += 2 + size
    found = rearranged(parts, source, lambda _kind, body, generator: scattered(body, generator))
    scans = scattered(data[at:], source) if source.random() < 0.3 else data[at:]
    return data[:2] + b"".join(kind + struct.pack(">H", (len(b) + 2) % 65536) + b for kind, b in found) + scans


def tiff(data: bytes, source: random.Random) -> bytes:
    """Entries of a TIFF's first directory: tag, type, count or value."""
    order = "little" if data[:2] == b"II" else "big"
    start = int.from_bytes(data[4:8], order)
    entries = int.from_bytes(data[start : start + 2], order)
    found = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 4))):
        at = start + 2 + 12 * source.randrange(max(1, entries))
        offset, width = source.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 2)))
        found[at + offset : at + offset + width] = (source.choice(NUMBERS) % 256**width).to_bytes(width, order)
    return bytes(found)


Part = tuple[bytes, bytes]


def rearranged(
    parts: list[Part], source: random.Random, change: Callable[[bytes, bytes, random.Random], bytes]
) -> list[Part]:
    """Parts of which some are changed, missing, doubled, or elsewhere."""
    found = list(parts)
    for _ in range(source.choice((1, 1, 2, 4))):
        if not found:
            break
        at, other = source.randrange(len(found)), source.randrange(len(found))
        match source.choice(("change", "change", "change", "drop", "double", "swap")):
            case "change":
                found[at] = (found[at][0], change(*found[at], source))
            case "drop":
                del found[at]
            case "double":
                found.insert(other, found[at])
            case _:
                found[at], found[other] = found[other], found[at]
    return found


STRUCTURED: dict[str, Mutation] = {"PNG": png, "WEBP": riff, "JPEG": jpeg, "MPO": jpeg, "TIFF": tiff}


def mutated(kind: str, data: bytes, source: random.Random) -> bytes:
    """A file of a format after mutations: of its parts, or of any bytes, or of both.

    Args:
        kind: format, by Pillow's name.
        data: a whole file.
        source: of the choices.

    Returns:
        Most often no whole file.
    """
    structured = STRUCTURED.get(kind)
    if structured is None or source.random() < 0.4:
        return scattered(data, source)
    found = structured(data, source)
    return scattered(found, source) if found and source.random() < 0.2 else found
