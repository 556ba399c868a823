"""A picture of few colours as a PNG file, in the simplest of its forms: a palette, and no filter."""

from __future__ import annotations

import struct
import zlib

import numpy as np

__all__ = ["encoded"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PALETTE = 3  # the colour type


def encoded(pixels: np.ndarray, palette: np.ndarray, transparent: int) -> bytes:
    """The bytes of the file.

    Args:
        pixels: [rows, columns] numbers of colours, below 256.
        palette: [colours, 3] red, green and blue, 0 to 255.
        transparent: the number of the colour that is not painted.
    """
    rows, columns = pixels.shape
    scanlines = np.zeros((rows, columns + 1), np.uint8)  # each begins with the number of its filter: none
    scanlines[:, 1:] = pixels
    opacity = np.full(len(palette), 255, np.uint8)
    opacity[transparent] = 0
    return SIGNATURE + b"".join(
        (
            _chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, PALETTE, 0, 0, 0)),
            _chunk(b"PLTE", palette.astype(np.uint8).tobytes()),
            _chunk(b"tRNS", opacity.tobytes()),
            _chunk(b"IDAT", zlib.compress(scanlines.tobytes(), 9)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
