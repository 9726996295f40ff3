"""Synthetic head CT studies with all five bleeds, masks and true volumes, written as the RSNA 2019 files are.

For demos, tests and benchmarks without patient data; not a substitute for it: a model trained on phantoms knows
phantoms. Cost: about 30 ms a 512-pixel slice on one core. ``python -m fastich.phantom --help``.
"""

from fastich.phantom.dataset import PhantomConfig, generate

__all__ = ["PhantomConfig", "generate"]
