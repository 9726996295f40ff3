"""The door to the native decoders: owns the worker process, restarts it when it dies or hangs, never trusts it.

Native JPEG, JPEG-LS and JPEG 2000 decoders can abort or hang on damaged input, so they run in ``decode_worker``.
A ``Decoder`` costs nothing until the first compressed frame, then about 0.2 s once. Safe to share between threads
(one frame at a time); a forked child starts a worker of its own.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fastich import decode_worker
from fastich.decode_worker import JPEG, JPEG_2000, JPEG_LS, Frame
from fastich.errors import DicomError
from fastich.types import RejectReason

FRAME_LIMIT_S = 20.0
"""A 512 x 512 frame takes 5-30 ms; a 4096 x 4096 one about 2 s on a slow core."""
START_LIMIT_S = 60.0
_UID = "1.2.840.10008.1.2.4."
CODECS = {
    **{_UID + number: JPEG for number in ("50", "51", "53", "55", "57", "70")},
    **{_UID + number: JPEG_LS for number in ("80", "81")},
    **{_UID + number: JPEG_2000 for number in ("90", "91", "201", "202", "203")},
}
"""Transfer syntax UID to the codec of the worker (PS3.6 table A-1)."""


class Decoder:
    """Decodes single frames in a worker process; use as a context manager, or call ``close``.

    Args:
        frame_limit_s: seconds that one frame may take before the worker is killed.
        command: the worker to run; only tests give another one.
    """

    def __init__(self, frame_limit_s: float = FRAME_LIMIT_S, command: tuple[str, ...] | None = None) -> None:
        script = str(Path(decode_worker.__file__))
        self._limit_s = frame_limit_s
        # -P keeps this package's folder, whose module names shadow the standard library's, off the search path.
        self._command = command or (sys.executable, "-P", script, str(frame_limit_s + 5))
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._noise: IO[bytes] | None = None
        self._owner = 0

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker; the next frame starts a new one."""
        process, noise = self._process, self._noise
        self._process = self._noise = None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout) if process else ():
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if noise is not None:
            noise.close()

    def decode(self, transfer_syntax: str, stream: bytes) -> Frame:
        """Decode one frame's codestream.

        Raises:
            DicomError: DECODER_FAILED where the worker crashed, hung or did not start; DAMAGED_PIXELS where the
                decoder refused the stream; UNSUPPORTED_SYNTAX where no decoder is known.
        """
        codec = CODECS.get(transfer_syntax)
        if codec is None:
            raise DicomError(RejectReason.UNSUPPORTED_SYNTAX, f"no decoder for {transfer_syntax or 'an absent UID'}")
        with self._lock:
            if self._process is not None and self._owner != os.getpid():
                self.close()
            if self._process is None:
                self._start()
            status, frame = self._exchange(decode_worker.REQUEST.pack(codec, len(stream)) + stream, self._limit_s)
        if status == decode_worker.ERROR:
            raise DicomError(RejectReason.DAMAGED_PIXELS, f"the decoder says {frame.body.decode('utf-8', 'replace')}")
        return frame

    def _start(self) -> None:
        self._owner = os.getpid()
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._noise,
                env=environment,
            )
        except OSError as error:
            self.close()
            why = f"the decoder process could not be started: {error.strerror}"
            raise DicomError(RejectReason.DECODER_FAILED, why) from error
        status, _ = self._exchange(b"", START_LIMIT_S)
        if status != decode_worker.READY:
            self.close()
            raise DicomError(RejectReason.DECODER_FAILED, "the decoder process did not start as expected")

    def _exchange(self, request: bytes, limit_s: float) -> tuple[int, Frame]:
        """Send ``request`` and read one reply; a watchdog kills the worker when ``limit_s`` is over."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        watchdog = threading.Timer(limit_s, expire)
        watchdog.daemon = True
        watchdog.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            head = process.stdout.read(decode_worker.REPLY.size)
            status, rows, columns, components, size, precision, signed, length = decode_worker.REPLY.unpack(head)
            body = process.stdout.read(length)
            if len(body) < length:
                raise EOFError
        except Exception:
            watchdog.cancel()
            raise DicomError(RejectReason.DECODER_FAILED, self._obituary(process, expired.is_set(), limit_s)) from None
        except BaseException:  # interrupted between request and reply: the next reply would be for the wrong frame
            watchdog.cancel()
            self.close()
            raise
        watchdog.cancel()
        return status, Frame(rows, columns, components, size, precision, bool(signed), body)

    def _obituary(self, process: "subprocess.Popen[Any]", hung: bool, limit_s: float) -> str:
        """Bury the worker and say what happened to it."""
        noise = self._last_words()
        if not hung:
            try:
                process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        code = process.returncode
        self.close()
        if hung:
            return f"the decoder took longer than {limit_s:g} s and was stopped"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        return f"the decoder process {how}" + (f": {noise}" if noise else "")

    def _last_words(self) -> str:
        if self._noise is None:
            return ""
        self._noise.seek(0)
        lines = self._noise.read(2**16).decode("latin-1").split("\n")
        return next((" ".join(line.split())[:200] for line in reversed(lines) if line.strip()), "")


def samples(frame: Frame) -> NDArray[Any]:
    """The samples of a decoded frame [rows, columns] (one component) as unsigned or signed little-endian integers."""
    kind = f"<{'i' if frame.signed else 'u'}{frame.item_bytes}"
    return np.frombuffer(frame.body, dtype=kind).reshape(frame.rows, frame.columns)
