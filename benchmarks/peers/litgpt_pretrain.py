"""litgpt's own pretraining (`litgpt.pretrain.setup`, its model, its fit loop), paused between turns of the benchmark.

Run by the Python of litgpt's environment. The argument is a JSON job; see `main`. Nothing of litgpt is replaced but
the data (rows held in memory, which costs it less than its own reader) and the logger (losses kept in a list).
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

answers = os.fdopen(os.dup(1), "w")  # litgpt prints to standard output, which is for answers: its prints go to the log
os.dup2(2, 1)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from lightning.fabric.loggers.logger import Logger  # noqa: E402
from litgpt import pretrain  # noqa: E402
from litgpt.args import EvalArgs, TrainArgs  # noqa: E402
from litgpt.config import Config  # noqa: E402
from litgpt.data.base import DataModule  # noqa: E402
from torch.utils.data import DataLoader, IterableDataset  # noqa: E402

losses: list[float] = []


class Losses(Logger):
    name, version = "losses", 0

    def log_metrics(self, metrics, step=None):
        losses.append(metrics["loss"])

    def log_hyperparams(self, *arguments, **named):
        pass


class Turns(IterableDataset):
    """Rows (N, L + 1) one after another; before each turn it waits for the request, after it tells what it cost."""

    def __init__(self, rows: torch.Tensor, batch: int, waits: bool):
        self.rows, self.batch, self.waits = rows, batch, waits  # batch: rows of a step

    def __iter__(self):
        at = 0
        while True:
            steps = self.request() if self.waits else 1
            start, known = time.process_time(), len(losses)
            for _ in range(steps * self.batch):
                yield self.rows[at % len(self.rows)]
                at += 1
            # The loader asks for the next row only when the step of the last batch is done.
            if self.waits:
                self.answer(cpu_seconds=time.process_time() - start, losses=losses[known:])

    def request(self) -> int:
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        return json.loads(line)["steps"]

    def answer(self, **values) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()


class Rows(DataModule):
    def __init__(self, rows: torch.Tensor, batch: int):
        super().__init__()
        self.rows, self.batch = rows, batch

    def connect(self, tokenizer=None, batch_size=1, max_seq_length=None, **others):
        self.micro = batch_size

    def train_dataloader(self):
        return DataLoader(Turns(self.rows, self.batch, waits=True), batch_size=self.micro)

    def val_dataloader(self):
        return DataLoader(Turns(self.rows, self.batch, waits=False), batch_size=self.micro)


def main(job: dict) -> None:
    """job: shape (layers, width, heads, feed_forward, vocabulary, length), weights (safetensors under litgpt's names),
    rows (.npy, (N, L + 1)), batch_rows, micro_rows, steps (more than will be asked for), lr, weight_decay, betas, clip,
    parameters (to be equal)."""
    torch.set_num_threads(1)
    shape = job["shape"]
    config = Config(
        name="same-shape", block_size=shape["length"], vocab_size=shape["vocabulary"],
        padded_vocab_size=shape["vocabulary"], n_layer=shape["layers"], n_embd=shape["width"], n_head=shape["heads"],
        n_query_groups=shape["heads"], intermediate_size=shape["feed_forward"], rotary_percentage=1.0,
        parallel_residual=False, bias=False, norm_class_name="RMSNorm", norm_eps=1e-5, mlp_class_name="LLaMAMLP")
    from litgpt.model import GPT
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in GPT(config).parameters())
    assert parameters == job["parameters"], f"litgpt's model has {parameters} parameters, not {job['parameters']}"
    rows = torch.from_numpy(np.load(job["rows"]))
    tokens = job["steps"] * job["batch_rows"] * shape["length"]
    pretrain.choose_logger = lambda *arguments, **named: Losses()
    with tempfile.TemporaryDirectory() as folder:
        from safetensors.torch import load_file
        start = Path(folder) / "start"
        start.mkdir()
        torch.save(load_file(job["weights"]), start / "lit_model.pth")
        pretrain.setup(
            model_name="same-shape", model_config=config, out_dir=Path(folder) / "out", precision="32-true",
            initial_checkpoint_dir=start, data=Rows(rows, job["batch_rows"]), devices=1,
            train=TrainArgs(save_interval=None, log_interval=1, global_batch_size=job["batch_rows"],
                            micro_batch_size=job["micro_rows"], max_tokens=tokens, max_norm=job["clip"],
                            min_lr=job["lr"], lr_warmup_steps=0, tie_embeddings=False),
            eval=EvalArgs(interval=10**9, max_iters=1, final_validation=False),
            optimizer={"class_path": "torch.optim.AdamW",
                       "init_args": {"lr": job["lr"], "weight_decay": job["weight_decay"], "betas": job["betas"]}})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
