"""A trained network becomes one folder that crosses to serving: model.onnx and/or model.ts, and model.json last.

A model card, for people, stands beside them.

Each file takes HU and does the preprocessing itself. Nothing is written until the file, run by its own engine on
real-looking HU, agrees with the network behind the numpy preprocessing. The same command gives the same bytes, and no
path of this machine is in them. ONNX takes about 15 s of one core and TorchScript 3 s; then each form of the model runs
on the parity slices. The sequence model of a study run goes into study.onnx (``export_study.py``).
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

import fastich
from fastich import artifact as contract
from fastich.artifact import FLOAT32, MANIFEST, ONNX_FILE, PRECISIONS, TORCHSCRIPT_FILE, Artifact, FileEntry
from fastich.calibration import NONE, Calibration
from fastich.checkpoint import LoadedRun, load_run, weights_sha256
from fastich.errors import ArtifactError, UsageError
from fastich.export_evaluation import read_evaluation, shipped_config
from fastich.export_study import add_study
from fastich.files import atomic_path
from fastich.leakage_sides import CERTIFICATE_KEY
from fastich.model_card import publish
from fastich.models.folding import fold_batch_norm
from fastich.models.onnx_graph import OPSET, onnx_bytes
from fastich.models.serving import Front, ServingModel, example
from fastich.models.torchscript import load_torchscript, torchscript_bytes
from fastich.parity import Answer, Runner, batches_of, check_parity, parity, synthetic_heads
from fastich.records.reader import RecordReader
from fastich.report.folder import CALIBRATION_FILE
from fastich.study_contract import STUDY_FILE
from fastich.study_run import load_study_run
from fastich.types import HuArray
from fastich.variants import VariantConfig, write_variant
from fastich.verb import add_config_flags, config_from_args, option, parser, required, say
from fastich.verb import run as from_command_line
from fastich.windowing import preprocess, preprocess_adjacent

HEADS_BESIDE_RECORDS = 4
"""Records may have been packed at the network's size; these, in scanner sizes, make sure that resizing is compared."""
KEPT = ("thresholds", "study_thresholds", "calibration", "triage", "metrics", "files", "parity", "study", "versions")
"""What a second export into the same folder leaves as the first was told."""
ROLES = {
    ONNX_FILE: "preprocessing, network and class maps for ONNX Runtime",
    TORCHSCRIPT_FILE: "the same graph for torch.jit.load",
}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to export, where to, and what to state in model.json."""

    run: Path | None = option(None, "run folder that training wrote; may be left out with --study, which knows its own")
    out: Path = required("model folder; both export commands may fill the same one")
    which: str = option("best", "which checkpoint", choices=("best", "last"))
    evaluation: Path | None = option(None, "evaluation folder: its thresholds and metrics go into model.json")
    study: Path | None = option(None, "study run folder: its sequence model goes into study.onnx beside model.onnx")
    study_which: str = option("best", "which checkpoint of the study run", choices=("best", "last"))
    study_evaluation: Path | None = option(None, "evaluation folder of the study run, for study.onnx")
    records: Path | None = option(None, "records whose test split parity is measured on (otherwise synthetic heads)")
    parity_slices: int = option(32, "slices that parity is measured on")
    precision: str = option(
        FLOAT32,
        "of the network in the ONNX file: int8 (CPUs) and float16 (CUDA) write a variant beside model.onnx, bfloat16 "
        "only compares (OpenVINO computes model.onnx so); all three need --records",
        choices=PRECISIONS,
    )
    calibration_slices: int = option(128, "slices of the val split that int8 is calibrated on")
    variant_slices: int = option(2000, "slices of the test split that a variant is compared on")

    def __post_init__(self) -> None:
        """Refuse a check that checks nothing, a variant without slices, and an export of nothing."""
        if self.run is None and self.study is None:
            raise UsageError("expected --run, or --study, found neither; give what is to be exported")
        if self.study is None and self.study_evaluation is not None:
            raise UsageError("--study-evaluation: expected --study beside it, found none")
        for name in ("parity_slices", "calibration_slices", "variant_slices"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, found {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"--precision: expected one of {', '.join(PRECISIONS)}, found {self.precision!r}")
        if self.precision != FLOAT32 and self.records is None:
            raise UsageError(
                f"--precision {self.precision}: expected --records, found none; int8 is calibrated on their val split, "
                "and every variant is compared with model.onnx on their test split"
            )


def export_onnx(run: Path, out: Path, **options: Any) -> Artifact:
    """Write ``out``/model.onnx and model.json; ``options`` are the other fields of ``ExportConfig``.

    Raises:
        UsageError: ``out`` holds another model.
        ArtifactError: the file does not agree with the network.
        CheckpointError: ``run`` cannot be loaded.
    """
    return export(ExportConfig(run=run, out=out, **options), ONNX_FILE)


def export_torchscript(run: Path, out: Path, **options: Any) -> Artifact:
    """Write ``out``/model.ts and model.json; see ``export_onnx``."""
    return export(ExportConfig(run=run, out=out, **options), TORCHSCRIPT_FILE)


def export(config: ExportConfig, name: str) -> Artifact:
    """Write ``name``, one of ``model.onnx`` and ``model.ts``, then model.json; see ``export_onnx``."""
    loaded = load_network(config)
    started = _start(config, loaded, name, rewritten=name)
    config.out.mkdir(parents=True, exist_ok=True)
    front = Front(loaded.size, loaded.windows, loaded.adjacent)
    serving = ServingModel(front, fold_batch_norm(loaded.model), Calibration.from_document(started.calibration))
    content = onnx_bytes(serving) if name == ONNX_FILE else torchscript_bytes(serving, example())
    report = _measure(config, loaded, started, name, content)
    entry = FileEntry(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content), role=ROLES[name])
    finished = dataclasses.replace(
        started, files={**started.files, name: entry}, parity={**started.parity, **report}, versions=_versions()
    )
    with atomic_path(config.out / name) as temporary:
        temporary.write_bytes(content)
    publish(config.out, finished)
    return finished


def load_network(config: ExportConfig) -> LoadedRun:
    """The network to export: that of ``config.run``, or the one that ``config.study`` listens to, which is the same.

    Raises:
        CheckpointError: a folder cannot be loaded.
        UsageError: the study run listens to another network than that of ``config.run``.
    """
    if config.study is None:
        assert config.run is not None, "ExportConfig refuses neither"
        return load_run(config.run, config.which)
    cnn = load_study_run(config.study, config.study_which, cnn=config.run).cnn
    if config.run is not None:
        given = load_run(config.run, config.which)
        if weights_sha256(given.model) != weights_sha256(cnn.model):
            raise UsageError(
                f"{config.study}: expected a study run over {config.run} ({weights_sha256(given.model)[:12]}), "
                f"found one over {weights_sha256(cnn.model)[:12]}; leave out --run, or give the right one"
            )
    return cnn


def export_study(config: ExportConfig) -> Artifact:
    """Write study.onnx of ``config.study`` into ``config.out``, model.onnx first where it is not there yet.

    Raises:
        UsageError: ``config.out`` holds another model, or another study run was evaluated.
        ArtifactError: a file does not agree with its network.
        CheckpointError: a run cannot be loaded.
    """
    assert config.study is not None, "asked for with --study only"
    loaded = load_study_run(config.study, config.study_which, cnn=config.run)
    artifact = _start(config, loaded.cnn, ONNX_FILE, rewritten=STUDY_FILE)
    if ONNX_FILE not in artifact.files:
        artifact = export(config, ONNX_FILE)
    artifact = dataclasses.replace(artifact, versions=_versions())
    batches, _ = parity_input(config)
    with torch.inference_mode():
        embedding = [loaded.cnn.model.embedding(network_input(loaded.cnn, hu)) for hu in batches]
        logit = [loaded.cnn.model.head(one) for one in embedding]
    seen = torch.cat(embedding).numpy(), torch.cat(logit).numpy()
    return add_study(config.out, artifact, loaded, config.study_evaluation, seen)


def export_variant(config: ExportConfig) -> Artifact:
    """Write the variant of ``config.precision`` into ``config.out``, model.onnx first where it is not there yet.

    Raises:
        UsageError: ``config.out`` holds another model, or the records lack a split.
        ArtifactError: an engine is missing, or the variant does not say what model.onnx says.
    """
    assert config.records is not None, "ExportConfig refuses a variant without records"
    made = "" if config.precision == "bfloat16" else contract.PRECISION_FILES[config.precision]
    artifact = _start(config, load_network(config), ONNX_FILE, rewritten=made)
    if ONNX_FILE not in artifact.files:
        artifact = export(config, ONNX_FILE)
    asked = VariantConfig(
        precision=config.precision,
        records=config.records,
        calibration_slices=config.calibration_slices,
        variant_slices=config.variant_slices,
    )
    return write_variant(config.out, artifact, asked)


def _measure(config: ExportConfig, loaded: LoadedRun, started: Artifact, name: str, content: bytes) -> dict[str, Any]:
    """Parity of ``content`` with the network and with the other file of the folder, where there is one."""
    others = [other for other in started.files if other in ROLES and other != name]
    contents = {other: contract.read_verified(config.out, started, other) for other in others}
    contents[name] = content
    calibration = Calibration.from_document(started.calibration)
    runners = {"torch": torch_runner(loaded, calibration)}
    runners |= {key: file_runner(key, contents[key]) for key in sorted(contents)}
    batches, source = parity_input(config)
    found = parity(runners, batches, started.thresholds)
    report = {pair: values | {"input": source} for pair, values in found.items() if name in pair}
    check_parity(report)
    return report


def _start(config: ExportConfig, loaded: LoadedRun, name: str, *, rewritten: str) -> Artifact:
    """The artifact before this export: that of ``config.out`` if it is of the same network, else a new one.

    Raises:
        UsageError: ``config.out`` holds another model, or files (not ``rewritten``) of another calibration.
    """
    base = Artifact(
        windows=loaded.windows,
        size=loaded.size,
        adjacent=loaded.adjacent,
        embedding_size=loaded.model.embedding_size,
        weights_sha256=weights_sha256(loaded.model),
        dataset_sha256=loaded.dataset_sha256,
        epoch=loaded.epoch,
        config=shipped_config(loaded.config),
        leakage_certificate=loaded.meta.get(CERTIFICATE_KEY),
    )
    if (config.out / MANIFEST).exists():
        base = _same_network(config.out, base)
    elif (config.out / name).exists():
        raise UsageError(f"{config.out / name} exists without {MANIFEST}: remove it or choose another --out")
    if config.evaluation is None:
        return base
    found = read_evaluation(config.evaluation, loaded, loaded.run, [weights_sha256(loaded.model)])
    others = sorted(set(base.files) - {rewritten, STUDY_FILE})  # study.onnx takes raw logits
    same = Calibration.from_document(found.calibration) == Calibration.from_document(base.calibration)
    if others and not same:
        raise UsageError(
            f"{config.evaluation / CALIBRATION_FILE}: expected the calibration inside {', '.join(others)} of "
            f"{config.out}, found another; choose another --out"
        )
    return dataclasses.replace(
        base,
        thresholds=found.thresholds,
        study_thresholds=found.study_thresholds,
        metrics=found.metrics,
        calibration=found.calibration,
        triage=found.triage,
    )


def _same_network(out: Path, new: Artifact) -> Artifact:
    try:
        old = contract.read_manifest(out)
    except ArtifactError as error:
        raise UsageError(f"{error}; or choose another --out") from error
    if (old.weights_sha256, old.size, old.windows) != (new.weights_sha256, new.size, new.windows):
        raise UsageError(
            f"{out / MANIFEST}: expected weights {new.weights_sha256[:12]}, found {old.weights_sha256[:12]}, "
            "another model; remove it or choose another --out"
        )
    return dataclasses.replace(new, **{key: getattr(old, key) for key in KEPT})


def _versions() -> dict[str, Any]:
    return {
        "fastich": fastich.__version__,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "opset": OPSET,
        "onnxruntime": onnxruntime.__version__,
    }


def parity_input(config: ExportConfig) -> tuple[list[HuArray], str]:
    """Batches int16 [n, H, W] that parity is measured on, and one line that says what they are."""
    if config.records is None:
        return list(batches_of(synthetic_heads(config.parity_slices))), "synthetic heads"
    with RecordReader(config.records) as reader:
        rows = reader.rows("test")
        if len(rows) == 0:
            raise UsageError(
                f"{config.records}: expected a test split to measure parity on, found none; drop --records"
            )
        chosen = rows[np.linspace(0, len(rows) - 1, min(config.parity_slices, len(rows))).astype(int)]
        slices = [reader.hu(int(row)) for row in chosen]
    source = f"test split of records {reader.dataset_sha256[:12]} and {HEADS_BESIDE_RECORDS} synthetic heads"
    return list(batches_of(slices + synthetic_heads(HEADS_BESIDE_RECORDS))), source


def torch_runner(loaded: LoadedRun, calibration: Calibration = NONE) -> Runner:
    """The network as it was trained, numpy before it and behind it: the truth that exported files are held to."""

    def answer(hu: HuArray) -> Answer:
        with torch.inference_mode():
            logit = loaded.model(network_input(loaded, hu))
        return calibration.probability(logit.numpy()).astype(np.float32), logit.numpy()

    return answer


def network_input(loaded: LoadedRun, hu: HuArray) -> torch.Tensor:
    """What the network sees of ``hu`` int16 [N, H, W] in slice order, by the numpy preprocessing: [N, 3, S, S]."""
    last = len(hu) - 1
    images = [
        preprocess_adjacent([hu[max(i - 1, 0)], hu[i], hu[min(i + 1, last)]], loaded.size, loaded.windows[0])
        if loaded.adjacent
        else preprocess(hu[i], loaded.size, loaded.windows)
        for i in range(len(hu))
    ]
    return torch.from_numpy(np.stack(images))


def file_runner(name: str, content: bytes) -> Runner:
    """One exported file, run on the CPU by the engine that it is made for."""
    return _onnx_runner(content) if name == ONNX_FILE else _torchscript_runner(content)


def _onnx_runner(content: bytes) -> Runner:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def answer(hu: HuArray) -> Answer:
        probability, logit = session.run(["probability", "logit"], {contract.INPUT.name: hu})
        return probability, logit

    return answer


def _torchscript_runner(content: bytes) -> Runner:
    module = load_torchscript(content)

    def answer(hu: HuArray) -> Answer:
        with torch.inference_mode():
            probability, logit, _, _ = module(torch.from_numpy(hu))
        return probability.numpy(), logit.numpy()

    return answer


def summary(artifact: Artifact, out: Path) -> Iterator[str]:
    """Lines that say what was written and how near it is to the network."""
    for name, entry in sorted(artifact.files.items()):
        yield f"{out / name}: {entry.size_bytes / 2**20:.1f} MiB, SHA-256 {entry.sha256[:12]}"
    for pair, found in sorted(artifact.parity.items()):
        yield (
            f"parity {pair}: probability {found['max_abs_probability']:.1e}, logit {found['max_abs_logit']:.1e}, "
            f"{found['flips_at_thresholds']} flips on {found['num_slices']} slices ({found['input']})"
            + (f"; AUC {_changes(found['auc_change'])}" if "auc_change" in found else "")
        )


def _changes(of_label: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {'undefined' if value is None else f'{value:+.4f}'}" for name, value in of_label.items())


def main(argv: list[str], formats: tuple[str, ...] = ("onnx", "torchscript"), prog: str | None = None) -> None:
    """Export in ``formats``; the commands in export/ ask for one each."""
    made = parser(
        "export", "Write a trained network with its preprocessing inside: model.onnx, model.ts, study.onnx, model.json."
    )
    made.prog = prog or made.prog
    add_config_flags(made, ExportConfig)
    config = config_from_args(made.parse_args(argv), ExportConfig)
    names = {"onnx": ONNX_FILE, "torchscript": TORCHSCRIPT_FILE}
    if config.precision == FLOAT32:
        for chosen in formats:
            finished = export(config, names[chosen])
    elif "onnx" in formats:
        finished = export_variant(config)
    else:
        raise UsageError(f"--precision {config.precision}: a variant is an ONNX file; use export/to_onnx.py")
    if config.study is not None and "onnx" in formats:
        finished = export_study(config)
    for line in summary(finished, config.out):
        say(line)


if __name__ == "__main__":
    from_command_line(main)
