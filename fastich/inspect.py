"""What a folder of DICOM files holds, before anything is done with it: ``python -m fastich.inspect DIR [--json]``.

Every file is read and decoded in full, because damage shows in the pixels only: about 1 ms a file and core, so a
whole head CT study takes well under a second. Each file is either used or named with its reason.
"""

import argparse
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from fastich import verb
from fastich.dicom import Decoder, Seen, Series, Study, find_files, group_studies, name_below, read_file
from fastich.errors import DicomError, FastichError
from fastich.types import Reject, SliceHeader

MIN_FILES_FOR_PROCESSES = 400
"""Below this, starting processes (0.3 s each) costs more than it saves."""

_JPEG = "1.2.840.10008.1.2.4."
SYNTAX_NAMES = {
    "1.2.840.10008.1.2": "implicit little endian",
    "1.2.840.10008.1.2.1": "explicit little endian",
    "1.2.840.10008.1.2.1.99": "deflated",
    "1.2.840.10008.1.2.2": "explicit big endian",
    "1.2.840.10008.1.2.5": "RLE",
    **dict.fromkeys((_JPEG + "50",), "JPEG 8 bit, lossy"),
    **dict.fromkeys((_JPEG + "51", _JPEG + "53", _JPEG + "55"), "JPEG 12 bit, lossy"),
    **dict.fromkeys((_JPEG + "57", _JPEG + "70"), "JPEG lossless"),
    _JPEG + "80": "JPEG-LS lossless",
    _JPEG + "81": "JPEG-LS lossy",
    _JPEG + "90": "JPEG 2000 lossless",
    _JPEG + "91": "JPEG 2000",
    _JPEG + "201": "HTJ2K lossless",
    _JPEG + "202": "HTJ2K lossless RPCL",
    _JPEG + "203": "HTJ2K",
}


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Flags of the verb."""

    json: bool = verb.option(False, "print JSON on stdout in place of the table")
    workers: int = verb.option(0, f"processes; 0 = one a core from {MIN_FILES_FOR_PROCESSES} files on, else 1")

    def __post_init__(self) -> None:
        """Refuse a negative number of processes."""
        if self.workers < 0:
            raise ValueError(f"--workers: expected 0 or more, found {self.workers}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What a folder holds: studies in slice order, and each file that is left out."""

    num_files: int
    studies: tuple[Study, ...]
    rejects: tuple[Reject, ...]

    @property
    def num_used(self) -> int:
        """Files that are used; a multi-frame file counts once."""
        return self.num_files - len(self.rejects)


def inspect_folder(folder: Path, workers: int = 0) -> Findings:
    """Read every file below ``folder``.

    Raises:
        FastichError: the folder does not exist, cannot be listed or holds no file.
    """
    paths = find_files(folder)
    if not paths:
        raise FastichError(f"{folder}: the folder holds no file")
    automatic = (os.cpu_count() or 1) if len(paths) >= MIN_FILES_FOR_PROCESSES else 1
    headers: list[SliceHeader] = []
    rejects: list[Reject] = []
    seen = Seen()
    outcomes = _outcomes(paths, folder, workers or automatic)
    with Decoder() as decoder:
        for path, outcome in verb.progress(outcomes, total=len(paths), unit="files", title="reading"):
            checked = _refuse_double(path, folder, outcome, seen, decoder)
            if isinstance(checked, Reject):
                rejects.append(checked)
            else:
                headers += checked
    return Findings(num_files=len(paths), studies=tuple(group_studies(headers)), rejects=tuple(rejects))


Outcome = list[SliceHeader] | Reject


def _outcomes(paths: Sequence[Path], folder: Path, workers: int) -> Iterator[tuple[Path, Outcome]]:
    if workers == 1:
        with Decoder() as decoder:
            for path in paths:
                yield path, read_headers(path, folder, decoder)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        try:
            found = pool.map(_in_worker, paths, [folder] * len(paths), chunksize=16)
            yield from zip(paths, found, strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


_worker_decoder: Decoder | None = None


def _start_worker() -> None:
    global _worker_decoder
    _worker_decoder = Decoder()


def _in_worker(path: Path, folder: Path) -> Outcome:
    assert _worker_decoder is not None
    return read_headers(path, folder, _worker_decoder)


def read_headers(path: Path, folder: Path, decoder: Decoder) -> Outcome:
    """Read one file in full; its frames' headers, or why it is left out."""
    try:
        return [found.header for found in read_file(path, root=folder, decoder=decoder)]
    except DicomError as error:
        return Reject(path=name_below(path, folder), reason=error.reason, detail=error.detail)


def _refuse_double(path: Path, folder: Path, outcome: Outcome, seen: Seen, decoder: Decoder) -> Outcome:
    if isinstance(outcome, Reject) or seen.is_new(path, outcome[0].sop_uid):
        return outcome
    try:
        seen.admit(path, read_file(path, root=folder, decoder=decoder), decoder)
    except DicomError as error:
        return Reject(path=outcome[0].path, reason=error.reason, detail=error.detail)
    return outcome


def as_json(findings: Findings) -> dict[str, Any]:
    """The findings as plain values: lengths in mm, angles in degrees, None where unknown."""
    return {
        "num_files": findings.num_files,
        "num_used": findings.num_used,
        "studies": [
            {
                "study_uid": study.study_uid,
                "patient_id": study.patient_id,
                "series": [_series_json(series) for series in study.series],
            }
            for study in findings.studies
        ],
        "rejects": [
            {"path": reject.path, "reason": reject.reason.value, "detail": reject.detail} for reject in findings.rejects
        ],
    }


def _series_json(series: Series) -> dict[str, Any]:
    headers, geometry = series.headers, series.geometry
    row, column = headers[0].pixel_spacing_mm or (None, None)
    return {
        "series_uid": series.series_uid,
        "num_slices": len(headers),
        "rows": headers[0].rows,
        "columns": headers[0].columns,
        "spacing_mm": [row, column, _rounded(geometry.spacing_mm)],
        "thickness_mm": sorted({h.thickness_mm for h in headers if h.thickness_mm is not None}),
        "tilt_deg": round(geometry.tilt_deg, 2) + 0.0,
        "gaps_mm": list(geometry.gaps_mm),
        "distances_mm": [_rounded(distance) for distance in geometry.distances_mm],
        "num_doubled": len(geometry.duplicates),
        "transfer_syntaxes": sorted({h.transfer_syntax for h in headers}),
        "encodings": sorted({h.encoding for h in headers}),
        "problems": problems(series),
    }


def _rounded(length_mm: float | None) -> float | None:
    return None if length_mm is None else round(length_mm, 3)


def problems(series: Series) -> list[str]:
    """What is odd about a series, one line each: its geometry's problems, and values that should be one and are not."""
    found = list(series.geometry.problems)
    spacings = {header.pixel_spacing_mm for header in series.headers}
    if len(spacings) > 1:
        found.append(f"{len(spacings)} different pixel spacings")
    if None in spacings:
        found.append("pixel spacing is unknown")
    if len({header.thickness_mm for header in series.headers} - {None}) > 1:
        found.append("slices of different thickness")
    return found


def as_text(findings: Findings) -> str:
    """The findings as a table for a person."""
    lines = [f"{findings.num_files} files: {findings.num_used} used, {len(findings.rejects)} left out"]
    for study in findings.studies:
        lines += ["", f"study {printable(study.study_uid)}  patient {printable(study.patient_id) or '(no id)'}"]
        for series in study.series:
            lines += _series_text(series)
    if findings.rejects:
        lines += ["", "left out"]
    by_reason = sorted(findings.rejects, key=lambda reject: (reject.reason.value, reject.path))
    for reason, group in groupby(by_reason, key=lambda reject: reject.reason.value):
        members = list(group)
        lines.append(f"  {reason} ({len(members)})")
        lines += [f"    {printable(reject.path)}: {printable(reject.detail)}" for reject in members]
    return "\n".join(lines)


def _series_text(series: Series) -> list[str]:
    headers, geometry = series.headers, series.geometry
    first = headers[0]
    in_plane = "unknown" if first.pixel_spacing_mm is None else "{:.3f} x {:.3f} mm".format(*first.pixel_spacing_mm)
    between = "unknown" if geometry.spacing_mm is None else f"{geometry.spacing_mm:.2f} mm"
    facts = {
        "spacing": f"{in_plane} in plane, {between} between slices",
        "thickness": runs(header.thickness_mm for header in headers),
        "distances": runs(geometry.distances_mm),
        "tilt": f"{geometry.tilt_deg:.1f} degrees",
        "gaps": ", ".join(f"{gap:.2f} mm" for gap in geometry.gaps_mm) or "none",
        "encoding": _counted(header.encoding for header in headers),
        "syntax": _counted(SYNTAX_NAMES.get(header.transfer_syntax, header.transfer_syntax) for header in headers),
        "problems": "; ".join(problems(series)) or "none",
    }
    title = f"  series {printable(series.series_uid)}  {len(headers)} x {first.rows} x {first.columns}"
    return [title, *(f"    {name:<10} {value}" for name, value in facts.items())]


def runs(lengths_mm: Iterable[float | None]) -> str:
    """Run-length text of lengths to 0.01 mm: ``4.00 mm x13, 1.08 mm x1``."""
    texts = ["unknown" if length is None else f"{length:.2f} mm" for length in lengths_mm]
    return ", ".join(f"{text} x{len(list(group))}" for text, group in groupby(texts)) or "none"


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{name} x{count}" for name, count in sorted(Counter(names).items()))


def printable(text: str) -> str:
    """``text`` with control characters and undecodable bytes spelled out, safe for a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def parse_args(argv: list[str]) -> tuple[Path, InspectConfig]:
    """The folder and the flags of the verb."""
    parser: argparse.ArgumentParser = verb.parser("inspect", "What a folder of DICOM files holds.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of DICOM files, read with all below it")
    verb.add_config_flags(parser, InspectConfig)
    args = parser.parse_args(argv)
    return args.folder, verb.config_from_args(args, InspectConfig)


def main(argv: list[str]) -> int:
    """Print the findings; status 1 where no file could be used."""
    folder, config = parse_args(argv)
    findings = inspect_folder(folder, config.workers)
    print(json.dumps(as_json(findings), indent=2, allow_nan=False) if config.json else as_text(findings))
    if not findings.num_used:
        raise FastichError(f"{folder}: none of {findings.num_files} files is a usable CT slice; the report says why")
    return 0


if __name__ == "__main__":
    verb.run(main)
