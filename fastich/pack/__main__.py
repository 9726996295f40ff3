"""``python -m fastich.pack``: a file of its own, because worker processes never import a package's ``__main__``.

They would import a module that is run as main, and with it pandas and scipy, which they do not need.
"""

from fastich import pack, verb

if __name__ == "__main__":
    verb.run(pack.main)
