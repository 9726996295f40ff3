"""The address of a study: only a DICOM UID stands there, what else is asked for is no page."""

from starlette.convertors import Convertor, register_url_convertor


class UidConvertor(Convertor[str]):
    """A DICOM UID in a path: what else stands there is no page."""

    regex = r"[0-9.]{1,64}"

    def convert(self, value: str) -> str:
        """As it is."""
        return value

    def to_string(self, value: str) -> str:
        """As it is."""
        return value


register_url_convertor("uid", UidConvertor())

STUDY = "/studies/{uid:uid}"
