"""Records to batches for the network: decode, 512 to 256 px, three windows, normalisation, float32 batches of 32.

    python bench/bench_load.py [--dicom DIR] [--records DIR] [--quick] [--json FILE]

Ours against what a user would otherwise do. All give float32 [N, 3, S, S] of the same slices in the same order, whole
epochs, with one worker or thread a core; files lie in the page cache.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from case import BATCH, Case
from contest import Contender, Work, WrongOutputError
from preprocessing import EXACT, HALF_HU, epoch_work

from fastich import ops
from fastich.loaders import Loader, LoaderConfig, open_loader
from fastich.records.codec import MODE_HALF_FIRST

STAGE = "load"
AUGMENTED_TOLERANCE = 0.05
"""Of a backend against the torch reference, augmented: another order of bilinear sums at the edge of a window."""
SEED = "8-bit PNG, Pillow, DataLoader (the seed's way)"
NOT_QUICK = (
    "fastich torch reference",
    "fastich DALI, augmented",
    "fastich torch reference, augmented",
    "16-bit PNG, Pillow, DataLoader",
    "raw .npy, DataLoader, windows in the main process",
    "DALI on the CPU, usual stock graph",
)
"""Left out by ``--quick``."""


def contenders(case: Case) -> list[Contender]:
    """Ours first, then the others."""
    found = [*ours(case), *peers(case)]
    return [one for one in found if not (case.quick and one.name in NOT_QUICK)]


def ours(case: Case) -> list[Contender]:
    def one(name: str, backend: str, records: Path, limit: str, **more: Any) -> Contender:
        arguments = {"backend": backend, "records": records, "size": case.size, "device": case.device, **more}
        return Contender(
            name=name, make="bench_load:fastich_loader", arguments=arguments, limit=limit, ceiling="all cores"
        )

    bits, floats = "the cores: bit planes to pixels", "the cores: float arithmetic on whole slices"
    found = [
        one("fastich native, half-first", "native", case.half, bits),
        one("fastich native, flat", "native", case.flat, bits),
        one("fastich DALI, our operator", "dali", case.half, bits),
        one("fastich DALI, stock operators", "dali-stock", case.half, floats),
        one("fastich torch reference", "cpu", case.half, floats),
        one("fastich native, half-first, augmented", "native", case.half, "the cores: bilinear sampling", augment=True),
    ]
    return [
        *found,
        one("fastich DALI, our operator, augmented", "dali", case.half, "the cores: bilinear sampling", augment=True),
        one("fastich torch reference, augmented", "cpu", case.half, floats, augment=True),
    ]


def peers(case: Case) -> list[Contender]:
    common = {"work": case.derived, "size": case.size, "batch": BATCH}
    files = {"records": case.half, "dicom": case.dicom, **common}

    def file(name: str, kind: str, limit: str, baseline: bool = False) -> Contender:
        arguments = {"kind": kind, **files}
        return Contender(
            name=name,
            make="rivals.files:loader",
            arguments=arguments,
            limit=limit,
            baseline=baseline,
            ceiling="all cores",
        )

    between = "sending float tensors between processes"
    return [
        file(SEED, "png8", "the cores: inflate", baseline=True),
        file("pydicom on the fly, DataLoader", "dicom", "the cores: parsing DICOM"),
        file("16-bit PNG, Pillow, DataLoader", "png16", "the cores: inflate"),
        file("raw .npy, DataLoader", "npy", between),
        file("raw .npy, DataLoader, windows in the main process", "npy-plane", between),
        Contender(
            name="WebDataset",
            make="rivals.webdataset_tar:loader",
            arguments={"records": case.half, **common},
            limit=between,
            ceiling="all cores",
        ),
        Contender(
            name="MosaicML Streaming",
            make="rivals.mosaic_mds:loader",
            arguments={"records": case.half, **common},
            limit=between,
            ceiling="all cores",
        ),
        Contender(
            name="FFCV",
            make="rivals.ffcv_beton:loader",
            arguments={"records": case.half, **common},
            ceiling="all cores",
        ),
        *(
            Contender(
                name=f"DALI on the CPU, {graph} stock graph",
                make="rivals.dali_stock:loader",
                arguments={"graph": graph, "records": case.raw, **common},
                limit="the cores: one pass over the slice an operator",
                ceiling="all cores",
            )
            for graph in ("best", "usual")
        ),
    ]


@contextlib.contextmanager
def fastich_loader(backend: str, records: Path, size: int, device: str, augment: bool = False) -> Iterator[Work]:
    """A loader of the package, every row in order."""
    loader = open_loader(config_of(backend, records, size, device, augment))
    if backend == "dali" and loader.backend.startswith("dali-stock"):
        raise ModuleNotFoundError("the DALI operator is not built for this device; make setup says why")
    reader = loader.reader
    half = reader.shape(0)[0] == 2 * size and bytes(reader.payload(0)[5:6])[0] == MODE_HALF_FIRST and not augment
    made = epoch_work(
        lambda: ((batch.images, batch.rows) for batch in loader.epoch(0)),
        reader,
        size,
        HALF_HU if half and loader.backend in ("native-cpu", "dali-cpu", "dali-gpu") else EXACT,
        stored_bytes=float(reader.index["payload_size"].mean()),
        facts={"backend": loader.backend, "ops": ops.backend(), "augment": augment, "ours": True},
    )
    try:
        yield made if not augment else dataclasses.replace(made, check=lambda: check_augmented(loader))
    finally:
        loader.close()


def config_of(backend: str, records: Path, size: int, device: str, augment: bool) -> LoaderConfig:
    threads = len(os.sched_getaffinity(0))
    return LoaderConfig(
        records=records, split="all", batch_size=BATCH, size=size, augment=augment, backend=backend, threads=threads,
        device=device if backend.startswith("dali") else "cpu",
    )  # fmt: skip


def check_augmented(loader: Loader) -> str:
    """The first batch of every epoch's changes against the torch reference, which draws the same ones.

    Raises:
        WrongOutputError: says by how much it differs.
    """
    config = loader.config
    reference = open_loader(config_of("cpu", config.records, config.size, "cpu", True))
    truth, found = next(iter(reference.epoch(0))), next(iter(loader.epoch(0)))
    reference.close()
    worst = float((truth.images - found.images.cpu()).abs().max())
    if not worst <= AUGMENTED_TOLERANCE:
        raise WrongOutputError(f"augmented images differ by {worst:.3g} from the torch reference")
    return f"{AUGMENTED_TOLERANCE} from the torch reference"


if __name__ == "__main__":
    from throughput import alone

    alone(STAGE)
