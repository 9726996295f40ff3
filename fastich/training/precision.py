"""Which device runs and in which number format: chosen once, reported, recorded. Costs nothing."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from fastich.errors import FastichError


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The format of the network's forward pass. Weights, loss and optimizer stay in float32.

    Attributes:
        dtype: float32, bfloat16 or float16.
        device: what autocast is for.
    """

    dtype: torch.dtype
    device: torch.device

    @property
    def name(self) -> str:
        """``float32``, ``bfloat16`` or ``float16``."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def is_mixed(self) -> bool:
        """Whether autocast is on."""
        return self.dtype != torch.float32

    @property
    def needs_scaler(self) -> bool:
        """Whether gradients could vanish: float16 has 5 exponent bits, bfloat16 the 8 of float32."""
        return self.dtype == torch.float16

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass; does nothing in float32."""
        dtype = self.dtype if self.is_mixed else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.is_mixed)


def choose_device(asked: str) -> torch.device:
    """The device for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        FastichError: CUDA is demanded and absent.
    """
    present = torch.cuda.is_available()
    if asked == "cuda" and not present:
        raise FastichError("--device cuda: torch finds no CUDA device; check nvidia-smi and the driver, or use auto")
    return torch.device("cuda" if present and asked != "cpu" else "cpu")


def choose_precision(amp: bool, device: torch.device) -> Precision:
    """float32, or with ``amp`` bfloat16 where the device computes in it, else float16."""
    if not amp:
        return Precision(dtype=torch.float32, device=device)
    has_bfloat16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    return Precision(dtype=torch.bfloat16 if has_bfloat16 else torch.float16, device=device)
