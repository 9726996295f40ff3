"""A calibration inside a graph: raw logits in, probabilities out, as ``calibration.Calibration.probability`` says.

Its constants are buffers whose names an exported file keeps (``calibration.constants``), so that a site can put its own
in place of them without torch. Scale and bias are there even where nothing was calibrated (1 and 0); a graph without
isotonic labels holds no knots. Cost: a few operations on [N, 6].

Shapes: N rows, K = 6 labels, M knots.
"""

import torch
from torch import Tensor, nn

from fastich.calibration import NONE, PIECEWISE, Calibration, constants
from fastich.labels import ANY

LEAST_WIDTH = 1e-30
"""Below any that a fit gives (``calibration_fit.LEAST_DIFFERENCE``)."""


class Calibrator(nn.Module):
    """Raw logits [N, K] to probabilities [N, K] with p(any) >= max p(subtype); float32."""

    calibration_scale: Tensor
    calibration_bias: Tensor
    calibration_knots: Tensor
    calibration_values: Tensor
    calibration_piecewise: Tensor

    def __init__(self, calibration: Calibration = NONE) -> None:
        super().__init__()
        found = constants(calibration)
        self.has_knots = PIECEWISE in found
        for name, value in found.items():
            self.register_buffer(name, torch.from_numpy(value))

    def forward(self, logit_NK: Tensor) -> Tensor:
        """Return probabilities [N, K]."""
        each_NK = torch.sigmoid(logit_NK * self.calibration_scale + self.calibration_bias)
        if self.has_knots:
            each_NK = torch.where(self.calibration_piecewise, self._between_knots(logit_NK), each_NK)
        return torch.cat([each_NK[:, :ANY], each_NK.amax(dim=1, keepdim=True)], dim=1)

    def _between_knots(self, logit_NK: Tensor) -> Tensor:
        """The line through the knots, flat beyond them: how far the logit has passed each segment, 0 to 1, adds up.

        A segment that was passed counts exactly 1, for its width is the difference that float32 gives, too; so a step
        between two logits that float32 can just tell apart stays a step. Where tables are filled up nothing rises, and
        the least width keeps engines that multiply by 1 / width from infinity less infinity. No integers and no
        look-up: OpenVINO 2026.4 takes wrong rows in a GatherElements whose index is a sum of comparisons.
        """
        starts_MK, p_start_MK = self.calibration_knots[:-1], self.calibration_values[:-1]
        widths_MK = (self.calibration_knots[1:] - starts_MK).clamp(min=LEAST_WIDTH)
        rises_MK = self.calibration_values[1:] - p_start_MK
        passed_NMK = ((logit_NK.unsqueeze(1) - starts_MK) / widths_MK).clamp(0.0, 1.0)
        return p_start_MK[0] + (passed_NMK * rises_MK).sum(dim=1)
