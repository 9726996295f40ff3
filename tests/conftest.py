"""Shared by all tests: property tests judge results, not seconds, since machines are noisy."""

from hypothesis import settings

settings.register_profile("fastich", deadline=None)
settings.load_profile("fastich")
