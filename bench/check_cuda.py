"""The CUDA kernels on a GPU: are they right, and how fast are they beside the copies that bound them?

    python bench/check_cuda.py [--json FILE] [--batch 64] [--side 512] [--size 256] [--seconds 2]

First every payload kind (flat, half-first, raw; random, extreme, mutated, truncated; odd shapes) against the numpy
codec and windowing.py, and augmented images against the torch loader: any difference ends the run with exit status 1.
Then slices/s with payloads in device memory and from pinned host memory, beside the device's own copy rate: `of copy`
is the share of it that the bytes a slice must move (kernels/gpu.h) amount to. `--device cpu --library PATH` runs the
same on tests/cuda_emulator.h, where only the first part means anything. Not run on a GPU yet.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastich import ops, ops_cuda, verb
from fastich.errors import FastichError, RecordError, UsageError
from fastich.hu import from_record
from fastich.loaders import augment, cpu
from fastich.ops_cuda import CudaDecodeWindow, DeviceBatch
from fastich.preprocess import Preprocess, resize_area
from fastich.records import codec
from fastich.training.environment import host, versions
from fastich.windowing import DEFAULT_WINDOWS, preprocess

ROUNDS = 5
ELEMENTS = {ops.FLOAT32: torch.float32, ops.FLOAT16: torch.float16, ops.BFLOAT16: torch.bfloat16}
COPY_BYTES = 1 << 28
SHAPES = ((1, 1), (33, 7), (64, 64), (96, 50), (40, 1100), (128, 128))


@dataclass(frozen=True, slots=True)
class Payloads:
    """N payloads on the device, and the memory that a call needs; tensors live as long as this object."""

    batch: DeviceBatch
    tensors: tuple[torch.Tensor, ...]
    status: torch.Tensor
    scratch: torch.Tensor

    @property
    def data(self) -> torch.Tensor:
        return self.tensors[0]


def main(argv: list[str]) -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="append each row to this file as one JSON line")
    made.add_argument("--batch", type=int, default=64, help="slices a launch (default: 64)")
    made.add_argument("--side", type=int, default=512, help="side of the stored slices, pixels (default: 512)")
    made.add_argument("--size", type=int, default=256, help="side of the network's input, pixels (default: 256)")
    made.add_argument("--seconds", type=float, default=2.0, help="aimed length of a measurement (default: 2)")
    made.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: the emulator (default: cuda)")
    made.add_argument("--library", type=Path, default=ops_cuda.LIBRARY, help="the kernels (default: those built)")
    args = made.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch sees no CUDA device; run this on a machine with a GPU and its driver")
    checked = check(args.library, args.device)
    verb.say(f"{ops_cuda.backend(args.library)}: {checked} slices are those of the reference")
    rows = list(speed(args))
    print(markdown(rows))
    if args.json:
        name = torch.cuda.get_device_name() if args.device == "cuda" else "emulator"
        facts = {"ops": ops_cuda.backend(args.library), "gpu": name, "host": host(), "versions": versions()}
        facts |= {"batch": args.batch, "side": args.side, "size": args.size, "checked_slices": checked}
        with args.json.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps({**row, **facts}) + "\n" for row in rows)


def place(payloads: list[bytes], shapes: list[tuple[int, int]], name: str, library: Path, device: str) -> Payloads:
    """Payloads behind each other in device memory, at whatever alignment that gives."""
    sizes = np.asarray([len(payload) for payload in payloads], np.int64)
    arrays = (
        np.frombuffer(b"".join(payloads) + b"\0", np.uint8).copy(), np.cumsum(sizes) - sizes, sizes,
        np.asarray([h for h, _ in shapes], np.int32), np.asarray([w for _, w in shapes], np.int32),
    )  # fmt: skip
    tensors = tuple(torch.from_numpy(array).to(device) for array in arrays)
    names = ("data", "offset", "size", "height", "width")
    addresses = {key: tensor.data_ptr() for key, tensor in zip(names, tensors, strict=True)}
    bounds = (max(h for h, _ in shapes), max(w for _, w in shapes))
    batch = DeviceBatch(
        **addresses, data_bytes=tensors[0].numel(), num=len(payloads), codec=name,
        max_height=bounds[0], max_width=bounds[1],
    )  # fmt: skip
    needed = ops_cuda.scratch_bytes(len(payloads), name, *bounds, library)
    scratch = torch.empty(needed + 256, dtype=torch.uint8, device=device)
    scratch = scratch[-scratch.data_ptr() % 256 :][:needed]
    return Payloads(batch, tensors, torch.full((len(payloads),), -1, dtype=torch.int32, device=device), scratch)


def stream(device: str) -> int:
    return int(torch.cuda.current_stream().cuda_stream) if device == "cuda" else 0


def launch(fused: CudaDecodeWindow, placed: Payloads, out: torch.Tensor, changes: dict[str, torch.Tensor]) -> None:
    """One call of the kernels on the current stream."""
    fused(
        placed.batch, out.data_ptr(), placed.status.data_ptr(), placed.scratch.data_ptr(), placed.scratch.numel(),
        stream(out.device.type), **{name: tensor.data_ptr() for name, tensor in changes.items()},
    )  # fmt: skip


def output(fused: CudaDecodeWindow, count: int, device: str) -> torch.Tensor:
    side, channels = fused.size, fused.num_windows
    shape = (channels, side, side) if fused.layout == ops.CHW else (side, side, channels)
    return torch.full((count, *shape), 7, dtype=ELEMENTS[fused.dtype], device=device)


def check(library: Path, device: str) -> int:
    """Compare all kinds of payloads with the references; how many slices were compared.

    Raises:
        FastichError: a slice differs; names kind and number.
    """
    rng = np.random.default_rng(0)
    slices = [image for shape in SHAPES for image in images(rng, shape)]
    modes = [codec.MODE_HALF_FIRST if not any(side % 2 for side in p.shape) else codec.MODE_FLAT for p in slices]
    flat = [codec.encode_lbp(pixels, codec.MODE_FLAT) for pixels in slices]
    first = [codec.encode_lbp(pixels, mode) for pixels, mode in zip(slices, modes, strict=True)]
    raw = [codec.encode(pixels, "raw") for pixels in slices]
    mutants = [mutated(rng, payload) for payload in (*flat, *first) for _ in range(4)]
    shapes = [pixels.shape for pixels in slices]
    compared = [check_pixels(payloads, shapes, name, library, device)
                for payloads, name in ((flat, "lbp"), (first, "lbp"), (raw, "raw"))]  # fmt: skip
    compared.append(check_pixels(mutants, [s for s in (*shapes, *shapes) for _ in range(4)], "lbp", library, device))
    compared += [check_images(rng, mode, library, device) for mode in (codec.MODE_FLAT, codec.MODE_HALF_FIRST)]
    return sum(compared)


def images(rng: np.random.Generator, shape: tuple[int, int]) -> list[np.ndarray]:
    """A head-like slice, noise of all bits, and the largest residuals there are."""
    extreme = np.indices(shape).sum(axis=0) % 2 * 65535
    return [head(rng, *shape), rng.integers(0, 65536, shape).astype(np.uint16), extreme.astype(np.uint16)]


def head(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A round head of noisy tissue in air, HU + 1024: about as compressible as CT."""
    y, x = np.mgrid[0:height, 0:width]
    radius = np.hypot((y + 0.5) / height - 0.5, (x + 0.5) / width - 0.5)
    hu = np.where(radius < 0.38, 35.0, np.where(radius < 0.42, 900.0, -1000.0))
    return (hu + 1024 + rng.normal(0, 6, hu.shape) * (radius < 0.45)).clip(0).astype(np.uint16)


def mutated(rng: np.random.Generator, payload: bytes) -> bytes:
    changed = bytearray(payload)
    for _ in range(rng.integers(0, 4)):
        changed[rng.integers(0, rng.choice([16, len(changed)]))] = rng.integers(0, 256)
    return bytes(changed[: rng.integers(0, len(changed) + 1)] if rng.random() < 0.25 else changed)


def check_pixels(
    payloads: list[bytes], shapes: list[tuple[int, int]], name: str, library: Path, device: str
) -> int:  # fmt: skip
    placed = place(payloads, shapes, name, library, device)
    shape = (len(payloads), placed.batch.max_height, placed.batch.max_width)
    pixels = torch.full(shape, 7, dtype=torch.int16, device=device)
    scratch, status = placed.scratch, placed.status
    ops_cuda.decode(
        placed.batch, pixels.data_ptr(), status.data_ptr(), scratch.data_ptr(), scratch.numel(), stream(device), library
    )
    found, refused = pixels.cpu().numpy().view(np.uint16), status.cpu().numpy()
    for number, (payload, (height, width)) in enumerate(zip(payloads, shapes, strict=True)):
        expected = np.zeros(found.shape[1:], np.uint16)
        try:
            expected[:height, :width] = codec.decode(payload, height, width, name)
            damaged = 0
        except RecordError:
            damaged = 1
        if refused[number] != damaged or not np.array_equal(found[number], expected):
            raise FastichError(f"{name} payload {number} of {height} x {width}: status {refused[number]}, "
                               f"expected {damaged}, or other pixels than the reference")  # fmt: skip
    return len(payloads)


def check_images(rng: np.random.Generator, mode: int, library: Path, device: str) -> int:
    """Windowed and augmented images at a side where the half plane is not used, in each element type and layout."""
    height, width, size, count = 96, 120, 50, 4
    slices = [head(rng, height, width) for _ in range(count)]
    placed = place([codec.encode_lbp(p, mode) for p in slices], [(height, width)] * count, "lbp", library, device)
    changes = augment.draw(0, 0, np.arange(count))
    maps = np.stack([changes.matrix(item, height, width) for item in range(count)])
    hu = torch.from_numpy(np.stack([from_record(pixels) for pixels in slices])[:, None])
    small = cpu.change_intensity(resize_area(cpu.warp(hu, maps), size), changes, list(range(count)))
    augmented = Preprocess(size, DEFAULT_WINDOWS, False).to_channels(small).numpy()
    plain = np.stack([preprocess(from_record(pixels), size) for pixels in slices])
    given = {
        "matrix": torch.from_numpy(maps.reshape(count, 6).astype(np.float32)).to(device),
        "intensity": torch.from_numpy(np.stack([changes.gain, changes.offset_hu], axis=1)).to(device),
    }
    for dtype, rounding in ((ops.FLOAT32, 0.0), (ops.FLOAT16, 2**-10), (ops.BFLOAT16, 2**-7)):
        for layout in (ops.CHW, ops.HWC):
            fused = CudaDecodeWindow(DEFAULT_WINDOWS, size, dtype=dtype, layout=layout, library=library)
            for truth, tolerance, extra in ((plain, 1e-4, {}), (augmented, 1e-3, given)):
                out = output(fused, count, device)
                launch(fused, placed, out, extra)
                found = out.float().cpu().numpy()
                found = found if layout == ops.CHW else found.transpose(0, 3, 1, 2)
                worst = float(np.abs(found - truth).max() - rounding * np.abs(truth).max())
                if placed.status.any() or not worst <= tolerance:
                    raise FastichError(f"images of mode {mode}, dtype {dtype}, layout {layout}: off by {worst:.2g}, "
                                       f"expected at most {tolerance}")  # fmt: skip
    return count * 12


def speed(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rates of the copies, then of decode_window for each kind of payload."""
    device, gpu = args.device, args.device == "cuda"
    big = torch.zeros(COPY_BYTES if gpu else 1 << 20, dtype=torch.uint8, device=device)
    other, pinned = torch.empty_like(big), torch.zeros(big.numel(), dtype=torch.uint8, pin_memory=gpu)
    copied = measure(lambda: other.copy_(big), 2 * big.numel(), args.seconds, gpu)
    yield {"stage": "copy on the device", **copied}
    yield {"stage": "copy from pinned memory", **measure(
        lambda: other.copy_(pinned, non_blocking=True), big.numel(), args.seconds, gpu)}  # fmt: skip
    slices = [head(np.random.default_rng(number), args.side, args.side) for number in range(args.batch)]
    for kind in ("flat", "half-first", "raw"):
        packed = [pack(pixels, kind) for pixels in slices]
        name = "raw" if kind == "raw" else "lbp"
        placed = place(packed, [(args.side, args.side)] * args.batch, name, args.library, device)
        upload = placed.data.cpu().pin_memory() if gpu else placed.data.clone()
        identity = torch.tensor([[1.0, 0, 0, 0, 1, 0]] * args.batch, device=device)
        for dtype in (ops.FLOAT32, ops.FLOAT16):
            fused = CudaDecodeWindow(DEFAULT_WINDOWS, args.size, dtype=dtype, layout=ops.HWC, library=args.library)
            out = output(fused, args.batch, device)

            def plain(fused=fused, placed=placed, out=out) -> None:
                launch(fused, placed, out, {})

            def uploaded(fused=fused, placed=placed, out=out, upload=upload) -> None:
                placed.data.copy_(upload, non_blocking=True)
                launch(fused, placed, out, {})

            def warped(fused=fused, placed=placed, out=out, identity=identity) -> None:
                launch(fused, placed, out, {"matrix": identity})

            for place_name, work in (("", plain), (" from pinned memory", uploaded), (" warped", warped)):
                half_plane = kind == "half-first" and work is not warped and args.side == 2 * args.size
                moved = moved_bytes(kind, half_plane, args, len(upload) / args.batch, out[0].nbytes)
                row = measure(work, args.batch * moved, args.seconds, gpu)
                yield {
                    "stage": f"decode_window {kind} {str(out.dtype).removeprefix('torch.')}{place_name}",
                    "slices_per_s": round(row["gb_per_s"] * 1e9 / moved, 1), **row,
                    "payload_bytes": round(len(upload) / args.batch), "moved_bytes": round(moved),
                    "of_copy": round(row["gb_per_s"] / copied["gb_per_s"], 3),
                }  # fmt: skip


def pack(pixels: np.ndarray, kind: str) -> bytes:
    if kind == "raw":
        return codec.encode(pixels, "raw")
    return codec.encode_lbp(pixels, codec.MODE_FLAT if kind == "flat" else codec.MODE_HALF_FIRST)


def moved_bytes(kind: str, half_plane: bool, args: argparse.Namespace, payload: float, out: int) -> float:
    """Device memory that a slice must read and write: payload, plane of pixels (not of raw ones), output."""
    plane = 2 * args.side**2 // (4 if half_plane else 1)
    read = payload / 3 if half_plane else payload  # the half plane is about a third of a half-first payload
    return float(read + (0 if kind == "raw" else 2 * plane) + out)


def measure(work: Callable[[], Any], num_bytes: float, seconds: float, gpu: bool) -> dict[str, Any]:
    """GB/s of ``work``, which moves ``num_bytes``: median, lowest and highest of a few rounds."""

    def timed(repeats: int) -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    timed(1)
    repeats = max(1, round(seconds / ROUNDS / timed(1)))
    rates = [num_bytes * repeats / timed(repeats) / 1e9 for _ in range(ROUNDS)]
    return {"gb_per_s": statistics.median(rates), "lowest": min(rates), "highest": max(rates), "rounds": ROUNDS}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| stage | slices/s | GB/s | lowest | highest | of copy |", "|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        rate = f"{row['slices_per_s']:,.0f}" if "slices_per_s" in row else ""
        share = f"{row['of_copy']:.1%}" if "of_copy" in row else ""
        cells = f"{row['gb_per_s']:,.1f} | {row['lowest']:,.1f} | {row['highest']:,.1f}"
        lines.append(f"| {row['stage']} | {rate} | {cells} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    verb.run(main)
