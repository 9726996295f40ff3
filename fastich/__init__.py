"""fastich: find intracranial hemorrhage on head CT, from DICOM to a calibrated worklist score.

Importing this package costs nothing: it pulls in no third-party library. Take what you need by module,
for example ``from fastich.windowing import window``. The verbs are ``python -m fastich.<verb>`` or ``fastich <verb>``.
"""

__version__ = "0.1.0"
