"""From flags to what is replayed: where studies come from, what scores them, and which operating points are tried."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastich.errors import UsageError
from fastich.simulation.cases import HOUR_S, Cases, draw_poisson
from fastich.simulation.config import DEFAULT_RATES, SimulateConfig
from fastich.simulation.effect import OperatingPoint
from fastich.simulation.log import Log, read_log
from fastich.simulation.scores import ScoreModel, of_evaluation, of_model, of_rates

ALARM_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Shares of the studies without a bleed that the swept operating points flag."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is replayed: ``draw`` makes the cases of a replication; ``assumptions`` say what was not measured.

    ``per_shift`` replications are drawn of each shift; ``starts_s`` are the times of day at which
    shifts start whose readers count.
    """

    source: str
    scores: ScoreModel | None
    draw: Callable[[int], Cases]
    num_shifts: int
    num_replications: int
    per_shift: int
    starts_s: tuple[float, ...]
    assumptions: tuple[str, ...]


def plan_of(config: SimulateConfig) -> Plan:
    """What ``config`` asks to replay.

    Raises:
        FastichError: the log, the model or the evaluation cannot be used.
        UsageError: something is missing, or given and not used.
    """
    if config.log is None:
        return _random_plan(config, scores_of(config))
    log = read_log(config.log)
    return _log_plan(config, log, _scores_of_log(config, log))


def scores_of(config: SimulateConfig) -> ScoreModel:
    """What draws scores."""
    if config.evaluation is not None:
        return of_evaluation(config.evaluation, config.threshold)
    if config.threshold is not None or config.human_first is not None:
        raise UsageError("--threshold and --human-first cut p(any): give --evaluation, or a log with p_any")
    if config.model is not None:
        return of_model(config.model)
    rates = [
        default if given is None else given
        for given, default in zip((config.sensitivity, config.specificity), DEFAULT_RATES, strict=True)
    ]
    return of_rates(rates[0], rates[1], "given" if config.sensitivity or config.specificity else "the defaults")


def _scores_of_log(config: SimulateConfig, log: Log) -> ScoreModel | None:
    """What cuts or draws the scores of a log; None where it states decisions."""
    if log.p_any is None and log.decision is None:
        return scores_of(config)
    what = "p_any" if log.decision is None else "decision"
    if config.model or config.evaluation or config.sensitivity or config.specificity:
        raise UsageError(f"{log.name}: has {what}; leave out --model, --evaluation, --sensitivity and --specificity")
    if log.decision is not None:
        if config.threshold is not None or config.human_first is not None:
            raise UsageError(f"{log.name}: has decision; leave out --threshold and --human-first")
        return None
    if config.threshold is None:
        raise UsageError(f"{log.name}: has p_any; give the --threshold from which a study is flagged")
    return log.scores(config.threshold, f"p_any of {log.name}, cut at {config.threshold:g}")


def _random_plan(config: SimulateConfig, scores: ScoreModel) -> Plan:
    def draw(replication: int) -> Cases:
        return draw_poisson(
            rate_per_hour=config.rate_per_hour,
            start_s=config.shift_start * HOUR_S,
            length_s=config.shift_hours * HOUR_S,
            prevalence=config.prevalence,
            scores=scores,
            reading=config.reading,
            shift=replication,
            rng=np.random.default_rng([config.seed, replication]),
        )

    return Plan(
        source=f"{config.replications} random shifts, each from an empty worklist",
        scores=scores,
        draw=draw,
        num_shifts=config.replications,
        num_replications=config.replications,
        per_shift=1,
        starts_s=(config.shift_start * HOUR_S,),
        assumptions=(
            "random: arrivals",
            f"bleeds ({config.prevalence:g})",
            f"scores ({scores.origin})",
            "reading times",
        ),
    )


def _log_plan(config: SimulateConfig, log: Log, scores: ScoreModel | None) -> Plan:
    length_s = config.shift_hours * HOUR_S
    first_s, shift = log.shifts(config.shift_start * HOUR_S, length_s)
    drawer = scores or of_rates(*DEFAULT_RATES, "unused: the log states decisions")
    drawn = [
        *([] if log.bleed is not None else [f"bleeds ({config.prevalence:g})"]),
        *([f"scores ({drawer.origin})"] if log.p_any is None and log.decision is None else []),
        *([] if log.read_s is not None else ["reading times"]),
        *(["interruptions"] if config.interruptions_per_hour else []),
    ]
    replications = config.replications if drawn else 1
    return Plan(
        source=f"{log.name}: {len(log.arrived_s)} studies in {shift[-1] + 1} shifts",
        scores=scores,
        draw=lambda at: log.draw(
            shift, config.prevalence, drawer, config.reading, np.random.default_rng([config.seed, at])
        ),
        num_shifts=int(shift[-1]) + 1,
        num_replications=replications,
        per_shift=replications,
        starts_s=tuple(first_s + number * length_s for number in range(shift[-1] + 1)),
        assumptions=(f"drawn {replications} times: {drawn[0]}", *drawn[1:]) if drawn else ("nothing is drawn",),
    )


def operating_points(config: SimulateConfig, scores: ScoreModel | None) -> list[OperatingPoint]:
    """The one that is asked about, first, and those of the sweep; none of the latter where the log states decisions."""
    if scores is None:
        return [OperatingPoint(name="as the log decided", threshold=None)]
    asked = OperatingPoint(name="as asked", threshold=scores.threshold, human_first=config.human_first)
    swept = [
        OperatingPoint(name=f"{rate:.0%} false alarms", threshold=scores.threshold_at(rate)) for rate in ALARM_RATES
    ]
    return [asked, *swept]
