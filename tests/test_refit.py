import numpy as np
import pytest

from fastich import conformal
from fastich.artifact import Thresholds
from fastich.calibration import NONE, Calibration, LabelCalibration, fit
from fastich.errors import FastichError
from fastich.labels import LABELS
from fastich.outcomes import Joined, Outcomes
from fastich.refit import carried, choose_thresholds, document, least_logit, outdated, refit_labels, refit_triage

OUTCOMES = Outcomes(unit="slice", labels={}, sha256="cd" * 32)
OLD = Thresholds(values=(0.11, 0.12, 0.13, 0.14, 0.15, 0.16), rule="max-f1 on val")


def joined(num_rows: int = 900, seed: int = 0, rare: int = 5) -> Joined:
    """Overconfident logits; epidural has ``rare`` positives, intraparenchymal is never known."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(-1, 1.5, (num_rows, 6))
    labels = (rng.random(honest.shape) < 1 / (1 + np.exp(-honest))).astype(np.int64)
    labels[:, 0] = 0
    labels[:rare, 0] = 1
    labels[:, 1] = -1
    return Joined(
        logit=3 * honest + 1,
        labels=labels,
        patients=np.array([f"P{i // 6}" for i in range(num_rows)], dtype=object),
        without_score=(),
    )


def refitted(before: Calibration = NONE, **asked: int):
    return refit_labels(before, joined(), **({"least": 20, "folds": 5, "seed": 0} | asked), where="here")


def test_labels_with_enough_are_platts_on_the_raw_logits_and_others_keep_what_they_had() -> None:
    before = Calibration(method="platt", of_label=(LabelCalibration(method="platt", scale=0.7, bias=0.1),) * 6)
    found = refitted(before)
    plain = fit(joined().logit, joined().labels, "platt")
    assert found.calibration.of_label[2:] == plain.of_label[2:]
    assert found.calibration.of_label[:2] == before.of_label[:2]
    assert found.kept == {
        "epidural": "needs 20 positives and negatives, found 5 and 895",
        "intraparenchymal": "needs 20 positives and negatives, found 0 and 0",
    }


def test_fewer_positives_suffice_where_asked() -> None:
    assert "epidural" not in refitted(least=5).kept


def test_figures_are_cross_fitted_and_those_of_kept_labels_do_not_move() -> None:
    quality = refitted().quality
    for label in LABELS[2:5]:  # any is raised to the largest of unrelated labels here
        assert quality[label]["after"]["brier"] < quality[label]["before"]["brier"]
        assert quality[label]["after"]["ece"] < 0.6 * quality[label]["before"]["ece"]
    assert quality["epidural"]["after"] == quality["epidural"]["before"]
    assert quality["intraparenchymal"]["before"] is None
    fitted_on_all = fit(joined().logit, joined().labels, "platt").probability(joined().logit)[:, 2]
    in_sample = float(np.mean((fitted_on_all - (joined().labels[:, 2] == 1)) ** 2))
    assert quality["intraventricular"]["after"]["brier"] > in_sample


def test_label_whose_slope_is_not_above_zero_keeps_its_calibration() -> None:
    turned = joined()
    turned.logit[:, 3] *= -1
    found = refit_labels(NONE, turned, least=20, folds=5, seed=0, where="here")
    assert found.kept["subarachnoid"].startswith("refused: expected a slope above 0, found -")
    assert found.calibration.of_label[3] == NONE.of_label[3]


def test_outcomes_with_too_few_of_every_label_are_an_error_that_says_why() -> None:
    with pytest.raises(
        FastichError,
        match=r"here: expected a label that can be fitted anew, found none \(epidural: needs 5000 positives and",
    ):
        refitted(least=5000)


def test_outcomes_of_one_patient_are_an_error() -> None:
    alone = joined()
    alone.patients[:] = "P"
    with pytest.raises(FastichError, match="here: expected outcomes of two patients or more, found 1"):
        refit_labels(NONE, alone, least=20, folds=5, seed=0, where="here")


def test_fewer_patients_than_folds_make_fewer_folds() -> None:
    few = joined()
    few.patients[:] = [f"P{i % 3}" for i in range(len(few.patients))]
    found = refit_labels(NONE, few, least=20, folds=5, seed=0, where="here")
    assert found == refit_labels(NONE, few, least=20, folds=3, seed=0, where="here")


def test_stored_rule_chooses_again_where_the_calibration_is_new() -> None:
    refit = refitted()
    found = choose_thresholds(OLD, NONE, refit, joined(), "stored", OUTCOMES)
    assert found.values[:2] == OLD.values[:2]
    assert all(new != old for new, old in zip(found.values[2:], OLD.values[2:], strict=True))
    assert found.rule == "max-f1 on slice outcomes cdcdcdcdcdcd, not epidural, intraparenchymal"
    again = choose_thresholds(found, refit.calibration, refit, joined(), "stored", OUTCOMES)
    assert again == found


def test_rule_of_the_command_line_wins_and_is_reached() -> None:
    refit = refitted()
    found = choose_thresholds(OLD, NONE, refit, joined(), "sensitivity:0.9", OUTCOMES)
    said = refit.calibration.probability(joined().logit) >= np.array(found.values)
    for i in range(2, 6):
        assert said[joined().labels[:, i] == 1, i].mean() >= 0.9
    assert found.rule.startswith("sensitivity:0.9 on slice outcomes")


@pytest.mark.parametrize(("rule", "stored"), [("keep", "max-f1 on val"), ("stored", "by hand")])
def test_decisions_are_kept_on_demand_and_where_no_rule_is_stored(rule: str, stored: str) -> None:
    old, refit = Thresholds(values=OLD.values, rule=stored), refitted()
    found = choose_thresholds(old, NONE, refit, joined(), rule, OUTCOMES)
    assert found == carried(old, NONE, refit.calibration, "slice")
    assert found.rule == f"{stored}, the same slice logits after recalibration"
    for i in range(6):
        was = NONE.of_label[i].probability(joined().logit[:, i]) >= old.values[i]
        now = refit.calibration.of_label[i].probability(joined().logit[:, i]) >= found.values[i]
        assert (now == was).all()
        assert 0 < was.sum() < len(was)
    assert found.values[2:] != old.values[2:]


def test_half_where_no_rule_has_chosen_another_stays_half_unless_its_decisions_shall_stay() -> None:
    half, refit = Thresholds(), refitted()
    assert choose_thresholds(half, NONE, refit, joined(), "stored", OUTCOMES) == Thresholds(
        rule="default 0.5, kept when recalibrated"
    )
    again = Thresholds(rule="default 0.5, kept when recalibrated")
    assert choose_thresholds(again, NONE, refit, joined(), "stored", OUTCOMES) == again
    assert choose_thresholds(half, NONE, refit, joined(), "keep", OUTCOMES).values[2] != 0.5


def test_cuts_that_everything_or_nothing_reached_are_carried_as_such() -> None:
    stepped = Calibration(method="isotonic", of_label=(LabelCalibration(method="isotonic", knots=KNOTS),) * 6)
    after = Calibration(method="platt", of_label=(LabelCalibration(method="platt", scale=0.7, bias=-3.0),) * 6)
    old = Thresholds(values=(0.05, 0.1, 0.95, 0.05, 0.1, 0.95), rule="x")
    logits = np.random.default_rng(0).normal(0, 4, (500, 6))
    new = carried(old, stepped, after, "study")
    was = stepped.probability(logits) >= np.array(old.values)
    assert was.all(axis=0).tolist() == [True, True, False] * 2
    assert not was[:, [2, 5]].any()
    assert ((after.probability(logits) >= np.array(new.values)) == was).all()


def test_triage_is_chosen_again_on_studies_with_the_old_alphas() -> None:
    was = conformal.fit([0.2, 0.8] * 30, [0, 1] * 30, alpha_miss=0.1, alpha_alarm=0.2)
    made, note = refit_triage(was.to_document(), joined(), "study")
    assert made is not None
    assert (made["alpha_miss"], made["alpha_alarm"]) == (0.1, 0.2)
    studies = joined()
    score = 1 / (1 + np.exp(-studies.logit.max(axis=1)))
    wanted = conformal.fit(score, studies.labels[:, 5], studies.patients, alpha_miss=0.1, alpha_alarm=0.2)
    assert made == wanted.to_document() | {"score": conformal.SCORE}
    assert wanted.num_bleed + wanted.num_without == 900
    assert note == "chosen again on the outcomes"


def test_triage_that_is_chosen_again_counts_each_patient_once() -> None:
    was = conformal.fit([0.2, 0.8] * 30, [0, 1] * 30, alpha_miss=0.1, alpha_alarm=0.2)
    made, _ = refit_triage(was.to_document(), joined(), "study")
    assert made is not None
    studies = joined()
    bleed = studies.labels[:, 5] == 1
    assert made["num_bleed_patients"] == len(set(studies.patients[bleed])) < bleed.sum()
    assert made["num_without_patients"] == len(set(studies.patients[~bleed])) < (~bleed).sum()
    assert "each patient counting once" in made["guarantee"]


def test_triage_on_too_few_studies_says_what_is_needed() -> None:
    was = conformal.Triage(alpha_miss=0.001, alpha_alarm=0.2, num_bleed=1, num_without=1, clear=None, flag=None)
    made, note = refit_triage(was.to_document(), joined(), "study")
    assert made == was.to_document()
    assert note.startswith(
        "kept: the outcomes are too few to choose it again; nothing is cleared: alpha 0.001 needs 999 calibration"
    )


def test_triage_is_kept_as_it_is_where_outcomes_are_of_slices() -> None:
    was = conformal.fit([0.2, 0.8] * 30, [0, 1] * 30, alpha_miss=0.1, alpha_alarm=0.2).to_document() | {"more": 1}
    assert refit_triage(was, joined(), "slice") == (was, "kept: it looks at raw logits, which do not change")
    assert refit_triage(None, joined(), "study") == (None, "the model has none")
    with pytest.raises(ValueError, match="triage: expected alphas, counts and two thresholds, found KeyError"):
        refit_triage({}, joined(), "slice")


def test_metrics_say_that_another_calibration_was_measured() -> None:
    assert outdated({"split": "test"}) == {"split": "test", "measured_with": "the calibration before this one"}
    assert outdated(None) is None


def test_document_says_from_what_and_what_was_before() -> None:
    refit = refitted()
    found = document(refit, joined(), OUTCOMES, {"method": "none"})
    assert Calibration.from_document(found) == refit.calibration
    assert found["previous"] == {"method": "none"}
    assert (found["outcomes_sha256"], found["num_rows"], found["num_patients"]) == ("cd" * 32, 900, 150)
    assert set(found["quality"]["any"]["after"]) == {"ece", "brier"}
    assert found["quality"]["intraparenchymal"] == {"before": None, "after": None}


KNOTS = ((-2.0, 0.1), (-1.0, 0.1), (1.0, 0.6), (3.0, 0.9))
MAPS = [
    LabelCalibration(),
    LabelCalibration(method="platt", scale=0.4, bias=-1.5),
    LabelCalibration(method="temperature", scale=2.5),
    LabelCalibration(method="isotonic", knots=KNOTS),
]


@pytest.mark.parametrize("calibration", MAPS)
def test_least_logit_is_where_a_probability_is_first_reached(calibration: LabelCalibration) -> None:
    for probability in (0.11, 0.3, 0.6, 0.85):
        least = least_logit(calibration, probability)
        below, at = calibration.probability(np.array([least - 1e-6, least]))
        assert below < probability == pytest.approx(at, abs=1e-12)


def test_least_logit_of_what_is_always_or_never_reached_has_no_end() -> None:
    stepped = LabelCalibration(method="isotonic", knots=KNOTS)
    assert (least_logit(stepped, 0.1), least_logit(stepped, 0.95)) == (-np.inf, np.inf)
    assert (least_logit(LabelCalibration(), 0.0), least_logit(LabelCalibration(), 1.0)) == (-np.inf, np.inf)


@pytest.mark.parametrize("was", MAPS)
def test_carried_cuts_find_what_they_found(was: LabelCalibration) -> None:
    before = Calibration(method="platt", of_label=(was,) * 6)
    after = Calibration(method="platt", of_label=(LabelCalibration(method="platt", scale=0.7, bias=-3.0),) * 6)
    old = Thresholds(values=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7), rule="max-f1 on val")
    logits = np.random.default_rng(0).normal(0, 3, (2000, 6))
    new = carried(old, before, after, "study")
    for i in range(6):
        found = was.probability(logits[:, i]) >= old.values[i]
        assert found.any()
        assert ((after.of_label[i].probability(logits[:, i]) >= new.values[i]) == found).all()
    assert new.rule == "max-f1 on val, the same study logits after recalibration"
    assert carried(new, after, before, "study").rule == new.rule


def test_the_case_that_a_carried_cut_stands_at_stays_found_in_float32() -> None:
    after = Calibration(method="platt", of_label=(LabelCalibration(method="platt", scale=0.37, bias=-2.1),) * 6)
    for logit in np.random.default_rng(1).normal(0, 2, 50):
        cut = float(LabelCalibration().probability(np.array([logit]))[0])
        new = carried(Thresholds(values=(cut,) * 6, rule="x"), NONE, after, "slice")
        assert np.float32(after.of_label[0].probability(np.array([logit]))[0]) >= new.values[0]


def test_cuts_of_labels_that_kept_their_calibration_do_not_move() -> None:
    old = Thresholds(values=(0.0, 0.2, 0.3, 0.4, 0.5, 1.0), rule="x")
    assert carried(old, NONE, NONE, "study").values == old.values
    other = Calibration(method="platt", of_label=(LabelCalibration(method="platt", scale=2.0, bias=1.0),) * 6)
    assert carried(old, NONE, other, "study").values[0] == 0.0
    assert carried(old, NONE, other, "study").values[5] == 1.0
