"""What a card that is not here could do: a roofline from counted work and datasheet rates. No measurement of anything.

slices/s = min(peak FLOP/s / FLOP a slice, memory bytes/s / bytes a slice), 16-bit tensors. FLOPs are those of
``traffic.py``. Bytes depend on how well operators are fused: ``eager`` is counted (``traffic.py``), ``compiled`` and
``perfect`` are stated for a forward pass: 140 and 54 MB (every BN-ReLU and concatenation fused away in the second).
Training is taken as as many times the forward pass as in eager mode. ``expected`` is 56 to 83 % of the roofline, the
range of timm's published DenseNet121 runs on NVIDIA cards.
"""

from dataclasses import dataclass

import torch
from rows import shown
from traffic import count

REACHED = (0.56, 0.83)
COMPILED_BYTES, PERFECT_BYTES = 140e6, 54e6
"""Forward, 256 px, 16 bits."""
STATED_SIZE = 256
RAW_SLICE_BYTES = 512 * 512 * 2
FLOAT16_INPUT_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class Card:
    """Datasheet rates: memory bytes/s, dense 16-bit tensor FLOP/s, memory bytes, host to device bytes/s each way."""

    memory_rate: float
    flop_rate: float
    memory_bytes: float
    host_rate: float


CARDS = {
    # NVIDIA A40 datasheet: 48 GB GDDR6, 696 GB/s; FP16 Tensor Core 149.7 TFLOPS (299.4 with sparsity); PCIe 4.0 x16.
    "A40": Card(memory_rate=696e9, flop_rate=149.7e12, memory_bytes=48e9, host_rate=32e9),
    # NVIDIA A100 80GB SXM datasheet: HBM2e 2,039 GB/s; FP16 Tensor Core 312 TFLOPS (624 with sparsity); PCIe 4.0 x16.
    "A100": Card(memory_rate=2039e9, flop_rate=312e12, memory_bytes=80e9, host_rate=32e9),
    # NVIDIA L4 datasheet: 24 GB GDDR6, 300 GB/s; FP16 Tensor Core 242 TFLOPS with sparsity, half dense; PCIe 4.0 x16.
    "L4": Card(memory_rate=300e9, flop_rate=121e12, memory_bytes=24e9, host_rate=32e9),
    # NVIDIA H100 SXM datasheet: 80 GB HBM3, 3.35 TB/s; FP16 Tensor Core 1,979 TFLOPS with sparsity; PCIe 5.0 x16.
    "H100": Card(memory_rate=3350e9, flop_rate=989.5e12, memory_bytes=80e9, host_rate=64e9),
    # NVIDIA H200 SXM datasheet: 141 GB HBM3e, 4.8 TB/s; FP16 Tensor Core 1,979 TFLOPS with sparsity; PCIe 5.0 x16.
    "H200": Card(memory_rate=4800e9, flop_rate=989.5e12, memory_bytes=141e9, host_rate=64e9),
}


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One line of a projection: the roofline in slices/s and which side of it binds."""

    task: str
    kind: str
    flop: float
    moved_bytes: float
    slices_per_s: float
    bound: str


def roofline(card: Card, flop: float, moved_bytes: float) -> tuple[float, str]:
    """slices/s at most, and ``memory`` or ``arithmetic``."""
    by_memory, by_flop = card.memory_rate / moved_bytes, card.flop_rate / flop
    return (by_memory, "memory") if by_memory <= by_flop else (by_flop, "arithmetic")


def estimates(card: Card, size: int) -> list[Estimate]:
    """Inference and training, by how well operators are fused."""
    flop, eager = count(size, training=False, dtype=torch.float16)
    train_flop, train_eager = count(size, training=True, dtype=torch.float16)
    area = (size / STATED_SIZE) ** 2
    found = []
    for task, task_flop, times in (("infer", flop, 1.0), ("train", train_flop, train_eager / eager)):
        for kind, forward in (("eager", eager), ("compiled", COMPILED_BYTES * area), ("perfect", PERFECT_BYTES * area)):
            rate, bound = roofline(card, task_flop, forward * times)
            found.append(
                Estimate(
                    task=task, kind=kind, flop=task_flop, moved_bytes=forward * times, slices_per_s=rate, bound=bound
                )
            )
    return found


def project(name: str, size: int) -> str:
    """The projection as Markdown."""
    card = CARDS[name]
    lines = [
        f"**{name} at {size} px: a projection, not a measurement** (roofline of the datasheet's "
        f"{card.memory_rate / 1e9:,.0f} GB/s and {card.flop_rate / 1e12:,.1f} TFLOP/s dense in 16 bits; "
        f"expected: {REACHED[0]:.0%} to {REACHED[1]:.0%} of it)",
        "",
        "| projection | GFLOP/slice | MB/slice | bound by | roofline, slices/s | expected, slices/s |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for one in estimates(card, size):
        low, high = (shown(one.slices_per_s * part) for part in REACHED)
        lines.append(
            f"| {one.task}, {one.kind} | {one.flop / 1e9:.1f} | {one.moved_bytes / 1e6:,.0f} | {one.bound} | "
            f"{shown(one.slices_per_s)} | {low}-{high} |"
        )
    float16 = FLOAT16_INPUT_CHANNELS * size**2 * 2
    lines += [
        "",
        f"Host to device at {card.host_rate / 1e9:.0f} GB/s: "
        f"{shown(card.host_rate / RAW_SLICE_BYTES)} raw slices/s, or "
        f"{shown(card.host_rate / float16)} finished float16 inputs/s (projection).",
    ]
    return "\n".join(lines)
