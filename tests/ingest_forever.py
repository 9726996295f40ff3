"""A child process that takes objects in until it is killed, and prints each UID once it is acknowledged.

Usage: ingest_forever.py FOLDER FIRST_NUMBER
"""

import sys
import threading
from pathlib import Path

from serve_data import ORIGIN, SPOOL, an_ingest, ct_bytes, received, uid

from fastich.serve.spool import Spool
from fastich.serve.store import open_store

NUM_THREADS = 3


def main(folder: Path, first: int) -> None:
    spool = Spool(folder / "spool", SPOOL)
    ingest = an_ingest(open_store(folder / "fastich.sqlite"), spool)
    template = ct_bytes(999_999_999)
    print("ready", flush=True)

    def send(thread: int) -> None:
        number = first + thread
        while True:
            data = template.replace(uid(999_999_999).encode(), uid(100_000_000 + number).encode())
            receipt = ingest.accept(received(spool, data), ORIGIN)
            print(f"{receipt.sop_uid}\n", end="", flush=True)
            number += NUM_THREADS

    for thread in range(NUM_THREADS):
        threading.Thread(target=send, args=(thread,)).start()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
