from pathlib import Path
from typing import Any

import pytest

from fastich.errors import UsageError
from fastich.models.sequence import SequenceModel, members_of
from fastich.training.study_config import StudyConfig, build_sequence


def config(**changes: Any) -> StudyConfig:
    return StudyConfig(run=Path("run"), records=Path("records"), out=Path("out"), **changes)


@pytest.mark.parametrize(
    "name", ["members", "epochs", "patience", "batch_size", "lr", "hidden_size", "embed_batch_size"]
)
def test_sizes_and_rates_must_be_positive(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} must be > 0, found 0"):
        config(**{name: 0})


@pytest.mark.parametrize("name", ["weight_decay", "auxiliary_weight", "study_weight", "embedding_passes", "threads"])
def test_weights_and_counts_must_not_be_negative(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} must be >= 0, found -1"):
        config(**{name: -1})


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_dropout_must_leave_something(dropout: float) -> None:
    with pytest.raises(UsageError, match="--dropout must be from 0 to below 1"):
        config(dropout=dropout)


def test_subsample_is_a_share() -> None:
    with pytest.raises(UsageError, match=r"--subsample must be from 0 to 1, found 1\.5"):
        config(subsample=1.5)


def test_the_network_is_built_from_the_resolved_config() -> None:
    made = build_sequence(config(variant="difference", hidden_size=12, projection_size=7, members=3).resolved(), 20)
    assert (made.variant, made.embedding_size) == ("difference", 20)
    for member in members_of(made):
        sizes = member.onward.hidden_size, member.project.out_features, member.project.in_features
        assert sizes == (12, 7, 60)
    first, second, third = (member.project.weight for member in members_of(made))
    assert not first.equal(second)
    assert not second.equal(third)


def test_a_run_that_is_older_than_members_has_one() -> None:
    old = config().resolved()
    del old["members"]
    assert isinstance(build_sequence(old, 20), SequenceModel)
