"""Train the sequence model: what a trained CNN says of each slice of a study -> what the whole study says of it.

The CNN runs once over the records, and for each of ``--embedding-passes`` over augmented training slices, from which
alone the model learns; what it says is kept in the records' side folder. Then an epoch is a second. The model starts as
the CNN's own answer, and the last epoch is kept that undercuts it on validation slices, so there it is never worse than
the CNN. To choose among epochs by the log loss of few patients costs more than it brings: it ends before the learning
rate does, and what it takes for overfitting is mostly overconfidence, which calibration takes away (docs/trust.md). Of
a k-fold run folder (RUN/fold-0 and so on) each fold gets its own sequence model in OUT/fold-k.

A study run folder holds config.json, metrics.jsonl, checkpoints/ and, written last, run.json.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from fastich import checkpoint, verb
from fastich.checkpoint import LoadedRun, load_run, weights_sha256
from fastich.errors import FastichError, RecordError, UsageError
from fastich.files import write_json
from fastich.leakage_sides import CERTIFICATE_KEY
from fastich.records.index import series_numbers
from fastich.records.reader import RecordReader
from fastich.training import history
from fastich.training.config import ALL_FOLDS
from fastich.training.distributed import find_world
from fastich.training.early_stopping import EarlyStopping
from fastich.training.embedder import stores_of
from fastich.training.environment import device_name, host, torch_threads, versions
from fastich.training.feed import Feed
from fastich.training.position import Position
from fastich.training.precision import Precision, choose_device, choose_precision
from fastich.training.run_folder import CONFIG_JSON, RUN_JSON, fold_folders
from fastich.training.study_config import StudyConfig, build_sequence
from fastich.training.study_data import StudySet, rows_of, series_of
from fastich.training.study_epoch import StudyJob, make_optimizer, run_epoch, validate
from fastich.training.study_folder import StudyFolder, check_out, relative_run, restore_networks
from fastich.training.study_predictions import slice_loss, study_aucs
from fastich.training.study_source import EndToEnd, Stored, StudySource


def main(argv: list[str]) -> int:
    """Run the verb."""
    made = verb.parser("train_study", __doc__)
    verb.add_config_flags(made, StudyConfig)
    train_study(verb.config_from_args(made.parse_args(argv), StudyConfig))
    return 0


def train_study(config: StudyConfig) -> list[dict[str, Any]]:
    """Train as asked and return what each run.json holds: one, or one a fold.

    Raises:
        FastichError: one of its kinds, for whatever input, files or the machine got in the way.
    """
    if find_world().size > 1:
        raise UsageError("train_study is one process: start it without torchrun")
    configs = one_a_fold(config)
    if len(configs) > 1:
        check_out(config.out, config.resume)
        config.out.mkdir(parents=True, exist_ok=True)
        write_json(config.out / CONFIG_JSON, config.resolved() | {"folds": len(configs), "fold": ALL_FOLDS})
    return [train_one(one) for one in configs]


def one_a_fold(config: StudyConfig) -> list[StudyConfig]:
    """``config`` itself, or of a folder of folds one config for each.

    Raises:
        CheckpointError: a fold of the CNN is missing, or not finished.
    """
    folds = fold_folders(config.run)
    return [dataclasses.replace(config, run=fold, out=config.out / fold.name) for fold in folds] or [config]


def train_one(config: StudyConfig) -> dict[str, Any]:
    """Train the sequence model of one CNN; return what run.json holds."""
    check_out(config.out, config.resume)
    run = load_run(config.run, config.which)
    precision = choose_precision(config.amp, choose_device(config.device))
    with contextlib.closing(RecordReader(config.records)) as reader:
        require_same_records(config.records, reader, run)
        feed = Feed(
            precision=precision, batch_size=config.embed_batch_size, loader=config.loader, threads=config.num_threads
        )
        require_labelled(config, reader, run)
        job = start(config, run, reader, open_source(config, run, reader, feed), precision)
        # the steps of a GRU are so small that cores which share one mostly wait for each other
        with torch_threads(config.num_threads if config.end_to_end else 1):
            position = job.folder.restore(job.networks, job.optimizer, job.scaler, lambda: _beginning(job))
            while position.epoch < config.epochs and not position.stopping.is_over(config.patience):
                position = run_epoch(job, position)
            return _finish(job, position)


def require_same_records(records: Path, reader: RecordReader, run: LoadedRun) -> None:
    """Refuse records whose splits are not the CNN's: its training patients could be judged.

    Raises:
        RecordError: they are others.
    """
    if reader.dataset_sha256 != run.dataset_sha256:
        raise RecordError(
            f"{records}: expected the records that {run.run} was trained on ({run.dataset_sha256[:12]}), "
            f"found {reader.dataset_sha256[:12]}; give those"
        )


def require_labelled(config: StudyConfig, reader: RecordReader, run: LoadedRun) -> None:
    """Refuse records without a labelled slice to learn from or to validate on.

    Raises:
        FastichError: they are.
    """
    for split in ("train", "val"):
        if not len(rows_of(reader, run.config, split)):
            raise FastichError(f"{config.records}: no labelled slices in split {split!r}; pack more patients")


def open_source(config: StudyConfig, run: LoadedRun, reader: RecordReader, feed: Feed) -> StudySource:
    """Training and validation studies, out of the side store (made where it is missing) or, end to end, of the CNN."""
    train_rows, val_rows = rows_of(reader, run.config, "train"), rows_of(reader, run.config, "val")
    labels, (training, val) = reader.labels(), (series_of(reader.index, rows) for rows in (train_rows, val_rows))
    verb.say(f"studies: {len(training)} series to train, {len(val)} to validate")
    if config.end_to_end:
        run.model.to(feed.precision.device)
        return EndToEnd(
            run=run,
            records=config.records,
            labels=labels,
            places=series_numbers(reader.index),
            training=training,
            val=val,
            feed=feed,
            seed=config.seed,
        )
    with torch_threads(1):  # parts of a batch take the cores
        stores = stores_of(run, config.records, reader, train_rows, config.embedding_passes, feed)
    return Stored(
        training=StudySet(series=training, labels=labels, stores=stores),
        val=StudySet(series=val, labels=labels, stores=stores[:1]),
    )


def start(
    config: StudyConfig, run: LoadedRun, reader: RecordReader, source: StudySource, precision: Precision
) -> StudyJob:
    """The network with its first weights, on the device; all random numbers follow from the seed."""
    torch.manual_seed(config.seed)
    embedding_size = source.embedding_size
    model = build_sequence(config.resolved(), embedding_size).to(precision.device)
    networks = nn.ModuleDict({"sequence": model} | ({"cnn": run.model} if config.end_to_end else {}))
    cnn = {
        "run": relative_run(config.run, config.out),
        "which": config.which,
        "weights_sha256": weights_sha256(run.model),
        "epoch": run.epoch,
        "embedding_size": embedding_size,
    }
    return StudyJob(
        config=config,
        folder=StudyFolder(
            path=config.out,
            config=config,
            dataset_sha256=reader.dataset_sha256,
            cnn=cnn,
            leakage_certificate=run.meta.get(CERTIFICATE_KEY),
        ),
        model=model,
        networks=networks,
        optimizer=make_optimizer(networks, config),
        scaler=GradScaler(precision.device.type, enabled=config.end_to_end and precision.needs_scaler),
        source=source,
        labels=reader.labels(),
        val_rows=rows_of(reader, run.config, "val"),
    )


def _beginning(job: StudyJob) -> Position:
    """Before the first epoch: what is to be undercut is the log loss of the CNN alone, which the model starts as."""
    loss, _ = slice_loss(validate(job), job.labels)
    return Position(stopping=EarlyStopping(best_loss=loss))


def _finish(job: StudyJob, position: Position) -> dict[str, Any]:
    """Judge the best checkpoint on validation and write run.json."""
    restore_networks(job.networks, checkpoint.load(job.folder.best))
    summary = _summary(job, position)
    write_json(job.config.out / RUN_JSON, summary)
    found = summary["val"]
    alone = "its CNN alone, which has learned too," if job.config.end_to_end else "CNN alone"
    verb.say(
        f"kept: epoch {position.stopping.best_epoch + 1}: validation log loss {found['log_loss']:.4f}, {alone} "
        f"{found['cnn_log_loss']:.4f}; {position.seconds:.0f} s; {job.folder.best}"
    )
    if found["log_loss"] > found["cnn_log_loss"]:
        verb.say("slices are judged better by that CNN alone: train for more epochs, or with another --seed")
    return summary


def _summary(job: StudyJob, position: Position) -> dict[str, Any]:
    predicted = validate(job)
    loss, cnn_loss = slice_loss(predicted, job.labels)
    return {
        "kind": "study",
        "best_epoch": position.stopping.best_epoch,
        "epochs_run": position.epoch,
        "stopped_early": position.epoch < job.config.epochs,
        "seconds": round(position.seconds, 3),
        "val": {
            "log_loss": loss,
            "cnn_log_loss": cnn_loss,
            "num_slices": len(predicted.rows),
            "num_studies": len(predicted.study_uid),
            "study_auc": study_aucs(predicted, job.labels),
        },
        "history": history.read(job.folder.path),
        "num_parameters": sum(parameter.numel() for parameter in job.model.parameters()),
        "cnn": job.folder.cnn,
        "dataset_sha256": job.folder.dataset_sha256,
        "config": job.config.resolved(),
        "device": job.device.type,
        "device_name": device_name(job.device),
        "versions": versions(),
        "host": host(),
    }


if __name__ == "__main__":
    verb.run(main)
