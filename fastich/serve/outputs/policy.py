"""What is sent where: decided once, when a study becomes final, and written beside its result in one transaction.

- A report (sr) goes to every destination that takes reports, for every scored study, or raised ones only.
- A key image (sc) goes out for raised studies only: a picture with a coloured spot in a study that the model calls
  clear would raise an alarm that the model does not.
- Whoever takes raised studies only, and was sent one, is sent the newer reports of that study too: a correction.
- A webhook is told of every final study, or of raised ones only; as FHIR of scored ones, for nothing makes no report.
"""

from collections.abc import Sequence

from fastich.errors import UsageError
from fastich.serve.config import ServeConfig
from fastich.serve.entities import Delivery, Outcome, Priority, StudyState
from fastich.serve.outputs import key_image, sr

WEBHOOK = "webhook"
"""Kind and destination of the webhook."""


def deliveries_for(config: ServeConfig, outcome: Outcome, earlier: Sequence[Delivery] = ()) -> list[tuple[str, str]]:
    """(destination, kind) of everything that a final outcome sends; ``earlier`` is what was sent of the same study."""
    told = {one.destination for one in earlier}
    is_scored = outcome.state is StudyState.SCORED and outcome.document is not None
    is_raised = outcome.priority > Priority.ROUTINE
    found = [
        (where.name, kind)
        for where in config.destinations
        for kind in where.send
        if is_scored and (is_raised or (kind == sr.KIND and (not where.only_raised or where.name in told)))
    ]
    hook = config.webhook
    if hook.url and (is_raised or not hook.only_raised or WEBHOOK in told) and (is_scored or hook.body == "json"):
        found.append((WEBHOOK, WEBHOOK))
    return found


def names_of(config: ServeConfig) -> list[str]:
    """Names of everything that is sent to.

    Raises:
        UsageError: two destinations share a name, one has none, or takes what there is not.
    """
    names = [where.name for where in config.destinations]
    for number, name in enumerate(names):
        if not name or name == WEBHOOK or name in names[:number]:
            raise UsageError(
                f"[[destinations]] number {number + 1}: name: expected one of its own (not {WEBHOOK!r}), found {name!r}"
            )
    for where in config.destinations:
        unknown = [kind for kind in where.send if kind not in (sr.KIND, key_image.KIND)]
        if unknown:
            raise UsageError(f"[[destinations]] {where.name}: send: expected sr or sc, found {unknown[0]!r}")
    return [*names, WEBHOOK] if config.webhook.url else names
