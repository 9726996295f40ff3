"""Who is scanned and bleeds how: the plan of a whole data set, a pure function of seed, number of studies and share.

Subtypes are dealt in turn, not drawn, so that each appears in several patients even in a small set; the second and
third bleed of a head are drawn. Some patients come back for a second study of the same head.
"""

from dataclasses import dataclass

import numpy as np

from fastich.labels import SUBTYPES

REPEAT_SHARE = 0.15
"""Patients with two studies."""
SECOND_BLEED, THIRD_BLEED = 0.4, 0.15
"""Chance of a further subtype in a head that bleeds."""
_ID_BITS, _ID_STEP = 36, 0x9E3779B97
"""Ids count in steps of this odd number modulo 2^36: they look random and never repeat."""


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """One study to make: its number, whose head, which visit, and the subtypes that bleed."""

    number: int
    patient: int
    visit: int
    subtypes: tuple[str, ...]


def make_plan(seed: int, num_studies: int, healthy_share: float) -> tuple[StudyPlan, ...]:
    """The studies of a data set, in order of their numbers."""
    rng = np.random.default_rng([seed, 0])
    patients = _patients(rng, num_studies)
    num_patients = patients[-1][0] + 1
    num_bleeding = round(num_patients * (1 - healthy_share))
    bleeding = rng.permutation(num_patients)[:num_bleeding]
    first = int(rng.integers(len(SUBTYPES)))
    subtypes = {
        int(patient): _deal(rng, SUBTYPES[(first + turn) % len(SUBTYPES)]) for turn, patient in enumerate(bleeding)
    }
    return tuple(
        StudyPlan(number=number, patient=patient, visit=visit, subtypes=subtypes.get(patient, ()))
        for number, (patient, visit) in enumerate(patients)
    )


def _patients(rng: np.random.Generator, num_studies: int) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    patient = 0
    while len(out) < num_studies:
        out.append((patient, 0))
        if rng.random() < REPEAT_SHARE and len(out) < num_studies:
            out.append((patient, 1))
        patient += 1
    return out


def _deal(rng: np.random.Generator, first: str) -> tuple[str, ...]:
    others = [subtype for subtype in SUBTYPES if subtype != first]
    rng.shuffle(others)
    more = int(rng.random() < SECOND_BLEED)
    more += int(more and rng.random() < THIRD_BLEED / SECOND_BLEED)
    return (first, *others[:more])


def make_id(seed: int, kind: int, number: int, digits: int) -> str:
    """An id like ``ID_0a1b2c3d4``: unique for each ``number`` below 2^30 of one seed and ``kind`` (0..7)."""
    value = ((number * 8 + kind) * _ID_STEP + seed * 0x5851F42D4) % (1 << _ID_BITS)
    return f"ID_{value:09x}".ljust(3 + digits, "0")[: 3 + max(digits, 9)]
