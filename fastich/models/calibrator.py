"""A calibration inside a graph: raw logits in, probabilities out, as ``calibration.Calibration.probability`` says.

Its constants are buffers whose names an exported file keeps (``calibration.constants``), so that a site can put its own
in place of them without torch. Scale and bias are there even where nothing was calibrated (1 and 0); a graph without
isotonic labels holds no knots. Cost: a few operations on [N, 6].

Shapes: N rows, K = 6 labels, M knots.
"""

import torch
from torch import Tensor, nn

from fastich.calibration import BIAS, KNOTS, NONE, PIECEWISE, SCALE, VALUES, Calibration, constants
from fastich.labels import ANY


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
        self.has_knots = KNOTS in found
        for name in (SCALE, BIAS, KNOTS, VALUES, PIECEWISE):
            if name in found:
                self.register_buffer(name, torch.from_numpy(found[name]))

    def forward(self, logit_NK: Tensor) -> Tensor:
        """Return probabilities [N, K]."""
        each_NK = torch.sigmoid(logit_NK * self.calibration_scale + self.calibration_bias)
        if self.has_knots:
            each_NK = torch.where(self.calibration_piecewise, self._between_knots(logit_NK), each_NK)
        return torch.cat([each_NK[:, :ANY], each_NK.amax(dim=1, keepdim=True)], dim=1)

    def _between_knots(self, logit_NK: Tensor) -> Tensor:
        """The line through the knots, flat beyond them.

        One segment is looked up, not all of them summed: so rounding does not grow with their number, and a step
        between two knots that float32 can just tell apart stays a step.
        """
        passed_NMK = logit_NK.unsqueeze(1) >= self.calibration_knots
        at_NK = (passed_NMK.sum(dim=1) - 1).clamp(min=0)
        low_NK = torch.gather(self.calibration_knots, 0, at_NK)
        high_NK = torch.gather(self.calibration_knots, 0, at_NK + 1)
        p_low_NK = torch.gather(self.calibration_values, 0, at_NK)
        p_high_NK = torch.gather(self.calibration_values, 0, at_NK + 1)
        part_NK = ((logit_NK - low_NK) / (high_NK - low_NK)).clamp(0.0, 1.0)
        return p_low_NK + (p_high_NK - p_low_NK) * part_NK
