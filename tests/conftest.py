"""Shared by all tests: property tests judge results, not seconds, since machines are noisy."""

from hypothesis import HealthCheck, settings

settings.register_profile("fastich", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fastich")
