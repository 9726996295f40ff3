"""GET /studies/{uid}/slices/{n}.png: slice n of the newest result, through a window, with a class map over it.

Read again from the spool with the same code that scored it; a slice costs 10 ms (grey) to 70 ms (with a class map) of
one core at 512 px and is kept in memory (``MAX_CACHE_BYTES``) while people scroll. "Not for diagnosis" is the page's
to say: pixels stay as they are.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fastich.dicom import Decoder, read_file
from fastich.errors import DicomError
from fastich.labels import LABELS
from fastich.serve import render
from fastich.serve.entities import Study
from fastich.serve.web import view
from fastich.serve.web.api import Refusal, find_study
from fastich.serve.web.parts import Parts, parts_of
from fastich.serve.web.paths import STUDY
from fastich.types import HuArray
from fastich.windowing import Window, parse_windows, resize_area

MAX_CACHE_BYTES = 64 * 2**20
MAX_MAP_STUDIES = 4
TISSUE_HU = -200
"""Air stays black under a class map: a bleed is in the head, and a cell in the air says nothing (``class_maps.py``)."""
SMALLEST, LARGEST = 32, 512
"""Of a thumbnail, pixels."""
HU_LIMIT, WIDTH_LIMIT = 32768.0, 65536.0

T = TypeVar("T")
Maps = dict[tuple[str, int], NDArray[np.float32]]


class Lru(Generic[T]):
    """The newest values up to a total cost."""

    def __init__(self, limit: int, cost: Callable[[T], int]) -> None:
        self._limit, self._cost = limit, cost
        self._lock = threading.Lock()
        self._total = 0
        self._kept: OrderedDict[tuple[Any, ...], T] = OrderedDict()

    def get(self, key: tuple[Any, ...]) -> T | None:
        """The value of ``key``, now the newest."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: tuple[Any, ...], value: T) -> None:
        """Keep a value, drop the oldest."""
        with self._lock:
            old = self._kept.pop(key, None)
            self._total += self._cost(value) - (0 if old is None else self._cost(old))
            self._kept[key] = value
            while self._total > self._limit and len(self._kept) > 1:
                self._total -= self._cost(self._kept.popitem(last=False)[1])


@dataclass(kw_only=True, slots=True)
class Darkroom:
    """Decoder and caches of one application; close it."""

    decoder: Decoder = field(default_factory=Decoder)
    pictures: Lru[bytes] = field(default_factory=lambda: Lru(MAX_CACHE_BYTES, len))
    maps: Lru[Maps] = field(default_factory=lambda: Lru(MAX_MAP_STUDIES, lambda _: 1))

    def close(self) -> None:
        """End the decoder's process."""
        self.decoder.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a picture is asked to be; ``side`` in pixels makes it small, 0 leaves it."""

    window: Window
    overlay: str
    side: int


def picture(request: Request) -> Response:
    """The PNG of a slice."""
    parts, darkroom = parts_of(request), request.app.state.darkroom
    asked = _asked(request)
    found = find_study(parts, request.path_params["uid"])
    rows = view.slices(found.document)
    number = request.path_params["n"]
    if number >= len(rows):
        raise Refusal(404, f"no such slice; the study has {len(rows)} scored ones")
    row = rows[number]
    key = (row["path"], row["frame"], asked, found.scored_revision if asked.overlay != "none" else 0)
    content = darkroom.pictures.get(key)
    if content is None:
        content = develop(parts, darkroom, found, row, asked)
        darkroom.pictures.put(key, content)
    return Response(content, media_type="image/png")


def _asked(request: Request) -> Asked:
    """The query, checked.

    Raises:
        Refusal: a value means nothing (400).
    """
    query = request.query_params
    try:
        windows = parse_windows(query.get("window", "brain"))
        window = windows[0]
        fits = len(windows) == 1 and abs(window.center_hu) <= HU_LIMIT and window.width_hu <= WIDTH_LIMIT
    except ValueError:
        fits = False
    if not fits:
        raise Refusal(400, "window: expected brain, subdural, bone, soft, stroke or center/width in HU")
    overlay, side = query.get("overlay", "none"), query.get("side", "0")
    if overlay not in (*LABELS, "none"):
        raise Refusal(400, f"overlay: expected none, {', '.join(LABELS[:-1])} or {LABELS[-1]}")
    if side != "0" and not (side.isascii() and side.isdecimal() and SMALLEST <= int(side) <= LARGEST):
        raise Refusal(400, f"side: expected {SMALLEST} to {LARGEST} pixels")
    return Asked(window=window, overlay=overlay, side=int(side))


def develop(parts: Parts, darkroom: Darkroom, study: Study, row: dict[str, Any], asked: Asked) -> bytes:
    """Read a slice and make its PNG.

    Raises:
        Refusal: its pixels are gone, or it has no class map (404), or they cannot be read any more (500).
    """
    hu = read_pixels(parts, darkroom, row)
    if asked.side:
        hu = np.rint(resize_area(hu, asked.side)).astype(np.int16)
    if asked.overlay == "none":
        return render.png(render.grey(hu, asked.window))
    cam = _maps(parts, darkroom, study).get((row["path"], row["frame"]))
    if cam is None:
        raise Refusal(404, "no class map is stored for this slice")
    coloured = render.overlay(hu, cam[LABELS.index(asked.overlay)], asked.window)
    plain = render.grey(hu, asked.window)[..., None]
    return render.png(np.where((hu > TISSUE_HU)[..., None], coloured, plain))


def read_pixels(parts: Parts, darkroom: Darkroom, row: dict[str, Any]) -> HuArray:
    """The pixels [H, W] of a row of ``view.slices``."""
    path = parts.spool.path_of(row["path"])
    if not path.is_file():
        raise Refusal(404, "the pixels of this study were deleted (retention.pixels_days)")
    try:
        frames = read_file(path, decoder=darkroom.decoder, allow_deflated=False)
    except DicomError as error:
        raise Refusal(500, f"this slice can no longer be read: {error.reason.value}") from error
    for one in frames:
        if one.header.frame == row["frame"]:
            return one.hu
    raise Refusal(404, "no such frame")


def _maps(parts: Parts, darkroom: Darkroom, study: Study) -> Maps:
    """The class maps of a study by place; kept, for one scroll asks for all of them."""
    key = (study.study_uid, study.revision, study.num_waiting)
    found: Maps | None = darkroom.maps.get(key)
    if found is None:
        scored = parts.store.scored_slices(study.study_uid)
        found = {(one.header.path, one.header.frame): one.answer.cam for one in scored if one.answer.cam is not None}
        darkroom.maps.put(key, found)
    return found


ROUTES = [Route(STUDY + "/slices/{n:int}.png", picture)]
