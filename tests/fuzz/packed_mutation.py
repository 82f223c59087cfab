"""Damages what lies within checksums and headers of its own: arrays of numpy, chunks of PNGs."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import zlib

import numpy as np

from tests.data_prep.raw_data import png_chunk
from tests.fuzz.mutation import change_bytes, change_json

_PNG_START = b"\x89PNG\r\n\x1a\n"
_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"acTL", b"fdAT", b"zTXt", b"iCCP", b"eXIf", b"IDAT")
_DTYPES = ("<u8", "<i8", "<f8", ">u8", "<u4", "|u1", "<f2", "|b1", "<c16", "<U3", "<M8[s]")


def change_array(chance: random.Random, content: bytes) -> bytes:
    """An array of numpy has other values, another type or another shape; a text is other JSON."""
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception:  # a damaged array raises anything
        return content
    changed = io.BytesIO()
    with contextlib.suppress(Exception):  # not every type becomes every other
        match chance.randrange(6):
            case _ if array.dtype.kind == "U" and not array.shape:
                text = change_json(chance, str(array).encode())
                array = np.array(text.decode(errors="surrogateescape"))
            case 0:
                array = array.astype(chance.choice(_DTYPES))
            case 1:
                array = array[: chance.randrange(len(array) + 1)]
            case 2:
                array = np.concatenate([array, array])
            case 3:
                array = array.reshape(chance.choice([(1, -1), (-1, 1), (-1,)]))
            case 4:
                array = array.reshape(-1)[0]
            case _:
                flat = bytearray(array.tobytes())
                place = chance.randrange(len(flat))
                flat[place : place + 8] = chance.randbytes(len(flat[place : place + 8]))
                array = np.frombuffer(bytes(flat), array.dtype).reshape(array.shape)
    np.save(changed, array, allow_pickle=False)
    return changed.getvalue()


def change_file(chance: random.Random, content: bytes) -> bytes:
    """The same of an array behind one byte, which says which file it is."""
    return content[:1] + change_array(chance, content[1:])


def change_chunk(chance: random.Random, content: bytes) -> bytes:
    """A chunk of a PNG holds something else, is there twice or gone; its checksum is right."""
    if not content.startswith(_PNG_START):
        return change_bytes(chance, content)
    chunks, place = [], len(_PNG_START)
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        kind = content[place + 4 : place + 8]
        chunks.append((kind, content[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return content
    row = chance.randrange(len(chunks))
    kind, inner = chunks[row]
    match chance.randrange(6):
        case 0:
            del chunks[row]
        case 1:
            chunks.insert(chance.randrange(len(chunks)), chunks[row])
        case 2:
            chunks[row] = chance.choice(_CHUNKS), inner
        case 3 if kind == b"IDAT":
            with contextlib.suppress(zlib.error):
                chunks[row] = kind, zlib.compress(change_bytes(chance, zlib.decompress(inner)))
        case _:
            chunks[row] = kind, change_bytes(chance, inner)
    return _PNG_START + b"".join(png_chunk(*chunk) for chunk in chunks)
