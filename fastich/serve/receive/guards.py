"""pynetdicom 3.0.4 behind caps: reaches into its internals, with ``listener`` (tests/test_receive_guards.py pins them).

What stock pynetdicom allows, and what stands here in its place:

- a PDU header that says 4 GiB is read until memory ends -> ``GuardedSocket``: 1 MiB, 256 KiB before an association
- a P-DATA PDU of 170,000 two-byte fragments becomes 170,000 objects -> counted before they are made
- a data set is held in memory, twice; a command set has no cap -> ``GuardedDimse``: data goes to a file of the spool
  with a cap (as ``_config.STORE_RECV_CHUNKED_DATASET`` does, which knows neither cap nor folder, and leaves the file
  of a cut association behind); commands end at 4 KiB
- a PDU whose items contradict each other ends the thread that reads with a traceback -> ``GuardedMachine``
- requests queue up without end, each with an open file -> nothing is read while one is being served
- each N-EVENT-REPORT starts a thread -> only C-STORE and C-ECHO requests get through
- a UID that breaks PS3.5 9.1 ends the association, with all that was still to come -> it is answered 0x0117
- a TLS handshake blocks the thread that accepts -> it happens in the connection's own thread, against the clock
- sockets without an association stay, and count as associations -> ``listener``: caps by address and in all, a watch
  on each (``connection``)
- two threads of an idle association look for work every millisecond -> they wait for it (20 of them: 52 % of a core
  before, 13 % now)
- a closed connection keeps its thread until acse_timeout -> it is woken
- every connection deep-copies 170 presentation contexts (24 ms) -> ``Contexts`` are shared
"""

import contextlib
import logging
import queue
import select
import socket
import struct
from typing import Any, cast

from pydicom import config
from pydicom.uid import UID
from pynetdicom import _config
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, DIMSEMessage
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import create_file_meta, encode_file_meta
from pynetdicom.fsm import StateMachine
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket

from fastich.dicom_parse import decode_text
from fastich.serve.entities import Refused
from fastich.serve.identity import is_uid
from fastich.serve.ingest import Ingest, IngestRefused
from fastich.serve.receive.connection import Connection
from fastich.serve.receive.incoming import Incoming
from fastich.serve.receive.reasons import ANSWERS, SOP_CLASS_NOT_SUPPORTED, Report

PYNETDICOM_VERSION = "3.0.4"
"""The version whose internals were read; others of 3.0 may do, and the tests say so."""
P_DATA_TF = 4
MAX_PDU_BYTES = 2**20
"""We announce 128 KiB, DCMTK's largest; some peers send what they like."""
MAX_OTHER_PDU_BYTES = 2**18
"""An A-ASSOCIATE-RQ of 128 contexts with 40 transfer syntaxes each has 160 KiB."""
MAX_FRAGMENTS = 1024
MIN_FRAGMENT_BYTES = 2
"""The context's id and the control byte."""
MAX_COMMAND_BYTES = 4096
"""A C-STORE request has about 300."""
READ_BYTES = 2**16
IDLE_WAIT_S = 0.02
"""A request ends this wait at once; a release or an abort may wait for it."""
NO_DATA_SET = 0x0101
SOP_CLASS, SOP_UID = 0x00000002, 0x00001000


def configure() -> None:
    """The libraries' own switches, for the whole process: legal UIDs only, and no log or warning of what a peer says.

    pydicom would warn of each illegal UID with its text, and Python remembers each warning's text for ever.
    """
    config.settings.reading_validation_mode = config.IGNORE
    _config.ENFORCE_UID_CONFORMANCE = True
    _config.STORE_RECV_CHUNKED_DATASET = False
    _config.LOG_HANDLER_LEVEL = "none"
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)


class GuardedSocket(AssociationSocket):
    """Reads one PDU at a time, of bounded size, and nothing while a request is being served."""

    def __init__(self, association: Association, connection: Connection) -> None:
        super().__init__(association, client_socket=connection.socket)
        self._connection = connection
        self._body_of: int | None = None

    @property
    def ready(self) -> bool:
        """Whether a PDU can be read now; waits a little where there is nothing else to do."""
        if self._connection.serving:
            return False
        if super().ready:
            return True
        if not self._connection.established or self.socket is None:
            return False
        with contextlib.suppress(OSError, ValueError):  # closed by another thread: what is read next says so
            select.select([self.socket], [], [], IDLE_WAIT_S)
        return bool(super().ready)

    def recv(self, nr_bytes: int) -> bytearray:
        """The 6 bytes of a PDU's header or, in the call after it, its body; shorter where the stream ended."""
        if self._body_of is None:
            self._connection.begin()
            header = self._read(nr_bytes)
            if len(header) == nr_bytes:
                self._body_of = self._check_header(header)
            return header
        kind, self._body_of = self._body_of, None
        body = self._read(nr_bytes)
        if kind == P_DATA_TF:
            self._check_fragments(body)
        else:
            self._connection.end()
        return body

    def send(self, bytestream: bytes) -> None:
        """Send one PDU; a P-DATA-TF is an answer, and with it out, reading goes on."""
        super().send(bytestream)
        if bytestream[:1] == bytes([P_DATA_TF]):
            self._connection.answered()

    def _read(self, num_bytes: int) -> bytearray:
        data = bytearray()
        raw = cast(socket.socket, self.socket)
        while len(data) < num_bytes:
            piece = raw.recv(min(READ_BYTES, num_bytes - len(data)))
            if not piece:
                break
            data += piece
            self._connection.received(len(piece))
        return data

    def _check_header(self, header: bytearray) -> int:
        kind, _, size_bytes = struct.unpack(">BBL", header)
        if not 1 <= kind <= 7:
            self._refuse(f"expected a PDU, found bytes that begin with 0x{kind:02X}")
        cap = MAX_PDU_BYTES if kind == P_DATA_TF else MAX_OTHER_PDU_BYTES
        if size_bytes > cap:
            self._refuse(f"a PDU of {size_bytes} bytes, expected at most {cap}")
        return int(kind)

    def _check_fragments(self, body: bytearray) -> None:
        """Walk a P-DATA-TF's items (PS3.8 section 9.3.5.1) before anything is made of them."""
        offset = count = 0
        while offset + 4 <= len(body):
            size_bytes = int.from_bytes(body[offset : offset + 4], "big")
            offset, count = offset + 4 + size_bytes, count + 1
            if size_bytes < MIN_FRAGMENT_BYTES or count > MAX_FRAGMENTS:
                offset = -1
                break
        if offset != len(body) or not body:
            self._refuse("a P-DATA PDU whose fragments do not fit in it")

    def _refuse(self, reason: str) -> None:
        self._connection.cut(reason)
        raise ConnectionAbortedError(reason)


class GuardedMachine(StateMachine):
    """The state machine of PS3.8 section 9.2, whose errors end one association and not in a traceback of its thread."""

    def __init__(self, association: Association, connection: Connection) -> None:
        super().__init__(association.dul)
        self._connection = connection

    def do_action(self, event: str) -> None:
        """Act on an event; what cannot be acted on is the peer's fault."""
        try:
            super().do_action(event)
        except Exception as error:
            self._connection.cut(f"a PDU that is none: {type(error).__name__}")
            self.dul.kill_dul()


class GuardedDimse(DIMSEServiceProvider):
    """Puts fragments together: small commands in memory, data sets in a file of the spool."""

    def __init__(self, association: Association, connection: Connection, ingest: Ingest, report: Report) -> None:
        super().__init__(association)
        self.connection, self._ingest, self._report = connection, ingest, report
        self._command = bytearray()
        self._message: DIMSEMessage | None = None
        self._incoming: Incoming | None = None

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take the fragments of one P-DATA; whatever is wrong with them ends the association."""
        try:
            for context_id, fragment in primitive.presentation_data_value_list:
                self._take(context_id, fragment)
        except Exception as error:  # a command set from a stranger is parsed here: any error is the peer's
            text = str(error) if isinstance(error, _Broken) else f"a message that is none: {type(error).__name__}"
            self.connection.cut(text)

    def get_msg(self, block: bool = False) -> Any:
        """The next whole request with its context, or two times None after a short wait."""
        try:
            return self.msg_queue.get(timeout=IDLE_WAIT_S)
        except queue.Empty:
            return None, None

    def discard(self) -> None:
        """Remove what was never served."""
        waiting = [message for _, message in self.msg_queue.queue if message is not None]
        for incoming in [self._incoming, *(getattr(message, "incoming", None) for message in waiting)]:
            if incoming is not None:
                incoming.discard()

    def _take(self, context_id: int, fragment: bytes) -> None:
        """One fragment (PS3.8 annex E.2: bit 0 command, bit 1 last of its kind)."""
        is_command, is_last = bool(fragment[0] & 1), bool(fragment[0] & 2)
        if is_command != (self._message is None):
            raise _Broken("expected a command and then its data set, found them the other way round")
        if is_command:
            self._command += fragment[1:]
            if len(self._command) > MAX_COMMAND_BYTES:
                raise _Broken(f"a command of more than {MAX_COMMAND_BYTES} bytes")
            if is_last:
                self._begin(context_id)
            return
        assert self._incoming is not None
        self._incoming.write(memoryview(fragment)[1:])
        if self._incoming.size_bytes > self.connection.limits.max_object_bytes:
            raise _Broken(f"an object of more than {self.connection.limits.max_object_bytes} bytes")
        if is_last:
            self._finish()

    def _begin(self, context_id: int) -> None:
        """A whole command: make the message, and the file of its data set."""
        whole = P_DATA()
        whole.presentation_data_value_list.append((context_id, b"\x03" + bytes(self._command)))
        self._command.clear()
        message = DIMSEMessage()
        message.decode_msg(whole)
        if context_id not in self.assoc._accepted_cx:
            raise _Broken("a message in a presentation context that was not accepted")
        has_data = message.command_set.CommandDataSetType != NO_DATA_SET
        if not isinstance(message, C_STORE_RQ | C_ECHO_RQ) or has_data != isinstance(message, C_STORE_RQ):
            raise _Broken("expected C-STORE with a data set or C-ECHO without, found another message")
        self._message = message
        if has_data:
            self._incoming = self._open(message, self.assoc._accepted_cx[context_id])
        else:
            self._finish()

    def _open(self, message: DIMSEMessage, context: PresentationContext) -> Incoming:
        """The file that the data set goes to, refused already where there is a reason."""
        incoming = Incoming(self._ingest.spool, self.connection.limits.max_object_bytes)
        sop_class, sop_uid = (_uid(message, tag) for tag in (SOP_CLASS, SOP_UID))
        if not (is_uid(sop_class) and is_uid(sop_uid)):
            incoming.refuse(IngestRefused(Refused.INVALID_UID, "in the C-STORE request"))
        try:
            self._ingest.check_capacity()
        except IngestRefused as refusal:
            incoming.refuse(refusal)
        if incoming.refused is None:
            meta = create_file_meta(
                sop_class_uid=UID(sop_class),
                sop_instance_uid=UID(sop_uid),
                transfer_syntax=context.transfer_syntax[0],
            )
            incoming.write(bytes(128) + b"DICM" + encode_file_meta(meta))
        return incoming

    def _finish(self) -> None:
        """A whole message: hand it to the association's thread, or answer at once what has no right to get there."""
        assert self._message is not None
        message, incoming = self._message, self._incoming
        self._message = self._incoming = None
        self.connection.taken()
        context_id = cast(int, message.context_id)
        context = self.assoc._accepted_cx[context_id]
        is_of_context = _uid(message, SOP_CLASS) == context.abstract_syntax
        if incoming is not None and incoming.refused is not None:
            reason = incoming.refused.reason
            self._answer(message, ANSWERS[reason].dimse_status, reason.value)
        elif incoming is not None and not is_of_context:
            incoming.discard()
            self._answer(message, SOP_CLASS_NOT_SUPPORTED, "not the SOP class of its presentation context")
        else:
            primitive: Any = message.message_to_primitive()
            if not is_of_context or not primitive.is_valid_request:
                raise _Broken("a request that lacks what PS3.7 demands")
            primitive.incoming = incoming
            self.msg_queue.put((context_id, primitive))

    def _answer(self, message: DIMSEMessage, status: int, comment: str) -> None:
        response: Any = C_STORE()  # the library types ErrorComment as None
        response.MessageIDBeingRespondedTo = message.command_set.MessageID
        response.Status, response.ErrorComment = status, comment
        self.send_msg(response, cast(int, message.context_id))
        self._report("refused", {"address": self.connection.address, "reason": comment})


def _uid(message: DIMSEMessage, tag: int) -> str:
    """A UID of the command as it came: pydicom would repeat one that breaks the rules in a warning."""
    element = message.command_set.get_item(tag)
    value = b"" if element is None else element.value
    return decode_text(value) if isinstance(value, bytes) else str(value)


class _Broken(Exception):
    """A message that no honest peer sends."""
