"""One table of refusals: every reason has its codes, and codes of one class mean the same to a sender."""

import pytest

from fastich.serve.entities import Refused
from fastich.serve.receive.reasons import ANSWERS, http_headers, http_status

BUSY, FULL, BAD, UID = Refused.BUSY, Refused.STORAGE_FULL, Refused.MALFORMED, Refused.INVALID_UID


@pytest.mark.parametrize("reason", Refused)
def test_what_passes_by_itself_and_only_that_invites_the_sender_to_come_back(reason: Refused) -> None:
    answer = ANSWERS[reason]
    assert answer.is_temporary == (answer.dimse_status >> 8 == 0xA7)
    assert answer.is_temporary == (answer.failure_reason >> 8 == 0xA7)
    assert answer.is_temporary == (answer.http_status in (503, 507))
    assert bool(http_headers(answer.http_status)) == answer.is_temporary
    assert answer.dimse_status not in (0x0000, 0xB000, 0xB006, 0xB007), "neither success nor a warning"


@pytest.mark.parametrize("reason", Refused)
def test_the_words_fit_into_an_error_comment(reason: Refused) -> None:
    assert len(reason.value) <= 64, "LO of PS3.5 table 6.2-1"


@pytest.mark.parametrize(
    ("num_stored", "reasons", "status"),
    [
        (3, [], 200),
        (1, [BAD], 202),
        (0, [BAD, BAD], 400),
        (0, [UID], 409),
        (0, [BAD, UID], 409),
        (0, [BAD, BUSY], 503),
        (0, [BUSY, FULL], 507),
    ],
)
def test_a_request_of_many_has_the_status_of_what_its_refusals_share(
    num_stored: int, reasons: list[Refused], status: int
) -> None:
    assert http_status(num_stored, reasons) == status
