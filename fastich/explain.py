"""Where findings come from: of each study the key slice of each finding, with the network's exact class map over it.

A finding is a label whose probability of the study reaches its threshold; its key slice is the one with the largest
probability of that label. With the masks of a phantom it also measures whether the maps point at the bleeds. The output
folder holds index.html, pictures/*.png and, written last, findings.json. Beside scoring it costs a second read of the
slices that are shown or judged, and 0.3 s a picture. No torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich import class_maps, pointing, verb
from fastich.artifact import Thresholds
from fastich.dicom import Decoder, Study
from fastich.errors import FastichError, UsageError
from fastich.files import atomic_path, write_json, write_text
from fastich.findings import Finding, Look, Pixels
from fastich.labels import LABELS
from fastich.metrics import NO_POSITIVES
from fastich.pointing import Masks, Row
from fastich.report import folder, overlay
from fastich.report.card_parts import estimated
from fastich.report.html import render_explanation
from fastich.report.overlay import Overlay
from fastich.score import Asked, by_label, look_at, model_row
from fastich.score_files import Beside
from fastich.serve.session import open_session
from fastich.serve.study_session import open_study_session
from fastich.study_rule import judge, rule_of, thresholds_of
from fastich.verb import option, required

PICTURES_FOLDER = "pictures"
INDEX_FILE, FINDINGS_FILE = "index.html", "findings.json"


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """How to explain."""

    model: Path = required("model folder that export/to_onnx.py wrote")
    out: Path = required("folder to write; must be empty or absent, or see --overwrite")
    masks: Path | None = option(None, "masks folder of a phantom: measure whether the maps point at the bleeds")
    tolerance_mm: float = option(10.0, "how far from the mask a map's peak may lie")
    device: str = option("cpu", "where the model runs; cuda demanded and absent is an error", choices=("cpu", "cuda"))
    batch_size: int = option(16, "slices a run of the model")
    seed: int = option(0, "seed of the resampling")
    overwrite: bool = option(False, "write into a folder that is not empty")

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.batch_size < 1:
            raise UsageError(f"--batch-size must be >= 1, found {self.batch_size}")
        if not self.tolerance_mm >= 0:
            raise UsageError(f"--tolerance-mm must be >= 0, found {self.tolerance_mm}")


def main(argv: list[str]) -> int:
    """Run the verb."""
    made = verb.parser("explain", __doc__)
    made.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="DICOM file, or folder of any depth")
    verb.add_config_flags(made, ExplainConfig)
    args = made.parse_args(argv)
    config = verb.config_from_args(args, ExplainConfig)
    report = explain(args.paths, config)
    print("\n".join(text(report)))
    verb.say(f"pages: {config.out / INDEX_FILE}")
    return 0


def explain(paths: Sequence[Path], config: ExplainConfig) -> dict[str, Any]:
    """Write the folder and return what findings.json holds.

    Raises:
        UsageError: the folder exists.
        FastichError: one of its kinds: a path, the masks or the model cannot be used, or nothing was scored.
    """
    folder.check(config.out, overwrite=config.overwrite)
    masks = None if config.masks is None else Masks(config.masks)
    session, study_session = open_session(config.model, config.device), open_study_session(config.model)
    keep = study_session is not None
    ask = Asked(session=session, batch_size=config.batch_size, keep_embedding=keep, keep_cam=True)
    slices, studies_cut = thresholds_of(session, study_session)
    beside = Beside()
    rows: list[Row] = []
    shown: list[dict[str, Any]] = []
    with Decoder() as decoder:
        studies, found = look_at(paths, ask, decoder, beside)
        if not studies:
            where = ", ".join(map(str, paths))
            raise FastichError(f"{where}: expected CT slices, found none among {len(beside.rejects)} files")
        (config.out / PICTURES_FOLDER).mkdir(parents=True, exist_ok=True)
        (config.out / FINDINGS_FILE).unlink(missing_ok=True)
        for number, study in enumerate(verb.progress(studies, total=len(studies), unit="studies", title="explain")):
            judged = judge(study, found, study_session)
            look = Look(study=study, judged=judged, found=found, masks=_masks(masks, study))
            pixels = look.pixels(decoder, look.findings(studies_cut))
            shown.append(_show(config.out, number, look, pixels, studies_cut))
            rows += look.rows(pixels, slices, config.tolerance_mm)
    cells = next(answer.cam.shape[1:] for answer in found.values() if answer.cam is not None)
    report = {
        "model": model_row(session, study_session),
        "study_rule": rule_of(study_session),
        "map_cells": list(cells),
        "studies": sorted(shown, key=lambda row: (-row["probability"]["any"], row["study_uid"])),
        "pointing": None if masks is None else pointing.summary(rows, config.tolerance_mm, config.seed),
        "not_scored": beside.not_scored,
    }
    write_text(config.out / INDEX_FILE, render_explanation(report, pointing.SUBJECTS))
    write_json(config.out / FINDINGS_FILE, report)
    return report


def _masks(masks: Masks | None, study: Study) -> dict[str, NDArray[np.uint8]]:
    return {} if masks is None else masks.of_study(study.study_uid)


def _show(out: Path, number: int, look: Look, pixels: Pixels, cut: Thresholds) -> dict[str, Any]:
    """Draw the findings of one study; its row of findings.json."""
    return {
        "study_uid": look.study.study_uid,
        "probability": by_label(look.judged.study_probability),
        "findings": [_show_finding(out, number, look, pixels, finding) for finding in look.findings(cut)],
    }


def _show_finding(out: Path, number: int, look: Look, pixels: Pixels, finding: Finding) -> dict[str, Any]:
    series, index = look.study.series[finding.series], LABELS.index(finding.label)
    header, z_mm = series.headers[finding.at], series.geometry.z_mm[finding.at]
    hu = pixels[finding.series][finding.at]
    whole = class_maps.to_slice(look.cam(finding.series, finding.at, index), (hu.shape[0], hu.shape[1]))
    row, column = class_maps.peak(whole, class_maps.head(hu))
    of_slice = float(look.judged.slice_probability[finding.series][finding.at, index])
    where = f"slice {finding.at + 1} of {len(series.headers)}" + ("" if np.isnan(z_mm) else f", z {z_mm:.1f} mm")
    mask = look.mask(finding.series, finding.at, index)
    drawn = overlay.draw(
        Overlay(
            hu=hu,
            map_HW=whole,
            title=f"{finding.label}: study {finding.probability:.3f}, this slice {of_slice:.3f}",
            subtitle=where + ("" if mask is None else "; dashed: the mask") + "; research use only",
            peak=(row, column),
            mask_HW=mask,
        )
    )
    name = f"{PICTURES_FOLDER}/study-{number:04d}-{finding.label}.png"  # no id from outside is in it
    with atomic_path(out / name) as temporary:
        temporary.write_bytes(drawn)
    return {
        "label": finding.label,
        "probability": finding.probability,
        "picture": name,
        "peak": {"row": row, "column": column},
        "slice": {
            "series_uid": series.series_uid,
            "sop_uid": header.sop_uid,
            "path": header.path,
            "frame": header.frame,
            "number": finding.at + 1,
            "num_slices": len(series.headers),
            "z_mm": None if np.isnan(z_mm) else float(z_mm),
            "probability": of_slice,
        },
    }


def text(report: dict[str, Any]) -> Iterator[str]:
    """Lines for a terminal: how many findings, and how well the maps point."""
    counts = [len(study["findings"]) for study in report["studies"]]
    yield f"{len(counts)} studies, {sum(map(bool, counts))} with a finding, {sum(counts)} findings"
    if report["pointing"] is None:
        return
    name = pointing.SUBJECTS[0]
    yield f"do class maps point at the masks? {name}: peak within {report['pointing']['tolerance_mm']:g} mm; in a cell"
    for label in LABELS:
        found = report["pointing"]["labels"][label][name]
        if found is None:
            yield f"  {label:17} {NO_POSITIVES}"
        else:
            pairs = (("hit", "chance"), ("cell_hit", "cell_chance"))
            rates = "; ".join(f"{estimated(found[hit])}, chance {found[chance]['value']:.3f}" for hit, chance in pairs)
            yield f"  {label:17} {rates}; {found['num_slices']} slices of {found['num_studies']} studies"


if __name__ == "__main__":
    verb.run(main)
