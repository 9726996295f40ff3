"""A trained run becomes a model folder: model.onnx with the preprocessing inside, and model.json.

    python export/to_onnx.py --run RUN --out MODEL_DIR [--evaluation EVAL] [--records RECORDS]
    python export/to_onnx.py --run RUN --study STUDYRUN --study-evaluation EVAL --out MODEL_DIR     # and study.onnx
    python export/to_onnx.py --run RUN --out MODEL_DIR --records RECORDS --precision int8     # or float16, bfloat16

Both commands of this folder may fill the same MODEL_DIR, in either order. Parity with the trained network is measured
before anything is written; see fastich/export.py.
"""

from fastich import export, verb


def main(argv: list[str]) -> None:
    """Write model.onnx, study.onnx or a variant of model.onnx beside it, and model.json."""
    export.main(argv, formats=("onnx",), prog="python export/to_onnx.py")


if __name__ == "__main__":
    verb.run(main)
