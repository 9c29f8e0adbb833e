"""One thread a process: tests run side by side, and oversubscribed threads cost far more than they bring.

Hypothesis tries the same examples in every run, so that a commit that was green stays green. `make test-slow` looks for
new ones (`HYPOTHESIS_PROFILE=search`).
"""

import os

import torch
from hypothesis import settings

torch.set_num_threads(1)

settings.register_profile("same", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
