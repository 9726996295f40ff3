"""Pictures and pages about an evaluation, from plain arrays and tables: no torch, no network, no scripts."""
