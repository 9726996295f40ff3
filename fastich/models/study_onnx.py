"""The sequence model over one study as an ONNX graph: a real GRU, free L, nothing of the exporting machine in it.

Built by hand, for torch 2.10's exporter fixes L at the length that it traced and its older one is deprecated. The graph
is the network with one study and no padding, in ONNX's own text form below; float32 sums in another order are all that
differs. 1.6 MB with 1024 features, built and checked in 0.1 s.

Shapes: L slices, C embedding channels, K labels, P projected channels, D hidden channels of each direction.
"""

import onnx
import torch
from onnx import helper, numpy_helper

from fastich.artifact import TensorSpec, has_external_data
from fastich.calibration import NONE, PIECEWISE, Calibration, constants
from fastich.errors import ArtifactError
from fastich.labels import ANY
from fastich.models.calibrator import LEAST_WIDTH
from fastich.models.onnx_graph import OPSET
from fastich.models.sequence import GAP_SCALE_MM, LOGIT_SCALE, MOST_GAP_MM, SequenceModel, SequenceNetwork, members_of
from fastich.study_contract import STUDY_FILE, STUDY_INPUTS, STUDY_OUTPUTS

IR_VERSION = 10
"""Of onnx 1.16, the one that opset 18's readers of 2024 know; newer ones add nothing that is used here."""

GAPS = """
    gap_after = Slice (gap_mm, one, end)
    gap_ahead = Concat <axis = 0> (gap_after, unknown)
    gap_ahead_L1 = Unsqueeze (gap_ahead, one)
    gap_back_L1 = Unsqueeze (gap_mm, one)
    gap_both = Concat <axis = 1> (gap_back_L1, gap_ahead_L1)
    gap_lacks = IsNaN (gap_both)
    gap_filled = Where (gap_lacks, nothing, gap_both)
    gap_capped = Clip (gap_filled, nothing, most_gap_mm)
    gap_scaled = Div (gap_capped, gap_scale_mm)
    gap_knows = Not (gap_lacks)
    gap_known = Cast <to = 1> (gap_knows)
    gap = Concat <axis = 1> (gap_scaled, gap_known)
"""
WIDE = """
    logit_most = ReduceMax (logit, zero)
    each_smooth = Sigmoid (logit)
    each_count = ReduceSum (each_smooth, zero)
    wide_1 = Concat <axis = 1> (logit_most, each_count)
    wide_small = Div (wide_1, logit_scale)
    nowhere = Mul (logit, nothing)
    no_part = Concat <axis = 1> (nowhere, nowhere)
    wide = Add (wide_small, no_part)
"""
DIFFERENCES = """
    {x}_later = Slice ({x}, one, end, zero)
    {x}_earlier = Slice ({x}, zero, last, zero)
    {x}_step = Sub ({x}_later, {x}_earlier)
    {x}_lag = Pad ({x}_step, row_before)
    {x}_lead = Pad ({x}_step, row_behind)
    {x}_changes = Concat <axis = 1> ({x}, {x}_lag, {x}_lead)
"""
CHANGES = "_changes"
"""Behind the name of what ``DIFFERENCES`` makes of it; a member of the variant ``gru`` sees things as they are."""
NORM = """
    {m}_normal = LayerNormalization <axis = -1, epsilon = {epsilon}> (embedding, {m}_norm_weight, {m}_norm_bias)
"""
CONTEXT = """
    {m}_projected = Gemm <transB = 1> ({m}_normal{seen}, {m}_project_weight, {m}_project_bias)
    {m}_features = Relu ({m}_projected)
    {m}_logit_small = Div (logit{seen}, logit_scale)
    {m}_given = Concat <axis = 1> ({m}_features, {m}_logit_small, wide, gap)
    {m}_given_L1 = Unsqueeze ({m}_given, one)
    {m}_state_L21D, {m}_end = GRU <direction = "bidirectional", hidden_size = {hidden}, linear_before_reset = 1> (
        {m}_given_L1, {m}_gru_weight, {m}_gru_recurrence, {m}_gru_bias)
    {m}_state = Reshape ({m}_state_L21D, rows)
    {m}_correction = Gemm <transB = 1> ({m}_state, {m}_slice_weight, {m}_slice_bias)
    {m}_slice_logit = Add (logit, {m}_correction)
"""
STUDY = """
    {m}_asked = Gemm <transB = 1> ({m}_state, {m}_attention_weight, {m}_attention_bias)
    {m}_weight = Softmax <axis = 0> ({m}_asked)
    {m}_state_weighted = Mul ({m}_state, {m}_weight)
    {m}_state_mean = ReduceSum ({m}_state_weighted, zero)
    {m}_state_most = ReduceMax ({m}_state, zero)
    {m}_pooled = Concat <axis = 1> ({m}_state_mean, {m}_state_most)
    {m}_study_correction = Gemm <transB = 1> ({m}_pooled, {m}_study_weight, {m}_study_bias)
    {m}_largest = ReduceMax ({m}_slice_logit, zero)
    {m}_study_logit = Add ({m}_largest, {m}_study_correction)
"""
MEAN = """
    {of}_logit_sum = Sum ({each})
    {out} = Div ({of}_logit_sum, num_members)
"""
SIGMOID = """
    {of}_scaled = Mul ({logit}, {of}_calibration_scale)
    {of}_shifted = Add ({of}_scaled, {of}_calibration_bias)
    {of}_smooth = Sigmoid ({of}_shifted)
"""
NO_KNOTS = """
    {of}_each = Identity ({of}_smooth)
"""
KNOTTED = """
    {of}_starts = Slice ({of}_calibration_knots, zero, last, zero)
    {of}_ends = Slice ({of}_calibration_knots, one, end, zero)
    {of}_spans = Sub ({of}_ends, {of}_starts)
    {of}_widths = Max ({of}_spans, least_width)
    {of}_p_starts = Slice ({of}_calibration_values, zero, last, zero)
    {of}_p_ends = Slice ({of}_calibration_values, one, end, zero)
    {of}_rises = Sub ({of}_p_ends, {of}_p_starts)
    {of}_base = Slice ({of}_p_starts, zero, one, zero)
    {of}_across = Unsqueeze ({logit}, one)
    {of}_way = Sub ({of}_across, {of}_starts)
    {of}_ratio = Div ({of}_way, {of}_widths)
    {of}_passed = Clip ({of}_ratio, nothing, whole)
    {of}_risen = Mul ({of}_passed, {of}_rises)
    {of}_sum = ReduceSum <keepdims = 0> ({of}_risen, one)
    {of}_between = Add ({of}_base, {of}_sum)
    {of}_each = Where ({of}_calibration_piecewise, {of}_between, {of}_smooth)
"""
"""As ``models/calibrator.py``: how far the logit has passed each segment between knots adds up."""
ANY_RULE = """
    {of}_subtypes = Slice ({of}_each, zero, any, one)
    {of}_most = ReduceMax ({of}_each, one)
    {out} = Concat <axis = 1> ({of}_subtypes, {of}_most)
"""
"""p(any) is the largest of all six, its own among them."""
SQUEEZE = """
    study_logit = Squeeze (study_logit_1K, zero)
    study_probability = Squeeze (study_probability_1K, zero)
"""


def study_onnx_bytes(
    model: SequenceNetwork, slice_calibration: Calibration = NONE, study_calibration: Calibration = NONE
) -> bytes:
    """``model`` and what makes probabilities of its logits as one self-contained ONNX file, checked.

    The constants of the two calibrations are initializers named as in ``calibration.constants``, with ``slice_`` or
    ``study_`` before it, so that a site can put its own in their place.

    Raises:
        ArtifactError: the checker found a fault.
    """
    calibrations = {"slice": constants(slice_calibration), "study": constants(study_calibration)}
    members, knotted = members_of(model), {of for of, found in calibrations.items() if PIECEWISE in found}
    graph = onnx.parser.parse_graph(_text(members, knotted))
    arrays = {name: value.numpy() for name, value in _tensors(members).items()}
    arrays |= {f"{of}_{name}": value for of, found in calibrations.items() for name, value in found.items()}
    used = {name for node in graph.node for name in node.input}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in arrays.items() if name in used)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    content: bytes = made.SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"{STUDY_FILE}: onnx.checker refused the graph: {error}") from error
    if has_external_data(content, STUDY_FILE):
        raise ArtifactError(f"{STUDY_FILE}: expected one self-contained file, found external data")
    return content


def _text(members: list[SequenceModel], knotted: set[str]) -> str:
    """The graph in ONNX's text form, without its tensors; the calibrations of ``knotted`` have knots."""
    parts = [
        GAPS,
        WIDE,
        DIFFERENCES.format(x="logit") if any(member.variant == "difference" for member in members) else "",
        *(_member_text(name, member) for name, member in _named(members).items()),
        _mean("slice", "slice_logit", members),
        _mean("study", "study_logit_1K", members),
        _probability("slice", "slice_logit", "slice_probability", "slice" in knotted),
        _probability("study", "study_logit_1K", "study_probability_1K", "study" in knotted),
        SQUEEZE,
    ]
    inputs, outputs = (
        ", ".join(_typed(spec, members[0].embedding_size) for spec in specs) for specs in (STUDY_INPUTS, STUDY_OUTPUTS)
    )
    return f"study ({inputs}) => ({outputs}) {{{''.join(parts)}}}"


def _named(members: list[SequenceModel]) -> dict[str, SequenceModel]:
    """What each member's names in the graph begin with."""
    return {f"m{number}": member for number, member in enumerate(members)}


def _member_text(name: str, member: SequenceModel) -> str:
    """From embeddings and logits to the slice and study logits of one member."""
    seen = CHANGES if member.variant == "difference" else ""
    differences = DIFFERENCES.format(x=f"{name}_normal") if seen else ""
    context = CONTEXT.format(m=name, seen=seen, hidden=member.onward.hidden_size)
    return NORM.format(m=name, epsilon=member.norm.eps) + differences + context + STUDY.format(m=name)


def _mean(of: str, out: str, members: list[SequenceModel]) -> str:
    return MEAN.format(of=of, out=out, each=", ".join(f"{name}_{of}_logit" for name in _named(members)))


def _probability(of: str, logit: str, out: str, has_knots: bool) -> str:
    return (SIGMOID + (KNOTTED if has_knots else NO_KNOTS) + ANY_RULE).format(of=of, logit=logit, out=out)


def _typed(spec: TensorSpec, embedding_size: int) -> str:
    axes = ", ".join(str(embedding_size if axis == "C" else axis) for axis in spec.shape)
    assert spec.dtype == "float32", "every tensor of study.onnx is"
    return f"float[{axes}] {spec.name}"


def _tensors(members: list[SequenceModel]) -> dict[str, torch.Tensor]:
    """Weights and constants by their names in the graph."""
    weights = {
        f"{name}_{key}": value for name, member in _named(members).items() for key, value in _weights(member).items()
    }
    return weights | _constants(members)


def _weights(member: SequenceModel) -> dict[str, torch.Tensor]:
    state = {key: value.detach().cpu().float().contiguous() for key, value in member.state_dict().items()}
    named = {"norm": "norm", "project": "project", "slice": "slice_head", "study": "study_head"}
    layers = {
        f"{name}_{part}": state[f"{module}.{part}"]
        for name, module in (named | {"attention": "attention"}).items()
        for part in ("weight", "bias")
    }
    return layers | _gru_tensors(state)


def _gru_tensors(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Both directions stacked, gates in ONNX's order. Source: ONNX operators, GRU: update, reset, hidden."""

    def both(name: str) -> torch.Tensor:
        return torch.stack([_onnx_gates(state[f"{module}.{name}"]) for module in ("onward", "backward_")])

    return {
        "gru_weight": both("weight_ih_l0"),
        "gru_recurrence": both("weight_hh_l0"),
        "gru_bias": torch.cat([both("bias_ih_l0"), both("bias_hh_l0")], dim=1),
    }


def _onnx_gates(stacked: torch.Tensor) -> torch.Tensor:
    """Torch stacks reset, update, new along the first axis; ONNX update, reset, new."""
    reset, update, new = stacked.chunk(3)
    return torch.cat([update, reset, new])


def _constants(members: list[SequenceModel]) -> dict[str, torch.Tensor]:
    return {
        "zero": torch.tensor([0]),
        "one": torch.tensor([1]),
        "last": torch.tensor([-1]),
        "end": torch.tensor([2**62]),
        "any": torch.tensor([ANY]),
        "rows": torch.tensor([-1, 2 * members[0].onward.hidden_size]),
        "row_before": torch.tensor([1, 0, 0, 0]),
        "row_behind": torch.tensor([0, 0, 1, 0]),
        "unknown": torch.tensor([torch.nan]),
        "nothing": torch.tensor(0.0),
        "whole": torch.tensor(1.0),
        "least_width": torch.tensor(LEAST_WIDTH),
        "most_gap_mm": torch.tensor(MOST_GAP_MM),
        "gap_scale_mm": torch.tensor(GAP_SCALE_MM),
        "logit_scale": torch.tensor(LOGIT_SCALE),
        "num_members": torch.tensor(float(len(members))),
    }
