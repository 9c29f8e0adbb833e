"""The influence model as a pretrained encoder of Hugging Face, from a folder that the user has.

As published for MATES (https://github.com/cxcscmu/MATES): the unit is decoded with the run's tokenizer and tokenized
again with the encoder's own, cut to `tokens` ids and into rows of the encoder's context, each row is encoded on its
own, and hidden states are averaged over all ids of the unit. Rows after the first have no start token and begin their
positions again, in learning and in predicting alike.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from tilth.data.pool import Pool
from tilth.recipe import BadInput
from tilth.select.encoder import Fitting, Reader, mean_by

SAMPLE = 32  # units that tell how many ids the encoder's tokenizer makes of a token


class HuggingFaceEncoder(Fitting):
    """A pretrained encoder (BERT and its like) with its tokenizer, from `folder`; needs the extra `hf`."""

    kind: str = "hf"
    folder: Path
    tokens: int = Field(1024, ge=2, description="ids of a unit that are read")
    epochs: int = Field(5, ge=1)
    lr: float = Field(5e-5, gt=0, description="falls linearly to 0 over each fit")
    batch: int = Field(32, ge=1, description="units of a step")

    def files(self) -> list[Path]:
        return [path for path in sorted(self.folder.glob("*")) if path.suffix in (".safetensors", ".json", ".txt")]

    def reader(self, pool: Pool, seed: int) -> Reader:
        return FolderReader(pool, self)


class FolderReader(Reader):
    """A model of `transformers` over re-tokenized units."""

    def __init__(self, pool: Pool, config: HuggingFaceEncoder):
        super().__init__()
        self.pool, self.tokens = pool, config.tokens
        self.tokenizer, self.body = load(config.folder)
        known: Any = self.body.config
        self.width = known.hidden_size
        # RoBERTa's table has two rows more than it may use; the tokenizer knows.
        self.length = min(int(known.max_position_embeddings), int(self.tokenizer.model_max_length))
        self.ours = pool.tokenizer()
        tables = sum(module.weight.numel() for module in self.body.modules() if isinstance(module, torch.nn.Embedding))
        self.weights = sum(parameter.numel() for parameter in self.body.parameters()) - tables
        sample = np.flatnonzero(pool.lengths() > 0)[:: max(1, len(pool) // SAMPLE)][:SAMPLE]
        self.ratio = sum(map(len, self.ids(sample))) / float(np.minimum(pool.lengths()[sample], config.tokens).sum())

    def ids(self, units: np.ndarray) -> list[list[int]]:
        """The encoder's ids of each unit, `tokens` at most, at least one."""
        texts = [self.ours.decode([int(one) for one in self.pool.get("tokens", int(unit))]) for unit in units]
        found = self.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        return [one[:self.tokens] or [self.tokenizer.pad_token_id or 0] for one in found]

    def forward(self, units: np.ndarray) -> Tensor:
        rows = [(owner, ids[first:first + self.length]) for owner, ids in enumerate(self.ids(units))
                for first in range(0, len(ids), self.length)]
        longest = max(len(ids) for _, ids in rows)
        table = torch.full((len(rows), longest), int(self.tokenizer.pad_token_id or 0))
        owner = torch.full((len(rows), longest), len(units))  # of padding: nobody
        for number, (unit, ids) in enumerate(rows):
            table[number, :len(ids)] = torch.tensor(ids)
            owner[number, :len(ids)] = unit
        device = next(self.body.parameters()).device
        seen = (owner < len(units)).long().to(device)
        hidden = self.body(input_ids=table.to(device), attention_mask=seen).last_hidden_state
        return mean_by(hidden.flatten(0, 1).float(), owner.flatten().to(device), len(units))

    def positions(self, units: np.ndarray) -> float:
        """About: without padding, from what re-tokenizing did to a sample."""
        return float(np.minimum(self.pool.lengths()[units], self.tokens).sum()) * self.ratio

    def flops_per_position(self) -> float:
        return 2.0 * self.weights


def load(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and model of a folder; only what is on disk, only safetensors, no code of the folder."""
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise BadInput("A Hugging Face encoder needs the package `transformers`: pip install 'tilth[hf]'.") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True,
                                          dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder} holds no encoder that transformers can load (config.json, model.safetensors and a "
                       f"tokenizer): {error}") from error
    return tokenizer, model
