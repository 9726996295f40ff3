"""The import rules as one table: who may import what, and which third-party library has which door."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGE = PROJECT / "fastich"

# Floors, lowest first. A module imports its own floor or lower ones only, never a higher one.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("fastich", "types"),
    ("errors", "hu", "labels", "files"),
    ("windowing", "geometry", "verb"),
    (
        "records.codec",
        "records.format",
        "decode_worker",
        "intervals",
        "resampling",
        "metrics",
        "classification",
        "operating_points",
        "predictive_values",
        "conformal",
        "conformal_coverage",
        "statistics",
        "study_scores",
        "study_metrics",
        "subgroups",
        "artifact",
        "study_contract",
    ),
    (
        "ops",
        "ops_cuda",
        "decoder",
        "dicom_scan",
        "dicom_parse",
        "dicom_header",
        "dicom_pixels",
        "dicom",
        "gate_fields",
        "records",
        "rsna",
        "submission",
        "splits",
        "fingerprints",
        "folds",
        "preprocess",
        "calibration",
        "calibration_fit",
        "class_map_grid",
        "class_maps",
    ),
    ("models", "loaders", "packing", "phantom", "report", "serve"),
    (
        "checkpoint",
        "embeddings",
        "inspect",
        "pack",
        "verify",
        "gate_rules",
        "study_rule",
        "eligibility",
        "doubts",
        "score_files",
        "score",
        "model_card",
        "pointing",
        "export_evaluation",
        "parity",
        "quantize",
        "leakage_sides",
        "leakage_pairs",
        "leakage",
        "compare",
        "calibration_graph",
        "outcomes",
        "refit",
        "recalibrate_study",
    ),
    ("training", "variants", "findings", "explain"),
    (
        "train",
        "train_study",
        "study_run",
        "subject",
        "evaluate",
        "submit",
        "export",
        "export_study",
        "recalibrate",
        "steps",
    ),
    # The triage server, above everything that it serves.
    (
        "gate",
        "serve.entities",
        "serve.render",
        "serve.config",
        "serve.config_file",
        "serve.ordering",
        "serve.log",
        "serve.signals",
        "serve.audit",
    ),
    ("serve.store", "serve.spool"),
    (
        "serve.identity",
        "serve.ingest",
        "serve.housekeeping",
        "serve.scoring",
        "serve.outputs",
        "serve.drift",
        "serve.dry_run",
    ),
    ("serve.receive", "serve.web"),
    ("serve.web_server", "serve.reception", "serve.start_check"),
    ("serve.server",),
    ("serve.__main__", "simulation", "simulate"),
    ("demo", "experiment", "serve_demo", "cli"),
)

# Third-party library -> the only places (prefixes of module names) that may import it.
DOORS: dict[str, tuple[str, ...]] = {
    "pydicom": ("dicom_parse", "dicom_pixels", "phantom", "serve.receive", "serve.outputs", "serve_demo"),
    "pynetdicom": ("serve.receive", "serve.outputs", "serve_demo"),
    "highdicom": ("serve.outputs",),
    "starlette": ("serve.receive", "serve.web"),
    "uvicorn": ("serve.web_server",),
    "httpx": ("serve.outputs", "serve_demo"),
    "PIL": ("serve.outputs",),
    "python_multipart": ("serve.receive",),
    "prometheus_client": ("serve.web",),
    "sqlite3": ("serve.store",),
    "psycopg": ("serve.store",),
    "imagecodecs": ("decode_worker",),
    "openjpeg": ("decode_worker",),
    "jpeg_ls": ("decode_worker",),
    "nvidia": ("loaders.dali", "loaders.dali_stock"),
    "onnxruntime": ("serve.session", "export", "export_study", "quantize"),
    "openvino": ("serve.openvino_backend",),
    "onnx": ("models.onnx_graph", "models.study_onnx", "export", "quantize", "calibration_graph"),
    "torch": (
        "preprocess",
        "models",
        "loaders",
        "checkpoint",
        "training",
        "train",
        "train_study",
        "study_run",
        "evaluate",
        "export",
        "export_study",
    ),
    "torchvision": ("models", "train", "training"),
    "sklearn": ("metrics", "classification", "operating_points", "calibration_fit"),
    "google_crc32c": ("records",),
    "pyarrow": ("records", "rsna", "packing"),
    "safetensors": ("checkpoint", "models", "train"),
    "jinja2": ("report", "serve.web"),
    "matplotlib": ("report", "phantom", "simulate"),
    "pandas": (
        "records",
        "rsna",
        "splits",
        "fingerprints",
        "leakage",
        "study_metrics",
        "subgroups",
        "compare",
        "submission",
        "packing",
        "verify",
        "loaders",
        "train",
        "training",
        "evaluate",
        "report",
        "demo",
        "experiment",
        "subject",
        "simulation",
    ),
}

GROUND_FLOOR = ("types", "errors", "hu", "windowing", "labels", "geometry")
GROUND_FLOOR_MAY_IMPORT = {"numpy", "fastich"} | set(sys.stdlib_module_names)


def module_name(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts) or "fastich"


def source_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> set[str]:
    """Names of fastich modules that ``path`` imports; ``from fastich.a import b`` is a.b where that is a module."""
    known = {module_name(other) for other in source_files()}
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name.removeprefix("fastich.") in known else str(node.module) for name in full.values()}
    return {name.removeprefix("fastich.") for name in found if name.removeprefix("fastich.") in known}


def matches(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def floor_of(name: str) -> int:
    hits = [(len(entry), level) for level, floor in enumerate(FLOORS) for entry in floor if matches(name, entry)]
    assert hits, f"fastich.{name} stands on no floor: add it to FLOORS"
    return max(hits)[1]


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_imports_go_down_only(path: Path) -> None:
    name = module_name(path)
    upward = [other for other in own_imports(path) if floor_of(other) > floor_of(name)]
    assert not upward, f"fastich.{name} imports from a higher floor: {upward}"


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_its_door(library: str) -> None:
    for path in source_files():
        if any(matches(name, library) for name in imported(path)):
            name = module_name(path)
            assert any(matches(name, door) for door in DOORS[library]), f"fastich.{name} imports {library}"


@pytest.mark.parametrize("name", GROUND_FLOOR)
def test_ground_floor_needs_numpy_and_the_standard_library_only(name: str) -> None:
    roots = {found.split(".")[0] for found in imported(PACKAGE / f"{name}.py")}
    assert roots <= GROUND_FLOOR_MAY_IMPORT


def test_import_graph_has_no_cycle() -> None:
    graph = {module_name(path): own_imports(path) for path in source_files() if path.name != "__main__.py"}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail, name))}"
        if name not in done:
            for other in graph[name] - {name}:
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_import_hides_inside_a_function() -> None:
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                hidden = [inner.lineno for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom)]
                assert not hidden, f"{path.name}:{hidden} imports inside {node.name}"


SERVING_MUST_NOT_LOAD = ("torch", "torchvision", "nvidia.dali", "pandas", "sklearn", "matplotlib", "scipy", "onnx")


@pytest.mark.parametrize(
    "module",
    [
        "fastich.serve",
        "fastich.serve.session",
        "fastich.serve.study_session",
        "fastich.serve.receive.dimse",
        "fastich.serve.receive.upload",
        "fastich.serve.ingest",
        "fastich.serve.housekeeping",
        "fastich.serve.audit",
        "fastich.serve.outputs.sender",
        "fastich.serve.scoring.engine",
        "fastich.serve.dry_run",
        "fastich.gate",
        "fastich.serve.web.app",
        "fastich.score",
        "fastich.dicom",
    ],
)
def test_serving_loads_no_training_code(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {SERVING_MUST_NOT_LOAD!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["fastich.serve.session", "fastich.serve.web.app", "fastich.score"])
def test_serving_works_where_training_packages_are_absent(module: str) -> None:
    code = f"import sys\nfor name in {SERVING_MUST_NOT_LOAD!r}: sys.modules[name] = None\nimport {module}\nprint('ok')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "ok", found.stderr


@pytest.mark.parametrize("folder", ["kernels", "export", "bench"])
def test_script_folders_are_not_packages(folder: str) -> None:
    assert not (PROJECT / folder / "__init__.py").exists()


def test_no_script_shadows_a_library() -> None:
    names = {path.name for folder in ("export", "bench", "kernels") for path in (PROJECT / folder).glob("*.py")}
    assert not names & {"onnx.py", "profile.py", "torch.py", "numpy.py"}
