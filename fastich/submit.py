"""Write the challenge's submission file for a records folder, labelled or not, with the network of a run.

One pass of the network over every slice (of each fold's network for a k-fold run: their logits are averaged), then
seconds for the file. Slices of the test set that could not be packed get the prevalence of the training slices, which
costs least in log loss where nothing is known; they are named on stderr. Probabilities are the network's, not
calibrated.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastich import metrics, submission, verb
from fastich.checkpoint import LoadedRun
from fastich.errors import RecordError, UsageError
from fastich.folds import run_rows
from fastich.labels import LABELS
from fastich.loaders.config import BACKENDS
from fastich.loaders.order import ALL_ROWS
from fastich.records.reader import RecordReader
from fastich.report.results import PROBABILITY_COLUMNS
from fastich.subject import study_folders
from fastich.training.environment import num_cores, torch_threads
from fastich.training.feed import Feed
from fastich.training.precision import choose_device, choose_precision
from fastich.training.prediction import load_members, predict_members
from fastich.training.views import NONE, parse_views
from fastich.verb import option, required


@dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """One submission."""

    run: Path = required("run folder that python -m fastich.train wrote, k-fold or not")
    records: Path = required("records of the test set, packed without labels")
    out: Path = required("CSV file to write")
    sample_submission: Path | None = option(None, "the challenge's sample: which rows, in which order")
    training_records: Path | None = option(None, "for the prevalence (default: the path in the run's config)")
    which: str = option("best", "which checkpoint", choices=("best", "last"))
    tta: str = option(NONE, "average over views: none, or some of flip, crop, reverse; n of them cost 2^n passes")
    device: str = option("auto", "where the network runs", choices=("auto", "cpu", "cuda"))
    amp: bool = option(False, "mixed precision: bfloat16 where the device has it, else float16")
    batch_size: int = option(64, "slices at a time")
    loader: str = option("auto", "which loader feeds the network", choices=BACKENDS)
    threads: int = option(0, "CPU threads of the loader and of the network (0: all cores)")

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything is opened."""
        for name, least in (("batch_size", 1), ("threads", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name.replace('_', '-')} must be >= {least}, found {getattr(self, name)}")

    def feed(self) -> Feed:
        """How slices get through the network."""
        precision = choose_precision(self.amp, choose_device(self.device))
        threads = self.threads or num_cores()
        return Feed(precision=precision, batch_size=self.batch_size, loader=self.loader, threads=threads)


def main(argv: list[str]) -> int:
    """Run the verb."""
    made = verb.parser("submit", __doc__)
    verb.add_config_flags(made, SubmitConfig)
    config = verb.config_from_args(made.parse_args(argv), SubmitConfig)
    num_rows = submit(config)
    verb.say(f"submission: {config.out}, {num_rows} rows of {num_rows // len(LABELS)} slices")
    return 0


def submit(config: SubmitConfig) -> int:
    """Write the file and return its number of rows.

    Raises:
        FastichError: one of its kinds: the file exists, the run or the records cannot be used, or ids do not agree.
    """
    if config.out.exists():
        raise UsageError(f"{config.out}: exists; remove it, or choose another --out")
    if study_folders(config.run, config.which):
        raise UsageError(
            f"{config.run}: expected a run of CNNs, found a sequence model; submit takes the run it was trained on"
        )
    members, feed = load_members(config.run, config.which), config.feed()
    views = parse_views(config.tta, adjacent=members[0].adjacent)
    for member in members:
        member.model.to(feed.precision.device)
    with contextlib.closing(RecordReader(config.records)) as reader:
        layout = _layout(config, reader)  # before the network runs: ids that do not agree are said at once
        prior_UK = np.tile(_prior(config, members, layout.left_out), (len(layout.left_out), 1))
        with torch_threads(1 if feed.num_replicas > 1 else feed.threads):
            found = predict_members(members, config.records, ALL_ROWS, feed, views).predictions
    assert found["row"].tolist() == list(range(len(found))), "every row of the records, in order"
    known = found[PROBABILITY_COLUMNS].to_numpy(np.float64)
    submission.write(config.out, layout, np.concatenate([known, prior_UK]))
    return len(layout.names)


def _layout(config: SubmitConfig, reader: RecordReader) -> submission.Layout:
    packed = submission.packed_ids(reader.index, reader.folder)
    rejects = reader.dataset["rejects"]
    rejected = submission.rejected_ids(reader.folder / rejects, packed) if rejects else []
    sample = config.sample_submission
    wanted = None if sample is None else submission.read_names(sample)
    return submission.arrange(packed, rejected, wanted, str(sample))


def _prior(config: SubmitConfig, members: Sequence[LoadedRun], left_out: tuple[str, ...]) -> NDArray[np.float64]:
    """Prevalence of each label [6] among the slices that were trained on; zeros where nobody needs it.

    Raises:
        RecordError: the records that the run was trained on cannot be opened or are others.
    """
    if not left_out:
        return np.zeros(len(LABELS))
    verb.say(
        f"submission: {len(left_out)} slices could not be packed and get the training prevalence: {', '.join(left_out)}"
    )
    path = config.training_records or Path(members[0].config["records"])
    try:
        reader = RecordReader(path)
    except RecordError as error:
        raise RecordError(f"{error}; the training prevalence is needed: give --training-records") from error
    with reader:
        if reader.dataset_sha256 != members[0].dataset_sha256:
            raise RecordError(
                f"{path}: expected the records that {config.run} was trained on ({members[0].dataset_sha256[:12]}), "
                f"found {reader.dataset_sha256[:12]}; give --training-records"
            )
        shares = metrics.prevalence(reader.labels()[run_rows(reader, members[0].config, "train")])
    return np.array([shares[label] for label in LABELS])


if __name__ == "__main__":
    verb.run(main)
