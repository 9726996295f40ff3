"""``fastich <verb>``: the same verbs as ``python -m fastich.<verb>`` under one name.

Only the chosen verb is imported, so ``fastich score`` works where torch and DALI are not installed.
"""

import importlib
import sys

from fastich import __version__
from fastich.verb import run

VERBS = {
    "inspect": "what a folder of DICOM files holds, and why any of it cannot be used",
    "phantom": "write synthetic head CT studies with all five bleeds as DICOM",
    "pack": "DICOM files and labels to lossless records",
    "verify": "check every byte, index row and split of a records folder",
    "leakage": "patients, studies and images that two splits or two data sets share",
    "train": "train a network on records",
    "train_study": "train the sequence model: what a CNN says of each slice -> what the study says",
    "evaluate": "judge a trained network on held-out patients, with a report",
    "compare": "is one run better than another? differences with intervals and p-values",
    "submit": "write the challenge's submission file for records of its test set",
    "export": "write the trained network as ONNX and TorchScript with the preprocessing inside",
    "model_card": "what a model folder holds, is for and is worth, in words: Markdown and HTML",
    "gate": "which studies, series and slices the server would score, and why not the others",
    "score": "score DICOM files, folders or studies with an exported model",
    "explain": "where findings come from: key slices with class maps over them, and whether the maps point at masks",
    "recalibrate": "fit an exported model to a site's own outcomes, without retraining",
    "simulate": "what the worklist would be worth: minutes saved for bleeds, and what that costs the others",
    "experiment": "what slice context, calibration and thresholds are worth, on synthetic studies",
    "demo": "the main job, end to end, on synthetic studies or your own",
}

MODULES = {"phantom": "fastich.phantom.__main__"}
"""Verbs whose ``main`` is not in ``fastich.<verb>``: a package keeps it in its ``__main__``."""


def usage() -> str:
    """The help text: one line a verb."""
    lines = [f"  {verb:<11} {text}" for verb, text in VERBS.items()]
    return "\n".join(
        [f"fastich {__version__}: intracranial hemorrhage on head CT", "usage: fastich <verb> [--help] ...", *lines]
    )


def main() -> None:
    """Run the verb named by the first argument (the console script's entry point)."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["--version"]:
        print(f"fastich {__version__}")
        return
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    if arguments[0] not in VERBS:
        print(f"error: no verb {arguments[0]!r}; one of: {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)
    verb, *rest = arguments
    # Imported inside, so that Ctrl-C while torch loads is an interruption like any other.
    run(lambda argv: importlib.import_module(MODULES.get(verb, f"fastich.{verb}")).main(argv), rest)
