"""Damages contents of files: blindly, and by what is known of their format."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

Change = Callable[[random.Random, bytes], bytes]

_NUMBERS = (0, 1, 127, 128, 255, 256, 32767, 65535, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 62)
_TEXTS = (
    *("", " ", "\0", "\n", "\x1b[2J", "../../x", "/etc/passwd", "-rf", "$(id)", "<script>", "NaN"),
    *("a" * 300, "\u202e", "\ud800", "\N{ARABIC-INDIC DIGIT THREE}", "²", "1e999", "9" * 5000),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 0.5, -0.0, 1e308, 10**30, 10**400, 1 << 63, 1 << 64),
    *(float("nan"), float("inf"), float("-inf"), [], {}, [None], {"": None}, [[]]),
    *_TEXTS,
)
_DEEP = b"[" * 100_000
_CHECKSUM = slice(148, 156)


def damaged(chance: random.Random, corpus: Sequence[bytes], changes: Sequence[Change]) -> bytes:
    """One of the corpus, changed one to three times."""
    content = chance.choice(corpus)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        change = chance.choice((*changes, *changes, change_bytes, splice_of(corpus)))
        content = change(chance, content)
    return content


def change_bytes(chance: random.Random, content: bytes) -> bytes:
    """Without any knowledge of the format."""
    if not content:
        return chance.randbytes(chance.randrange(40))
    place = chance.randrange(len(content))
    some = min(chance.choice((1, 2, 4, 8, 16, 100, 512)), len(content) - place)
    before, middle, after = content[:place], content[place : place + some], content[place + some :]
    match chance.randrange(9):
        case 0:
            return before
        case 1:
            return before + after
        case 2:
            return before + middle * chance.choice((2, 3, 50)) + after
        case 3:
            return before + chance.randbytes(some) + after
        case 4:
            return before + bytes(some) + after
        case 5:
            return before + bytes([middle[0] ^ 1 << chance.randrange(8)]) + middle[1:] + after
        case 6:
            order = chance.choice(("little", "big"))
            number = chance.choice(_NUMBERS) & (1 << 8 * some) - 1
            return before + number.to_bytes(some, order) + after  # type: ignore[arg-type]
        case 7:
            return before + chance.choice(_TEXTS).encode("utf-8", "surrogatepass") + after
        case _:
            return content + chance.choice((middle, b"\0", b"\n", content))


def splice_of(corpus: Sequence[bytes]) -> Change:
    """The beginning of the content, and the end of another."""

    def splice(chance: random.Random, content: bytes) -> bytes:
        other = chance.choice(corpus)
        cut = chance.randrange(len(content) + 1)
        begin = chance.choice((min(cut, len(other)), chance.randrange(len(other) + 1)))
        return content[:cut] + other[begin:]

    return splice


def change_text(chance: random.Random, content: bytes) -> bytes:
    """A line twice, in another place or gone; a word that is another one."""
    lines = content.splitlines(keepends=True)
    if not lines:
        return content
    row = chance.randrange(len(lines))
    match chance.randrange(4):
        case 0:
            lines.insert(chance.randrange(len(lines)), lines[row])
        case 1:
            del lines[row]
        case 2:
            words = lines[row].split(b" ")
            words[chance.randrange(len(words))] = chance.choice(_TEXTS).encode(errors="replace")
            lines[row] = b" ".join(words)
        case _:
            lines[row] = lines[row].strip() + chance.choice((b"\r", b"\r\n", b"\x0b", b"\x85", b""))
    return b"".join(lines)


def change_json(chance: random.Random, content: bytes) -> bytes:
    """A value of the JSON is another one, or gone, or there under another name."""
    try:
        found = json.loads(content)
        places = list(_places(found))
    except (ValueError, RecursionError):
        return content
    if not places or not chance.randrange(200):
        return _DEEP
    holder, key = chance.choice(places)
    match chance.randrange(6):
        case 0:
            del holder[key]
        case 1:
            other, where = chance.choice(places)
            with contextlib.suppress(KeyError, IndexError):
                holder[key] = other[where]
        case 2 if isinstance(holder, dict):
            holder[chance.choice((*_TEXTS, f"{key}x"))] = holder[key]
        case 3 if not chance.randrange(9):  # deeper than Python can show what it has read
            for _ in range(chance.randrange(1000)):
                holder[key] = [holder[key]]
        case 3 if isinstance(holder[key], int | float):
            holder[key] = chance.choice((-holder[key], holder[key] + 1, str(holder[key])))
        case _:
            holder[key] = chance.choice(_VALUES)
    with contextlib.suppress(ValueError, RecursionError):  # a circle
        return json.dumps(found, ensure_ascii=chance.random() < 0.5).encode(errors="surrogatepass")
    return content


def _places(value: Any) -> Any:
    """All that holds a value, and the key or index that it has there."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def change_json_lines(chance: random.Random, content: bytes) -> bytes:
    """The same in one line of many."""
    lines = content.split(b"\n")
    row = chance.randrange(len(lines))
    lines[row] = change_json(chance, lines[row])
    return b"\n".join(lines)


def change_tar(chance: random.Random, content: bytes) -> bytes:
    """A field of a header is another one, and the header's checksum fits it."""
    starts = [
        n for n in range(0, len(content) - 511, 512) if content[n + 257 : n + 262] == b"ustar"
    ]
    if not starts:
        return content
    start = chance.choice(starts)
    header = bytearray(content[start : start + 512])
    match chance.randrange(6):
        case 0:
            size = chance.choice((b"00000000000", b"77777777777", b"-0000000001", b"\x80" * 11))
            header[124:136] = size + b"\0"
        case 1:
            header[124:136] = b"%011o\0" % chance.randrange(2000)
        case 2:
            header[124:136] = b"\xff" * 4 + chance.randbytes(8)
        case 3:
            header[156] = chance.choice(b"\x0001234567LKxgSNX")
        case 4:
            name = chance.choice(_TEXTS).encode("utf-8", "surrogatepass")[:100]
            header[:100] = name.ljust(100, b"\0")
        case _:
            place = chance.randrange(512)
            header[place] = chance.randrange(256)
    header[_CHECKSUM] = b" " * 8
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    return content[:start] + bytes(header) + content[start + 512 :]


def inside_gzip(changes: Sequence[Change]) -> Change:
    """One of the changes, of what is compressed."""

    def change(chance: random.Random, content: bytes) -> bytes:
        with contextlib.suppress(OSError, EOFError, zlib.error):
            inner = gzip.decompress(content)
            return gzip.compress(chance.choice(changes)(chance, inner), 1, mtime=0)
        return content

    return change


def inside_tar(changes: Sequence[Change]) -> Change:
    """One of the changes, of the content of a file in the tar; its header fits."""

    def change(chance: random.Random, content: bytes) -> bytes:
        try:
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                files = [(each.name, archive.extractfile(each)) for each in archive]
                contents = [(name, file.read()) for name, file in files if file is not None]
        except Exception:  # a damaged tar raises anything
            return content
        return pack_tar(_one_changed(chance, contents, changes))

    return change


def inside_zip(changes: Sequence[Change]) -> Change:
    """One of the changes, of the content of a file in the zip; its checksum fits."""

    def change(chance: random.Random, content: bytes) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                contents = [(name, archive.read(name)) for name in archive.namelist()]
        except Exception:  # a damaged zip raises anything
            return content
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, inner in _one_changed(chance, contents, changes):
                archive.writestr(zipfile.ZipInfo(name), inner)
        return packed.getvalue()

    return change


def _one_changed(
    chance: random.Random, contents: list[tuple[str, bytes]], changes: Sequence[Change]
) -> list[tuple[str, bytes]]:
    if contents:
        row = chance.randrange(len(contents))
        name, inner = contents[row]
        match chance.randrange(12):
            case 0:
                del contents[row]
            case 1:
                contents[row] = (name + "x", inner)
            case _:
                contents[row] = (name, chance.choice(changes)(chance, inner))
    return contents


def pack_tar(contents: Sequence[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar of these files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:", format=form) as archive:
        for name, inner in contents:
            member = tarfile.TarInfo(name[:90])
            member.size = len(inner)
            archive.addfile(member, io.BytesIO(inner))
    return packed.getvalue()
