"""The stage that measures a trained model: held-out text beside its rivals, tasks, and samples of text."""

from typing import Any, ClassVar

from pydantic import Field

from tilth.data import locations
from tilth.data.pool import Pool
from tilth.data.tokenize import DocumentTexts
from tilth.evaluate import EvaluateConfig
from tilth.evaluate.evaluate import measure
from tilth.models import generate
from tilth.recipe.console import quantity, say
from tilth.recipe.files import read_json, write_json
from tilth.stages.model_folder import load_model
from tilth.stages.stage import Context, Stage
from tilth.train.device import pick_device

PROMPTS = ["def read_", "class ", "import os\n", '"""Return the ']


class EvaluateStage(EvaluateConfig, Stage):
    """See `tilth.evaluate`. model: the pretrain stage; prompts: what samples of text begin with."""

    version: ClassVar[int] = 1
    kind: str = "evaluate"
    model: str = "pretrain"
    prompts: list[str] = Field(default_factory=lambda: list(PROMPTS))
    sample_tokens: int = Field(96, ge=0)
    temperature: float = Field(0.7, ge=0)

    def reads(self) -> list[str]:
        return [self.model]

    def files(self) -> list[dict[str, Any]]:
        """Task files and their rows, so that a changed one runs this stage again."""
        paths = dict.fromkeys(path for task in self.tasks for path in task.files())
        return [locations.fingerprint(path) for path in paths]

    def run(self, context: Context) -> dict[str, Any]:
        model, tokenizer = load_model(context.input(self.model))
        model.to(pick_device(context.hardware.device))
        trained = read_json(context.input(self.model) / "manifest.json")["fields"]
        pool_folder = context.input(trained["input"])
        curated = read_json(pool_folder / "manifest.json")["fields"].get("input")
        texts = held_texts = None
        if curated and (context.input(curated) / "held_out.parquet").exists():
            held_texts = list(DocumentTexts([context.input(curated) / "held_out.parquet"]))
            texts = DocumentTexts(sorted(context.input(curated).glob("documents-*.parquet")))
        held_out = Pool.open(pool_folder / "held_out") if (pool_folder / "held_out").exists() else None
        config = EvaluateConfig(**{key: getattr(self, key) for key in EvaluateConfig.model_fields})
        if config.length is None:
            config = config.model_copy(update={"length": trained["length"]})
        found = measure(model, tokenizer, length=max(model.config.context, trained["length"]), config=config,
                        held_out=held_out, held_out_texts=held_texts, train_texts=texts,
                        workers=context.hardware.workers)
        results = found.results
        write_json(context.folder / "results.json", results)
        write_json(context.folder / "items.json", {  # one number a document or question: what a paired test needs
            task: {name: values.tolist() for name, values in parts.items()} for task, parts in found.items.items()})
        write_json(context.folder / "samples.json", self._samples(model, tokenizer))
        for line in verdict(results):
            say(line)
        return {"bits_per_byte": results.get("held_out", {}).get("bits_per_byte", {}).get("value")}

    def _samples(self, model: Any, tokenizer: Any) -> list[dict[str, str]]:
        return [{"prompt": prompt, "text": sample(model, tokenizer, prompt, self.sample_tokens, self.temperature)}
                for prompt in self.prompts if self.sample_tokens]


def sample(model: Any, tokenizer: Any, prompt: str, tokens: int, temperature: float, seed: int = 0) -> str:
    """What the model writes after `prompt`, up to its end-of-text token."""
    ids = [tokenizer.end_of_text, *tokenizer.encode(prompt).tolist()]
    return tokenizer.decode(list(generate(model, ids, max_tokens=tokens, temperature=temperature, top_p=0.95,
                                          seed=seed, stop=[tokenizer.end_of_text])))


def verdict(results: dict[str, Any]) -> list[str]:
    """One line: the held-out score, and the rivals on the same text that it is below, or not."""
    held_out = dict(results.get("held_out", {}))
    own = held_out.pop("bits_per_byte", None)
    if own is None:
        return []
    below = [name for name, entry in held_out.items() if own["value"] < entry["value"]]
    others = [name for name in held_out if name not in below]
    parts = [f"below {', '.join(below)}" if below else "", f"not below {', '.join(others)}" if others else ""]
    return [f"  {own['value']:.4f} bits per byte on {quantity(own.get('bytes', 0), 'B')} of held-out text: "
            + "; ".join(part for part in parts if part)]
