"""A result as one signed POST: our own JSON, or a FHIR DiagnosticReport.

The body has no name, no patient id and no accession number: webhooks feed pagers and chats, often of other companies.
The study UID finds the study in PACS and worklist. The receiver checks, with the secret that both know,

    Fastich-Signature: t=<seconds since the epoch>,v1=<hex HMAC-SHA256 of "<t>." + body>

and refuses old ``t``. ``Fastich-Delivery`` is the same number in each try of one message: whoever has seen it drops
it.
"""

import hashlib
import hmac
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from fastich.files import json_text
from fastich.serve.config import TlsConfig, WebhookConfig
from fastich.serve.entities import Score
from fastich.serve.outputs import fhir, http_client
from fastich.serve.outputs.result import PRELIMINARY, result_of

FORMAT = 1
NAME = "webhook"


def body_of(score: Score, history: Sequence[Score], how: str) -> bytes:
    """What is posted, in the words of ``WebhookConfig.body``; equal scores give equal bytes."""
    if how == "fhir":
        return json_text(fhir.report(result_of(score, history))).encode()
    return json_text(message(score, history)).encode()


def message(score: Score, history: Sequence[Score]) -> dict[str, Any]:
    """Our own JSON; ``result`` is null where nothing was scored."""
    outcome = score.outcome
    return {
        "format": FORMAT,
        "notice": PRELIMINARY,
        "study_uid": score.study_uid,
        "score_id": score.score_id,
        "created_at": datetime.fromtimestamp(score.created_at, UTC).isoformat(),
        "state": outcome.state.value,
        "reason": outcome.reason,
        "priority": outcome.priority.name.lower().replace("_", " "),
        "result": None if outcome.document is None else _result(score, history),
    }


def _result(score: Score, history: Sequence[Score]) -> dict[str, Any]:
    result = result_of(score, history)
    key = result.key_slices["any"]
    return {
        "complete": result.complete,
        "triage": result.triage,
        "findings": list(result.found),
        "probability": dict(result.probability),
        "thresholds": dict(result.thresholds),
        "threshold_rule": result.threshold_rule,
        "num_slices": result.num_slices,
        "left_out": dict(result.left_out),
        "cautions": list(result.cautions),
        "key_slice": {"sop_uid": key.sop_uid, "frame": key.frame, "probability": key.probability},
        "model": {name: result.model[name] for name in ("sha256", "weights_sha256", "study_sha256")},
    }


def signature(secret: str, body: bytes, at: int) -> str:
    """The value of the header ``Fastich-Signature`` at a time in seconds since the epoch."""
    mac = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256)
    return f"t={at},v1={mac.hexdigest()}"


def send(config: WebhookConfig, delivery_id: int, body: bytes, at: float, timeout_s: float) -> str:
    """Post a body, signed where a secret is configured; "" for every 2xx.

    Raises:
        SendError: it was not taken.
        FastichError: the file of the secret cannot be read.
    """
    headers = {
        "Content-Type": "application/fhir+json" if config.body == "fhir" else "application/json",
        "Fastich-Delivery": str(delivery_id),
    }
    if config.secret_file is not None:
        secret = http_client.read_secret(config.secret_file, "[webhook] secret_file")
        headers["Fastich-Signature"] = signature(secret, body, int(at))
    http_client.post(NAME, config.url, body, headers, TlsConfig(), timeout_s)
    return ""
