"""One object to one DICOM peer by C-STORE, over TLS where asked. One association each; 20 ms on loopback.

Source: PS3.4 B.2.3 (status codes of storage), PS3.7 C.4 and C.5 (general ones), PS3.8 9.3.3 (contexts).
"""

import io

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.association import Association

from fastich.serve.config import Destination
from fastich.serve.outputs.send_error import SendError
from fastich.serve.outputs.tls import client_context

SUCCESS, DUPLICATE = 0x0000, 0x0111
PERMANENT = {0x0117: "invalid object instance", 0x0122: "SOP class not supported"}
MISMATCH = range(0xA900, 0xAA00)
"""The data set does not match its SOP class: it will not tomorrow either."""
WARNINGS = (range(0xB000, 0xC000), range(0x0001, 0x0002), range(0x0107, 0x0108), range(0x0116, 0x0117))
OUT_OF_RESOURCES = range(0xA700, 0xA800)
NOT_SUPPORTED = {3: "abstract syntax not supported", 4: "transfer syntaxes not supported"}


def send(where: Destination, calling_ae_title: str, data: bytes, timeout_s: float) -> str:
    """Store the Part 10 file ``data`` at a peer; "" or the peer's warning in words.

    Raises:
        SendError: it was not stored, as far as is known.
    """
    dataset = dcmread(io.BytesIO(data))
    association = _associate(where, calling_ae_title, str(dataset.SOPClassUID), timeout_s)
    try:
        status = association.send_c_store(dataset)
    except (ValueError, RuntimeError) as error:  # the peer went away, or took no context that fits
        raise SendError(f"{_name(where)}: C-STORE failed ({type(error).__name__})") from error
    finally:
        _close(association)
    return _judge(where, status)


def _associate(where: Destination, calling_ae_title: str, sop_class: str, timeout_s: float) -> Association:
    entity = AE(ae_title=calling_ae_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = timeout_s
    entity.add_requested_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    tls = (client_context(where.tls), where.host) if where.use_tls else None
    association = entity.associate(where.host, where.port, ae_title=where.ae_title or "ANY-SCP", tls_args=tls)
    if association.is_established:
        return association
    for context in association.rejected_contexts:
        if context.result in NOT_SUPPORTED:
            raise SendError(f"{_name(where)}: {sop_class}: {NOT_SUPPORTED[context.result]}", permanent=True)
    if association.is_rejected:
        answer = association.acceptor.primitive
        raise SendError(f"{_name(where)}: association rejected ({answer.reason_str if answer else 'no reason'})")
    raise SendError(f"{_name(where)}: no association within {timeout_s:g} s (nobody listens, TLS failed or it aborted)")


def _close(association: Association) -> None:
    if association.is_established:
        association.release()
    else:
        association.kill()


def _judge(where: Destination, status: Dataset) -> str:
    """Success or a warning, or why not."""
    if "Status" not in status:
        raise SendError(f"{_name(where)}: no answer to C-STORE (connection lost or too slow)")
    code = int(status.Status)
    if code == SUCCESS:
        return ""
    if code == DUPLICATE:
        return "0x0111: it was there already"
    if any(code in codes for codes in WARNINGS):
        return f"0x{code:04X}: stored with a warning"
    if code in PERMANENT or code in MISMATCH:
        words = PERMANENT.get(code, "data set does not match its SOP class")
        raise SendError(f"{_name(where)}: C-STORE refused, 0x{code:04X} ({words})", permanent=True)
    words = " (out of resources)" if code in OUT_OF_RESOURCES else ""
    raise SendError(f"{_name(where)}: C-STORE failed, 0x{code:04X}{words}")


def _name(where: Destination) -> str:
    return f"{where.name} ({where.ae_title} at {where.host}:{where.port})"
