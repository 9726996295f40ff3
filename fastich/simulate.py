"""What the worklist would be worth: arrivals replayed with a reader model, in its order and first come, first read.

Arrivals come from a log (--log) or are random; what the log does not say (bleeds, scores, reading times) is drawn. Both
orders get the same studies and the same reading times, so that the differences are of the order alone. Prints minutes
saved to the first read of a bleed, what that costs every other study, alarms a shift, and the same at other operating
points; --plot draws it. A study counts as read when a reader opens it, and a shift is read to its end. About 20
microseconds a study, order and operating point: 4 s for the default 200 shifts.
"""

import json
from typing import Any

import numpy as np

from fastich import verb
from fastich.errors import UsageError
from fastich.files import atomic_path
from fastich.simulation.cases import HOUR_S, MINUTE_S
from fastich.simulation.config import SimulateConfig
from fastich.simulation.effect import Resampler, effect, run_all
from fastich.simulation.plan import Plan, operating_points, plan_of
from fastich.simulation.plot import draw
from fastich.simulation.reading_room import Staff
from fastich.simulation.words import table


def simulate(config: SimulateConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """What --json prints, and the waits of bleeds, minutes, in both orders for the picture.

    Raises:
        FastichError: see ``plan_of``; or nothing came at all.
    """
    plan = plan_of(config)
    points = operating_points(config, plan.scores)
    replications = verb.progress(
        range(plan.num_replications), total=plan.num_replications, unit="replications", title="simulate"
    )
    staff = Staff(readers=config.readers)
    waits = run_all(plan.draw, replications, points, config.notification_s, staff)
    if not len(waits[0].bleed):
        raise UsageError("expected at least one study, found none; raise --rate-per-hour or --replications")
    resampler = Resampler.of(plan.num_shifts, config.bootstrap, config.seed, plan.per_shift)
    effects = [effect(point, of, resampler) for point, of in zip(points, waits, strict=True)]
    num_studies = len(waits[0].bleed)
    found = {
        "source": plan.source,
        "assumptions": list(plan.assumptions),
        "config": verb.plain(config),
        "num_shifts": plan.num_shifts,
        "num_replications": plan.num_replications,
        "studies_per_shift": num_studies / plan.num_shifts / plan.per_shift,
        "prevalence": float(waits[0].bleed.mean()),
        "load": _load(config, staff, plan, float(waits[0].busy.sum())),
        "operating_point": effects[0],
        "sweep": effects[1:],
    }
    bleed = waits[0].bleed
    return found, {"first come": waits[0].first_come[bleed], "worklist": waits[0].worklist[bleed]}


def _load(config: SimulateConfig, staff: Staff, plan: Plan, busy_minutes: float) -> float | None:
    """Reading time that came over the time that readers were on duty; None where nobody was on duty in any shift."""
    length_s = config.shift_hours * HOUR_S
    on_duty_s = float(np.mean([staff.seconds(start, length_s) for start in plan.starts_s]))
    shifts = plan.num_shifts * plan.per_shift
    return busy_minutes * MINUTE_S / (on_duty_s * shifts) if on_duty_s else None


def main(argv: list[str]) -> int:
    """Run the verb."""
    made = verb.parser("simulate", __doc__)
    verb.add_config_flags(made, SimulateConfig)
    made.add_argument("--json", action="store_true", help="print everything as JSON instead of the tables")
    args = made.parse_args(argv)
    config = verb.config_from_args(args, SimulateConfig)
    found, waits = simulate(config)
    if config.plot is not None:
        with atomic_path(config.plot) as temporary:
            temporary.write_bytes(draw(found, waits, config.plot.suffix))
    print(json.dumps(found, indent=2, allow_nan=False) if args.json else "\n".join(table(found)))
    return 0


if __name__ == "__main__":
    verb.run(main)
