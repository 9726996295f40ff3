"""Why a message did not arrive, and whether trying again can help."""

from fastich.errors import FastichError


class SendError(FastichError):
    """A try that failed, in one line without patient data.

    Attributes:
        permanent: the peer will never take this message, so it waits for a person at once.
    """

    def __init__(self, text: str, *, permanent: bool = False) -> None:
        super().__init__(text)
        self.permanent = permanent
