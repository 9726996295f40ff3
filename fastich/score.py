"""Score DICOM files, folders or whole studies with an exported model: one shot, no server, no torch.

Each file is decoded once and its pixels are dropped as soon as they are scored, so memory is one batch whatever the
folder holds (0.8 GB in all with 16 slices at 256 px; with a sequence model 4 KB a slice more); a model that looks at
neighbouring slices reads everything twice, for the order first, and holds one series. Reading costs about 1 ms a slice,
DenseNet121 at 256 px 40 ms of two cores. What decides about a study stands in ``study_rule.py``, what keeps one from
being called clear in ``doubts.py``: everything is scored here, a lone slice too, but only a whole study can be cleared.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich import verb
from fastich.artifact import FLOAT32, INTENDED_USE, PRECISIONS, Thresholds
from fastich.conformal import Triage
from fastich.dicom import Decoder, Series, Study, group_studies, read_file
from fastich.doubts import contradiction, settled
from fastich.doubts import of_studies as doubts_of_studies
from fastich.errors import DicomError, FastichError, UsageError
from fastich.gate_rules import load_rules
from fastich.labels import ANY, LABELS
from fastich.score_files import Beside, read_all
from fastich.serve.session import BACKENDS, Scores, Session, open_session
from fastich.serve.study_session import StudySession, open_study_session
from fastich.study_rule import (
    Answers,
    Judged,
    Place,
    SliceAnswer,
    judge,
    place,
    rule_of,
    thresholds_of,
    triage_of,
    triage_score,
)
from fastich.study_scores import top_k_mean
from fastich.types import HuArray, Slice, SliceHeader
from fastich.verb import option, required

NAMED_REJECTS = 5
"""Paths that the table names for each reason; the JSON names all."""
SHORT_LABELS = dict(zip(LABELS, ("EDH", "IPH", "IVH", "SAH", "SDH", "any"), strict=True))


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How to score."""

    model: Path = required("model folder that export/to_onnx.py wrote")
    device: str = option("cpu", "where the model runs; cuda demanded and absent is an error", choices=("cpu", "cuda"))
    backend: str = option(
        "auto",
        "what runs the model; auto: OpenVINO for bfloat16, and for int8 where it is installed, else ONNX Runtime",
        choices=(*BACKENDS, "auto"),
    )
    precision: str = option(FLOAT32, "of the network; int8 and float16 need their file", choices=PRECISIONS)
    batch_size: int = option(16, "slices a run of the model")
    top_k: int = option(3, "slices of the top-k mean")
    rules: Path | None = option(None, "TOML file of eligibility rules: what is whole enough to be called clear")

    def __post_init__(self) -> None:
        """Refuse counts that mean nothing."""
        for name in ("batch_size", "top_k"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be >= 1, found {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """The network, how many slices it sees at once, and what is kept beside probabilities and logits."""

    session: Session
    batch_size: int
    keep_embedding: bool
    keep_cam: bool = False

    def answers(self, scores: Scores, first: int, stop: int) -> list[SliceAnswer]:
        """What was said of slices ``first`` to ``stop`` - 1 of a batch."""
        return [
            SliceAnswer(
                probability=scores.probability[i],
                logit=scores.logit[i],
                embedding=scores.embedding[i] if self.keep_embedding else None,
                cam=scores.cam[i] if self.keep_cam else None,
            )
            for i in range(first, stop)
        ]


def main(argv: list[str]) -> int:
    """Run the verb."""
    made = verb.parser("score", __doc__.split("\n\n")[0])
    made.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="DICOM file, or folder of any depth")
    verb.add_config_flags(made, ScoreConfig)
    made.add_argument("--json", action="store_true", help="print JSON with every slice instead of the table")
    args = made.parse_args(argv)
    config = verb.config_from_args(args, ScoreConfig)
    session = open_session(config.model, config.device, backend=config.backend, precision=config.precision)
    report = score(args.paths, session, config, open_study_session(config.model))
    print(json.dumps(report, indent=2, allow_nan=False) if args.json else table(report))
    if report["studies"]:
        return 0
    where = ", ".join(map(str, args.paths))
    verb.say(
        f"error: {where}: expected CT slices, found none among {len(report['not_scored'])} files; nothing was scored"
    )
    return 1


def score(
    paths: Sequence[Path], session: Session, config: ScoreConfig, study_session: StudySession | None = None
) -> dict[str, Any]:
    """Everything that ``--json`` prints: ``model``, ``studies`` (the likeliest bleed first) and ``not_scored``.

    Without a ``study_session`` a study is its largest slice; ``study_rule`` says which rule it was. A study with
    ``doubts`` is never clear.

    Raises:
        FastichError: a path does not exist, or the rules file is malformed.
        ArtifactError: the model failed.
    """
    rules, beside = load_rules(config.rules), Beside()
    ask = Asked(session=session, batch_size=config.batch_size, keep_embedding=study_session is not None)
    with Decoder() as decoder:
        studies, found = look_at(paths, ask, decoder, beside)
    limits, triage = thresholds_of(session, study_session)[1], triage_of(session, study_session)
    rows = [study_row(study, judge(study, found, study_session), limits, triage, config.top_k) for study in studies]
    for row, doubts in zip(rows, doubts_of_studies(studies, beside.fields, beside.left(rules), rules), strict=True):
        row["doubts"] = [*doubts, *contradiction(row)]
        row["triage"] = settled(row["triage"], row["doubts"])
    return {
        "model": model_row(session, study_session),
        "study_rule": rule_of(study_session),
        "rules_sha256": rules.sha256,
        "studies": sorted(rows, key=lambda row: (-row["probability"]["any"], row["study_uid"], row["patient_id"])),
        "not_scored": beside.not_scored,
    }


def look_at(paths: Sequence[Path], ask: Asked, decoder: Decoder, beside: Beside) -> tuple[list[Study], Answers]:
    """The studies below ``paths`` and what the network says of every slice; everything else is noted in ``beside``."""
    slices = read_all(paths, decoder, beside)
    if ask.session.artifact.input_order == "any":
        headers, found = score_stream(slices, ask)
        return group_studies(headers), found
    studies = group_studies([one.header for one in slices])
    return studies, score_in_order(studies, decoder, ask)


def score_stream(slices: Iterator[Slice], ask: Asked) -> tuple[list[SliceHeader], Answers]:
    """Score slices as they come, in batches of equal size; keeps headers and answers, never pixels."""
    headers: list[SliceHeader] = []
    found: dict[Place, SliceAnswer] = {}
    waiting: dict[tuple[int, ...], list[Slice]] = defaultdict(list)

    def run(batch: list[Slice]) -> None:
        scores = ask.session.run(np.stack([one.hu for one in batch]))
        found.update(zip((place(one.header) for one in batch), ask.answers(scores, 0, len(batch)), strict=True))

    for one in slices:
        headers.append(one.header)
        batch = waiting[one.hu.shape]
        batch.append(one)
        if len(batch) == ask.batch_size:
            run(waiting.pop(one.hu.shape))
    for rest in waiting.values():
        run(rest)
    return headers, found


def score_in_order(studies: list[Study], decoder: Decoder, ask: Asked) -> Answers:
    """Score each series in slice order, for models that look at neighbours; holds the pixels of one series."""
    found: dict[Place, SliceAnswer] = {}
    for series in (series for study in studies for series in study.series):
        found.update(zip(map(place, series.headers), run_series(read_series(series, decoder), ask), strict=True))
    return found


def read_series(series: Series, decoder: Decoder) -> HuArray:
    """The pixels of a series in slice order, int16 [N, H, W].

    Raises:
        FastichError: a file that was readable no longer is.
    """
    pixels: dict[Place, HuArray] = {}
    for path in dict.fromkeys(header.path for header in series.headers):
        try:
            frames = read_file(Path(path), decoder=decoder)
        except DicomError as error:
            raise FastichError(f"{path}: changed while it was being scored ({error}); score again") from error
        pixels |= {(path, one.header.frame): one.hu for one in frames}
    return np.stack([pixels[place(header)] for header in series.headers])


def run_series(hu: HuArray, ask: Asked) -> list[SliceAnswer]:
    """Answers about one ordered series, as if run whole: each batch brings a neighbour on both sides."""
    answers: list[SliceAnswer] = []
    for start in range(0, len(hu), ask.batch_size):
        stop = min(start + ask.batch_size, len(hu))
        first = max(start - 1, 0)
        answers += ask.answers(ask.session.run(hu[first : stop + 1]), start - first, stop - first)
    return answers


def study_row(study: Study, judged: Judged, limits: Thresholds, triage: Triage | None, top_k: int) -> dict[str, Any]:
    """One study as the JSON shows it; the key slice is the first in order among those with the largest p(any).

    ``findings`` are the labels whose probability reaches its threshold; ``triage`` is what the three-way rule alone
    says, null without one.
    """
    series = [
        series_row(one, probability, logit)
        for one, probability, logit in zip(study.series, judged.slice_probability, judged.slice_logit, strict=True)
    ]
    rows = [row for one in series for row in one["slices"]]
    probability_N6 = np.concatenate(judged.slice_probability).astype(float)
    top = top_k_mean(probability_N6, top_k)
    key = rows[int(probability_N6[:, ANY].argmax())]
    threshold = limits.values[ANY]
    return {
        "study_uid": study.study_uid,
        "patient_id": study.patient_id,
        "num_slices": len(rows),
        "probability": by_label(judged.study_probability),
        "logit": by_label(judged.study_logit),
        "top_k": top_k,
        "top_k_mean": by_label(top),
        "flagged": bool(judged.study_probability[ANY] >= threshold),
        "threshold": threshold,
        "findings": [
            label
            for label, found, least in zip(LABELS, judged.study_probability, limits.values, strict=True)
            if found >= least
        ],
        "triage": None if triage is None else triage.decide(triage_score(judged.study_logit)),
        "key_slice": {name: key[name] for name in ("sop_uid", "path", "frame", "z_mm")}
        | {"probability": key["probability"]["any"]},
        "series": series,
    }


def series_row(series: Series, probability_L6: NDArray[np.float64], logit_L6: NDArray[np.float64]) -> dict[str, Any]:
    """One series as the JSON shows it, slices in order; ``z_mm`` along the normal, null where the header has none."""
    return {
        "series_uid": series.series_uid,
        "problems": list(series.geometry.problems),
        "slices": [
            {
                "sop_uid": header.sop_uid,
                "path": header.path,
                "frame": header.frame,
                "z_mm": None if math.isnan(z_mm) else z_mm,
                "probability": by_label(probability),
                "logit": by_label(logit),
            }
            for header, z_mm, probability, logit in zip(
                series.headers, series.geometry.z_mm, probability_L6, logit_L6, strict=True
            )
        ],
    }


def model_row(session: Session, study_session: StudySession | None) -> dict[str, Any]:
    """Which model scored, where, and by what thresholds; ``study_thresholds`` decide about studies."""
    artifact = session.artifact
    slices, studies = thresholds_of(session, study_session)
    triage = triage_of(session, study_session)
    return {
        "sha256": session.sha256,
        "weights_sha256": artifact.weights_sha256,
        "dataset_sha256": artifact.dataset_sha256,
        "backend": session.backend,
        "precision": session.precision,
        "provider": session.provider,
        "study_sha256": None if study_session is None else study_session.sha256,
        "study_weights_sha256": None if study_session is None else study_session.part.weights_sha256,
        "thresholds": by_label(slices.values),
        "threshold_rule": slices.rule,
        "study_thresholds": by_label(studies.values),
        "study_threshold_rule": studies.rule,
        "triage": None if triage is None else triage.to_document(),
        "intended_use": INTENDED_USE,
    }


def by_label(values: Sequence[float] | NDArray[np.floating]) -> dict[str, float]:
    """Six numbers under their labels."""
    return {label: float(value) for label, value in zip(LABELS, values, strict=True)}


def table(report: dict[str, Any]) -> str:
    """The report as text for a terminal: a line a study, then what was not scored and why."""
    order = ("any", *LABELS[:ANY])
    top_k = report["studies"][0]["top_k"] if report["studies"] else 0
    lines = [("", "study", "series", "slices", *map(SHORT_LABELS.__getitem__, order), f"top-{top_k} any", "key slice")]
    for row in report["studies"]:
        numbers = [f"{row['probability'][label]:.3f}" for label in order] + [f"{row['top_k_mean']['any']:.3f}"]
        mark = "BLEED?" if row["flagged"] else ""
        lines.append((mark, row["study_uid"], str(len(row["series"])), str(row["num_slices"]), *numbers, _key(row)))
    widths = [max(map(len, column)) for column in zip(*map(_printable, lines), strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(_printable(line), widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*(text if report["studies"] else []), *_footer(report)])


def _key(row: dict[str, Any]) -> str:
    key = row["key_slice"]
    frame = f" frame {key['frame']}" if key["frame"] else ""
    return str(key["path"]) + frame + ("" if key["z_mm"] is None else f" (z {key['z_mm']:.1f} mm)")


def _footer(report: dict[str, Any]) -> Iterator[str]:
    model = report["model"]
    if report["studies"]:
        rule = f"any >= {model['study_thresholds']['any']:.3f} ({model['study_threshold_rule']})"
        runs = f"{model['backend']} {model['precision']}"
        yield f"study: {report['study_rule']}"
        if model["triage"] is not None:
            counts = Counter(row["triage"] for row in report["studies"])
            shares = ", ".join(f"{decision} {count}" for decision, count in counts.items())
            yield f"triage: {shares}; {model['triage']['guarantee']}"
            yield from _doubted([row for row in report["studies"] if row["doubts"]])
            if model["precision"] != FLOAT32:
                yield f"thresholds and triage were chosen in float32; {model['precision']} was compared by slices only"
        yield f"BLEED? at {rule}; model {model['sha256'][:12]}, {runs}; {INTENDED_USE}"
    by_reason: dict[str, list[dict[str, str]]] = defaultdict(list)
    for left in report["not_scored"]:
        by_reason[left["reason"]].append(left)
    for reason, found in sorted(by_reason.items()):
        yield f"not scored, {reason}: {len(found)}"
        for left in found[:NAMED_REJECTS]:
            yield from _printable((f"  {left['path']}: {left['detail']}",))
        if len(found) > NAMED_REJECTS:
            yield f"  and {len(found) - NAMED_REJECTS} more (--json names all)"


def _doubted(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The studies that are not whole, or not of the kind that the guarantee is about."""
    if rows:
        yield f"in doubt, so without the guarantee and never clear: {len(rows)} of the studies"
    for row in rows[:NAMED_REJECTS]:
        yield from _printable((f"  {row['study_uid']}: {'; '.join(row['doubts'])}",))
    if len(rows) > NAMED_REJECTS:
        yield f"  and {len(rows) - NAMED_REJECTS} more (--json names all)"


def _printable(cells: Sequence[str]) -> tuple[str, ...]:
    """Text from files as a terminal may show it: no control characters."""
    return tuple("".join(char if char.isprintable() else "?" for char in cell) for cell in cells)


if __name__ == "__main__":
    verb.run(main)
