"""The parts of a training job, one idea a file; ``fastich/train.py`` is the job itself."""
