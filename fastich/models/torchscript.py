"""The serving graph as one TorchScript archive, for programs that already run libtorch.

The network is traced (3 s of one core) and the preprocessing scripted, because a trace would fix the tensors that it
makes to this device. Debug records, which hold paths of the exporting machine, and the archive's id, which is made from
them, are left out.
"""

import io
import struct
import warnings
import zipfile
from typing import cast

import torch

from fastich.models.serving import ServingModel

LEFT_OUT = (".debug_pkl", "/.data/serialization_id")
ALIGNMENT_BYTES = 64
"""Where torch starts each record, so that tensors can be mapped."""
LOCAL_HEADER_BYTES, EXTRA_HEADER_BYTES = 30, 4
"""Source: PKWARE APPNOTE 4.3.7 and 4.5.1."""


def torchscript_bytes(serving: ServingModel, example: torch.Tensor) -> bytes:
    """The archive of ``serving``, traced with ``example`` int16 [N, H, W]; N, H and W stay free."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning)
        half_scripted = ServingModel(torch.jit.script(serving.front), serving.model)
        half_scripted.calibrator = serving.calibrator
        module = torch.jit.trace(half_scripted, (example,), check_trace=False)  # type: ignore[no-untyped-call]
        archive = io.BytesIO()
        torch.jit.save(module, archive)
    return without_debug_records(archive.getvalue())


def load_torchscript(content: bytes, device: str = "cpu") -> torch.jit.ScriptModule:
    """The module in ``content``, on ``device``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning)
        loaded = torch.jit.load(io.BytesIO(content), map_location=device)  # type: ignore[no-untyped-call]
        return cast(torch.jit.ScriptModule, loaded)


def without_debug_records(archive: bytes) -> bytes:
    """``archive`` without its debug records; the others keep their order and alignment."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(target, "w") as new:
        for record in old.infolist():
            if record.filename.endswith(LEFT_OUT):
                continue
            entry = zipfile.ZipInfo(record.filename)  # dated 1980, so equal content gives equal bytes
            entry.compress_type = record.compress_type
            start = target.tell() + LOCAL_HEADER_BYTES + len(entry.filename.encode()) + EXTRA_HEADER_BYTES
            padding = -start % ALIGNMENT_BYTES
            entry.extra = b"FB" + struct.pack("<H", padding) + bytes(padding)
            new.writestr(entry, old.read(record))
    return target.getvalue()
