"""The server's memory: everything that must survive a crash, in SQLite or PostgreSQL behind one class.

Whoever is killed at any moment, the tables say what is to be done. Nothing outside this package speaks SQL.
"""

from fastich.serve.store.store import Store, open_store

__all__ = ["Store", "open_store"]
