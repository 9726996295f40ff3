import subprocess
import sys

import numpy as np
import pytest

from fastich import class_map_grid, class_maps


def test_grid_needs_no_scipy() -> None:
    code = "import sys, fastich.class_map_grid; print('scipy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["cells", "peak", "to_slice"])
def test_class_maps_offers_the_very_same_functions(name: str) -> None:
    """Tests of what they do: test_class_maps.py."""
    assert getattr(class_maps, name) is getattr(class_map_grid, name)


def test_map_keeps_its_values_whatever_its_type() -> None:
    made = np.arange(4, dtype=np.float16).reshape(2, 2)
    found = class_map_grid.to_slice(made, (2, 2))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, made)
