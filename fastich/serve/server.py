"""The triage server, put together: what listens, what scores, what sends, and how all of it starts and stops.

One process. Its parts meet in the store (tables) and the spool (files) only, so that whoever is killed at any moment,
the tables say what is to be done when it starts again.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

from fastich.errors import FastichError
from fastich.files import write_json
from fastich.serve.audit import FAILURE, SUCCESS, Audit
from fastich.serve.config import ModelConfig, ServeConfig
from fastich.serve.entities import Delivery, Outcome
from fastich.serve.housekeeping import Housekeeping
from fastich.serve.outputs.policy import deliveries_for, names_of
from fastich.serve.outputs.sender import Sender
from fastich.serve.receive import stow, upload
from fastich.serve.receive.bodies import Gate
from fastich.serve.receive.dimse import DicomServer
from fastich.serve.receive.watch import FolderWatch
from fastich.serve.reception import HeardIngest, Reception
from fastich.serve.scoring.engine import Engine
from fastich.serve.session import Session, open_session
from fastich.serve.signals import AGAIN, Signals
from fastich.serve.spool import Spool
from fastich.serve.store import open_store
from fastich.serve.study_session import StudySession, open_study_session
from fastich.serve.web.app import build_app
from fastich.serve.web.parts import Parts
from fastich.serve.web.tokens import Tokens
from fastich.serve.web_server import WebServer
from fastich.verb import one_line, say

log = logging.getLogger(__name__)
DRAIN_S = 20.0
"""How long a graceful stop waits for what is under way; what is left is taken up at the next start."""
DATABASE = "fastich.db"
SERVING = "serving.json"
"""Says where a running server listens, for scripts that let it choose its ports."""


def open_model(config: ModelConfig) -> tuple[Session, StudySession | None]:
    """The network and, where the folder has one, the sequence model; both checked and tried.

    Raises:
        ArtifactError: a file is missing, damaged or of another version, or it cannot run as asked.
    """
    assert config.folder is not None, "config_file.problems was asked"
    session = open_session(config.folder, config.device, backend=config.backend, precision=config.precision)
    return session, open_study_session(config.folder)


class Server:
    """Everything that runs between ``start`` and ``stop``.

    Attributes:
        http_url: where the page is, once started; empty without HTTP.
        dicom_port: where DICOM comes in, once started; 0 without.
    """

    def __init__(self, config: ServeConfig, *, clock: Callable[[], float] = time.time) -> None:
        folder = config.spool.folder
        assert folder is not None, "config_file.problems was asked"
        self.http_url, self.dicom_port = "", 0
        self._folder = folder
        self._config, self._undo = config, contextlib.ExitStack()
        session, study_session = open_model(config.model)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        spool = Spool(folder, config.spool)
        self.store = self._undo.enter_context(contextlib.closing(open_store(config.database.url or folder / DATABASE)))
        self.audit = Audit(config.audit, folder)
        self.sender = Sender(self.store, spool, config, on_told=self._sent)
        self.engine = Engine(
            self.store,
            spool,
            session,
            study_session,
            config.scoring,
            deliveries_for=self._deliveries_for,
            on_final=self.sender.wake,
        )
        self.housekeeping = Housekeeping(self.store, spool, config.retention, on_deleted=self._deleted)
        reception = Reception(self.audit)
        ingest = HeardIngest(self.store, spool, config.spool, notify=self.engine.wake)
        ingest.reception = reception
        self.dicom = DicomServer(ingest, config.dicom, on_event=reception.heard) if config.dicom.enabled else None
        self.watch = FolderWatch(ingest, config.watch, on_event=reception.heard) if config.watch.folder else None
        self._first_start = not (folder / "admin.token").exists()
        self._stopping = threading.Event()
        gate = Gate(config.http.max_uploads)
        parts = Parts(
            store=self.store,
            spool=spool,
            session=session,
            study_session=study_session,
            config=config,
            tokens=Tokens(folder),
            audit=self.audit,
            extra_routes=[*stow.routes(ingest, config.http, gate), *upload.routes(ingest, config.http, gate)],
            clock=clock,
            engine_trouble=self.engine.trouble,
            threads_trouble=self._threads_trouble,
            wake_sender=self.sender.wake,
            stopping=self._stopping,
        )
        self.web = WebServer(build_app(parts), config.http) if config.http.enabled else None

    def start(self) -> None:
        """Start every part, those that work before those that listen.

        Raises:
            FastichError: a port is taken.
        """
        for part in (self.engine, self.sender, self.housekeeping):
            part.start()
        if self.dicom:
            self.dicom.start()
            self.dicom_port = self.dicom.port
            log.info("dicom: %s on %s:%d", self._config.dicom.ae_title, self._config.dicom.host, self.dicom_port)
        if self.web:
            self.web.start()
            self.http_url = self.web.url
            self._say_where()
        if self.watch:
            self.watch.start()
        where = {"pid": os.getpid(), "http_url": self.http_url, "dicom_port": self.dicom_port}
        write_json(self._folder / SERVING, where)

    def stop(self, drain_s: float = DRAIN_S) -> None:
        """Stop listening, finish what is under way for ``drain_s`` at most, and close the store."""
        (self._folder / SERVING).unlink(missing_ok=True)
        self._stopping.set()
        if self.watch:
            self.watch.stop()
        if self.dicom:
            self.dicom.stop(drain_s)
        if self.web:
            self.web.stop()
        self.engine.stop(drain_s)
        self.sender.stop()
        self.housekeeping.stop()
        self.audit.close()
        self._undo.close()

    def run(self, *, check: Callable[[], list[str]]) -> bool:
        """Serve until SIGTERM, SIGINT, or a SIGHUP whose ``check`` finds nothing wrong; True after that one only.

        Whoever asks for an end gets it, also while the check runs or a restart is being prepared.
        """
        with contextlib.closing(Signals()) as signals:
            self.start()
            self.audit.record("start", who="fastich.serve", outcome=SUCCESS)
            while signals.wait() == AGAIN and not _may_restart(check):
                continue
            log.info("stopping: finishing what is under way, %g s at most", DRAIN_S)
            self.audit.record("stop", who="fastich.serve", outcome=SUCCESS)
            self.stop()
            log.info("stopped")
            return not signals.must_end()

    def _say_where(self) -> None:
        """Where the page is; at the first start also what opens it, in words only where a person watches."""
        log.info("http: %s", self.http_url)
        if not self._first_start or self._config.http.auth != "token":
            return
        for role in ("admin", "viewer"):
            path = self._folder / f"{role}.token"
            shown = path.read_text(encoding="ascii").strip() if sys.stderr.isatty() else f"cat {path}"
            say(f"{role} token: {shown}")
        say(f"open {self.http_url} and log in with one of them")

    def _threads_trouble(self) -> str:
        """Which threads beside the page's and the engine's are not there, in one line; empty where all are."""
        expected = ["housekeeping", *(f"send-{name}" for name in names_of(self._config))]
        expected += [name for name, part in (("dicom", self.dicom), ("watch", self.watch)) if part is not None]
        alive = {thread.name for thread in threading.enumerate()}
        gone = [name for name in expected if name not in alive]
        return f"not at work: {', '.join(gone)}; see the log, and start the server again" if gone else ""

    def _deliveries_for(self, outcome: Outcome) -> Sequence[tuple[str, str]]:
        study_uid = (outcome.document or {}).get("study_uid", "")  # what was not scored is sent to nobody anew
        return deliveries_for(self._config, outcome, self.store.deliveries_of(study_uid))

    def _deleted(self, study_uid: str, what: str) -> None:
        self.audit.record("delete", who="fastich.serve", outcome=SUCCESS, study_uid=study_uid, detail=what)

    def _sent(self, message: Delivery, what: str, words: str) -> None:
        outcome = SUCCESS if what == "delivered" else FAILURE
        detail = f"{message.kind} {what}" + (f": {words}" if words else "")
        self.audit.record("send", who=message.destination, outcome=outcome, study_uid=message.study_uid, detail=detail)


def _may_restart(check: Callable[[], list[str]]) -> bool:
    """Whether the settings and the model, as they are now, would start; what serves now goes on if not."""
    try:
        found = check()
    except FastichError as error:
        found = [one_line(error)]
    except Exception as error:  # a server that works is not ended by the question whether another would
        found = [f"the check failed ({type(error).__name__}); see fastich.serve --check-config"]
    for line in found:
        log.error("not restarted, the old model and settings go on: %s", line)
    return not found
