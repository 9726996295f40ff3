"""The files that are scored: their slices one by one, and what they say beside them, kept for later.

Pixels are never kept: a file's fields for the eligibility rules are an object that its whole series shares, so a slice
costs a place in a table. 0.1 ms a file beside the reading.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastich import verb
from fastich.dicom import Decoder, Seen, load, named_files, read_bytes
from fastich.eligibility import LeftOut, left_out
from fastich.errors import DicomError
from fastich.gate_fields import GateFields, Uids, read_fields, read_uids
from fastich.gate_rules import Rules
from fastich.study_rule import Place, place
from fastich.types import Reject, Slice


@dataclass(slots=True)
class Beside:
    """What files said beside their slices: what the eligibility rules look at, and why some cannot be used.

    ``uids`` are those that each of ``rejects`` says, as far as it can be read. Equal fields are kept once.
    """

    fields: dict[Place, GateFields] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    uids: list[Uids] = field(default_factory=list)
    _known: dict[GateFields, GateFields] = field(default_factory=dict)

    def keep(self, slices: Sequence[Slice], data: bytes) -> None:
        """Note the fields of a file's slices."""
        said = read_fields(data)
        said = self._known.setdefault(said, said)
        self.fields |= {place(one.header): said for one in slices}

    def refuse(self, path: Path, error: DicomError, data: bytes) -> None:
        """Note a file that cannot be used; ``data`` is b"" where it could not be read."""
        self.rejects.append(Reject(path=str(path), reason=error.reason, detail=error.detail))
        self.uids.append(read_uids(data))

    @property
    def not_scored(self) -> list[dict[str, str]]:
        """The files that cannot be used, as JSON shows them."""
        return [{"path": one.path, "reason": one.reason.value, "detail": one.detail} for one in self.rejects]

    def left(self, rules: Rules) -> list[LeftOut]:
        """The files that cannot be used as the rules see them."""
        pairs = zip(self.rejects, self.uids, strict=True)
        return [left_out(rules, one.path, uids, one.reason.value, one.detail) for one, uids in pairs]


def read_all(paths: Sequence[Path], decoder: Decoder, beside: Beside) -> Iterator[Slice]:
    """Every slice below ``paths``, its header's path as a user would type it; the rest is noted in ``beside``."""
    seen = Seen()
    files = list(dict.fromkeys(path for path, _ in named_files(paths)))
    for path in verb.progress(files, total=len(files), unit="files", title="score"):
        data = b""
        try:
            data = load(path)
            slices = read_bytes(data, str(path), decoder=decoder)
            seen.admit(path, slices, decoder)
        except DicomError as error:
            beside.refuse(path, error, data)
            continue
        beside.keep(slices, data)
        yield from slices
