"""A small sequence model with heads that say something, as study.onnx of a model folder that tests made."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch

from fastich.artifact import Artifact, FileEntry, read_manifest, write_manifest
from fastich.models.sequence import SequenceModel
from fastich.models.study_onnx import study_onnx_bytes
from fastich.study_contract import STUDY_FILE, STUDY_ROLE, StudyPart, to_document


def sequence_model(channels: int, variant: str = "gru", seed: int = 3) -> SequenceModel:
    """In eval mode; its slice and study logits differ from the CNN's."""
    torch.manual_seed(seed)
    made = SequenceModel(channels, variant=variant, projection_size=16, hidden_size=12).eval()
    for name, value in made.named_parameters():
        if "head" in name or "norm" in name:
            torch.nn.init.normal_(value, 0.1, 0.3)
    return made


def add_study(
    folder: Path, model: SequenceModel, *, content: bytes | None = None, cnn: str | None = None, **fields: Any
) -> Artifact:
    """Write study.onnx into ``folder`` and describe it in its model.json; ``fields`` are those of ``StudyPart``."""
    artifact = read_manifest(folder)
    made = study_onnx_bytes(model) if content is None else content
    (folder / STUDY_FILE).write_bytes(made)
    entry = FileEntry(sha256=hashlib.sha256(made).hexdigest(), size_bytes=len(made), role=STUDY_ROLE)
    part = StudyPart(
        variant=model.variant,
        embedding_size=model.embedding_size,
        weights_sha256="ef" * 32,
        cnn_weights_sha256=cnn or artifact.weights_sha256,
        **fields,
    )
    changed = dataclasses.replace(artifact, study=to_document(part), files={**artifact.files, STUDY_FILE: entry})
    write_manifest(folder, changed)
    return changed
