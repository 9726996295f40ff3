"""Pixels to look at: a slice through a window, a class map in colour over it, and PNG bytes. Numpy and zlib only.

A 512 x 512 overlay costs about 35 ms and its PNG 30 ms of one core.
Shapes: H rows, W columns of a slice, h rows, w columns of a class map.
"""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from fastich import windowing
from fastich.class_map_grid import Floats, to_slice
from fastich.types import HuArray
from fastich.windowing import Window

Grey = NDArray[np.uint8]
Rgb = NDArray[np.uint8]

STRONGEST_ALPHA = 0.65
"""As in the pictures of ``fastich.explain``: the tissue below stays visible."""
ANCHORS = ((0, 0, 0), (80, 0, 110), (190, 40, 80), (245, 125, 20), (255, 245, 160))
"""Black, violet, red, orange, pale yellow at equal steps: lightness rises all the way, also for the colour-blind."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_COLOUR_TYPES = {2: 0, 3: 2}
"""Number of axes -> PNG colour type: greyscale, truecolour. Source: W3C PNG specification, 11.2.1."""
PNG_LEVEL = 3
"""zlib's: a CT slice is noise in its low bits, and level 9 takes ten times as long for 3 % fewer bytes."""


def grey(hu: HuArray, window: Window) -> Grey:
    """The slice ``hu`` [H, W] through ``window`` as uint8 [H, W], 0 black to 255 white."""
    return np.asarray(np.rint(windowing.window(hu, window) * 255), dtype=np.uint8)


def overlay(hu: HuArray, cam_hw: NDArray[np.floating], window: Window) -> Rgb:
    """The slice with the class map ``cam_hw`` [h, w] in colour over it, uint8 [H, W, 3].

    Colours run from the map's smallest to its largest value, whatever those are: they say where the network looked, not
    how sure it was. A flat map colours nothing.
    """
    share = _share(to_slice(cam_hw, (hu.shape[0], hu.shape[1])))
    alpha = STRONGEST_ALPHA * share[..., None] ** 2
    mixed = (1 - alpha) * grey(hu, window)[..., None] + alpha * colours(share)
    return np.asarray(np.rint(mixed), dtype=np.uint8)


def colours(share: Floats) -> Floats:
    """The colour of each value in 0..1: float64 [..., 3] in 0..255, linear between ``ANCHORS``."""
    at = np.linspace(0, 1, len(ANCHORS))
    channels = [np.interp(share, at, levels) for levels in zip(*ANCHORS, strict=True)]
    return np.stack(channels, axis=-1)


def _share(map_HW: Floats) -> Floats:
    """Where each value lies between the smallest (0) and the largest (1); all 0 for a flat map."""
    low, high = map_HW.min(), map_HW.max()
    if not high > low:
        return np.zeros_like(map_HW)
    return np.asarray((map_HW - low) / (high - low), dtype=np.float64)


def png(image: Grey | Rgb) -> bytes:
    """``image`` uint8 [H, W] or [H, W, 3] as a PNG file; equal images give equal bytes.

    Source: W3C PNG specification, 5.3 (chunks), 11.2 (IHDR, IDAT, IEND); every row with filter 0 (9.2).
    """
    assert image.dtype == np.uint8, "8 bits a sample"
    height, width = image.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, PNG_COLOUR_TYPES[image.ndim], 0, 0, 0)
    rows = np.pad(image.reshape(height, -1), ((0, 0), (1, 0)))  # the filter type of each row: 0, none
    return b"".join(
        (
            PNG_SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), PNG_LEVEL)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
