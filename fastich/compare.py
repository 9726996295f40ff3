"""Is run B better than run A? Both judged on the same slices, every difference with its interval and p-value.

Reads what ``fastich.evaluate`` wrote (predictions.parquet, metrics.json, and studies.parquet where there is one), so no
network runs: seconds for 1,000 resamples of 5,000 slices. Intervals come from drawing whole patients, the same for both
runs. DeLong's test stands beside them for studies only, where it holds: it takes cases for independent, so it gets one
study a patient, the first. Many rows are many tests: one p below 0.05 in twenty is what chance gives.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastich import metrics, verb
from fastich.errors import CheckpointError, RecordError, UsageError
from fastich.files import atomic_path, write_json
from fastich.intervals import LEVEL, Floats
from fastich.labels import LABELS
from fastich.resampling import Resampling
from fastich.statistics import Difference, delong_test, paired_bootstrap, paired_difference
from fastich.study_metrics import PROBABILITIES, study_table
from fastich.verb import option

METRICS_FILE, PREDICTIONS_FILE, STUDIES_FILE = "metrics.json", "predictions.parquet", "studies.parquet"
OUT_JSON, OUT_CSV = "compare.json", "compare.csv"
IDENTITY = ["row", "sop_uid", "study_uid", "patient_id", *LABELS]
"""Columns that must be the same in both tables."""
BOOTSTRAP, DELONG = "patient bootstrap", "DeLong"
MAX_RULE = "max over slices"
NAMES = {"auc": "AUC", "average_precision": "AP", "log_loss": "log loss", "study_auc": "study AUC"}


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """How two evaluations are compared."""

    split: str = option("test", "which evaluation of each run", choices=("train", "val", "test"))
    bootstrap: int = option(1000, "resamples of the patients")
    seed: int = option(0, "seed of the resampling")
    out: Path | None = option(None, f"folder to write {OUT_JSON} and {OUT_CSV} into")

    def __post_init__(self) -> None:
        """Refuse what has no meaning, and results that are there already."""
        if self.bootstrap < 1:
            raise UsageError(f"--bootstrap must be >= 1, found {self.bootstrap}")
        for name in (OUT_JSON, OUT_CSV):
            if self.out is not None and (self.out / name).exists():
                raise UsageError(f"{self.out / name} exists; remove it, or choose another --out")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One run as it was judged: tables of slices and studies, six thresholds, and what metrics.json says."""

    path: Path
    slices: pd.DataFrame
    studies: pd.DataFrame
    study_rule: str
    thresholds: Floats
    measured: dict[str, Any]

    @property
    def probability(self) -> Floats:
        """Of the slices, float64 [N, 6]."""
        return self.slices[PROBABILITIES].to_numpy(np.float64)


def read_evaluation(path: Path, split: str) -> Evaluation:
    """The evaluation in ``path``, or of the run folder ``path`` on ``split``.

    Raises:
        CheckpointError: there is none, it is not complete, or a file of it is damaged.
    """
    folder = path if (path / METRICS_FILE).is_file() else path / f"evaluation-{split}"
    if not (folder / METRICS_FILE).is_file():
        raise CheckpointError(
            f"{path}: expected an evaluation, or a run with {folder.name}, found neither; run "
            f"python -m fastich.evaluate --run {path} --split {split} first"
        )
    try:
        measured = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
        slices = pd.read_parquet(folder / PREDICTIONS_FILE)[IDENTITY + PROBABILITIES]
        has_studies = (folder / STUDIES_FILE).is_file()
        studies = pd.read_parquet(folder / STUDIES_FILE) if has_studies else study_table(slices)
        in_order = studies.set_index("study_uid").loc[slices["study_uid"].unique()].reset_index()
        return Evaluation(
            path=folder,
            slices=slices,
            studies=in_order[["study_uid", "patient_id", *LABELS, *PROBABILITIES]],
            study_rule=STUDIES_FILE if has_studies else MAX_RULE,
            thresholds=np.array([float(measured["thresholds"]["thresholds"][label]) for label in LABELS]),
            measured={key: measured[key] for key in ("split", "dataset", "model")},
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__} {error}"
        raise CheckpointError(
            f"{folder}: expected what fastich.evaluate writes, found {what}; evaluate again"
        ) from error


def require_same(a: Evaluation, b: Evaluation) -> None:
    """Refuse two evaluations that did not judge the same slices.

    Raises:
        RecordError: says what differs.
    """
    for name, one, other in (
        ("split", a.measured["split"], b.measured["split"]),
        ("records", a.measured["dataset"]["dataset_sha256"][:12], b.measured["dataset"]["dataset_sha256"][:12]),
        ("number of slices", len(a.slices), len(b.slices)),
    ):
        if one != other:
            raise RecordError(f"{b.path}: expected the {name} of {a.path}, {one}, found {other}; evaluate both on one")
    differs = (a.slices[IDENTITY].to_numpy(object) != b.slices[IDENTITY].to_numpy(object)).any(axis=0)
    if differs.any():
        columns = ", ".join(np.array(IDENTITY)[differs])
        raise RecordError(f"{b.path}: its slices differ from those of {a.path} in {columns}; evaluate both again")


def compare(path_a: Path, path_b: Path, config: CompareConfig) -> dict[str, Any]:
    """What compare.json holds; written where ``config.out`` asks for it.

    Raises:
        FastichError: one of its kinds: an evaluation is missing, or they did not judge the same slices.
    """
    a, b = (read_evaluation(path, config.split) for path in (path_a, path_b))
    require_same(a, b)
    studies, first = a.studies, (~a.studies["patient_id"].duplicated()).to_numpy()
    found = {
        "a": _side(a),
        "b": _side(b),
        "split": a.measured["split"],
        "dataset_sha256": a.measured["dataset"]["dataset_sha256"],
        "num_slices": len(a.slices),
        "num_studies": len(studies),
        "num_patients": int(first.sum()),
        "num_resamples": config.bootstrap,
        "level": LEVEL,
        "rows": [*slice_rows(a, b, config), *study_rows(a, b, config)],
    }
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        with atomic_path(config.out / OUT_CSV) as temporary:
            pd.DataFrame(found["rows"]).to_csv(temporary, index=False)
        write_json(config.out / OUT_JSON, found)
    return found


def _side(one: Evaluation) -> dict[str, Any]:
    return {"path": str(one.path), "model": one.measured["model"], "studies": one.study_rule}


def slice_rows(a: Evaluation, b: Evaluation, config: CompareConfig) -> list[dict[str, Any]]:
    """A row a label and metric of the slices, the challenge's log loss (of ``all``) first."""
    found = paired_bootstrap(
        a.slices[list(LABELS)].to_numpy(),
        a.probability,
        b.probability,
        Resampling.of(a.slices["patient_id"], num_resamples=config.bootstrap, seed=config.seed),
        thresholds_a=a.thresholds,
        thresholds_b=b.thresholds,
    )
    order = [("log_loss", "all")] + [(metric, label) for label in ("any", *LABELS[:-1]) for metric in found]
    return [_row(metric, label, BOOTSTRAP, found[metric][label], a.slices) for metric, label in order]


def study_rows(a: Evaluation, b: Evaluation, config: CompareConfig) -> Iterator[dict[str, Any]]:
    """AUC of ``any`` of whole studies: by the bootstrap over all, and by DeLong over the first of each patient."""
    truth = a.studies["any"].to_numpy() == 1
    scores = [one.studies["p_any"].to_numpy(np.float64) for one in (a, b)]
    draw = Resampling.of(a.studies["patient_id"], num_resamples=config.bootstrap, seed=config.seed)
    drawn = [draw.auc_and_ap(truth, score)[0] for score in scores]
    values = [metrics.binary_auc(truth, score) for score in scores]
    by_patient = paired_difference(values[0], values[1], drawn[0], drawn[1], draw.area_basis(truth))
    yield _row("study_auc", "any", BOOTSTRAP, by_patient, a.studies)
    first = (~a.studies["patient_id"].duplicated()).to_numpy()
    exact = delong_test(truth[first], scores[0][first], scores[1][first])
    yield _row("study_auc", "any", DELONG, exact, a.studies[first])


def _row(metric: str, label: str, method: str, found: Difference, judged: pd.DataFrame) -> dict[str, Any]:
    undefined = None if found.difference is not None else metrics.why_undefined(judged[label].to_numpy())
    return {"metric": metric, "label": label, "method": method, **asdict(found), "undefined": undefined}


def table(found: dict[str, Any]) -> Iterator[str]:
    """Lines for a terminal."""
    yield from (f"{key.upper()}: {found[key]['path']} (studies: {found[key]['studies']})" for key in ("a", "b"))
    yield f"{'label':18}{'metric':13}{'A':>9}{'B':>9}{'B - A':>9}  {'95 % interval':>40}{'p':>9}"
    for row in found["rows"]:
        name = NAMES.get(row["metric"], row["metric"])
        tail = "" if row["method"] == BOOTSTRAP else f"  {row['method']}, one study a patient"
        yield f"{row['label']:18}{name:13}{_figures(row)}{tail}"
    yield (
        f"{found['split']}: {found['num_slices']} slices, {found['num_studies']} studies, {found['num_patients']} "
        f"patients; intervals from {found['num_resamples']} resamples of the patients; sensitivity and specificity at "
        "each run's own thresholds"
    )


def _figures(row: dict[str, Any]) -> str:
    if row["difference"] is None:
        return f"  {row['undefined']}"
    span = row["note"] if row["low"] is None else f"{row['low']:+.4f} to {row['high']:+.4f}"
    p_value = "none" if row["p_value"] is None else f"{row['p_value']:.4f}"
    caution = f"  {row['note']}" if row["low"] is not None and row["note"] else ""
    return f"{row['a']:>9.4f}{row['b']:>9.4f}{row['difference']:>+9.4f}  {span:>40}{p_value:>9}{caution}"


def main(argv: list[str]) -> int:
    """Run the verb."""
    made = verb.parser("compare", __doc__)
    made.add_argument("run_a", type=Path, metavar="RUN_A", help="run folder, or evaluation folder")
    made.add_argument("run_b", type=Path, metavar="RUN_B", help="the other; differences are B - A")
    verb.add_config_flags(made, CompareConfig)
    made.add_argument("--json", action="store_true", help="print compare.json on stdout instead of the table")
    args = made.parse_args(argv)
    found = compare(args.run_a, args.run_b, verb.config_from_args(args, CompareConfig))
    print(json.dumps(found, indent=2, allow_nan=False) if args.json else "\n".join(table(found)))
    return 0


if __name__ == "__main__":
    verb.run(main)
