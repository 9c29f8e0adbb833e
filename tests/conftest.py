"""One thread a process: tests run side by side, and oversubscribed threads cost far more than they bring."""

import torch

torch.set_num_threads(1)
