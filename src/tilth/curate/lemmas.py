"""Base forms of English words without a model: `hats` and `hat` are one word, and so are `men` and `man`.

The rules cover plurals of nouns. A word that only looks like a plural may lose its `s` (`canvas` would become `canva`
were it not listed), which does no harm as long as both sides of a comparison go through the same rules: what matters is
that two words of different meaning rarely meet. Verbs keep their forms, but for those that look like plurals (`runs`).
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from tilth.recipe import BadInput, Config

IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "feet": "foot", "teeth": "tooth", "geese": "goose",
    "mice": "mouse", "lice": "louse", "oxen": "ox", "dice": "die", "people": "person", "policemen": "policeman",
    "firemen": "fireman", "fishermen": "fisherman", "snowmen": "snowman", "leaves": "leaf", "wolves": "wolf",
    "knives": "knife", "lives": "life", "wives": "wife", "shelves": "shelf", "halves": "half", "calves": "calf",
    "loaves": "loaf", "thieves": "thief", "elves": "elf", "selves": "self", "scarves": "scarf", "hooves": "hoof",
    "wharves": "wharf", "cacti": "cactus", "fungi": "fungus", "octopi": "octopus", "stimuli": "stimulus",
    "nuclei": "nucleus", "radii": "radius", "alumni": "alumnus", "criteria": "criterion", "phenomena": "phenomenon",
    "larvae": "larva", "algae": "alga", "vertebrae": "vertebra", "indices": "index", "matrices": "matrix",
    "vertices": "vertex", "appendices": "appendix", "analyses": "analysis", "crises": "crisis",
    "hypotheses": "hypothesis", "oases": "oasis", "buses": "bus", "gases": "gas", "quizzes": "quiz",
    "lenses": "lens", "shoes": "shoe", "toes": "toe", "canoes": "canoe", "oboes": "oboe", "hoes": "hoe",
    "foes": "foe", "aches": "ache", "headaches": "headache", "caches": "cache", "avalanches": "avalanche",
    "axes": "axe", "moustaches": "moustache", "mustaches": "mustache", "movies": "movie", "cookies": "cookie",
    "ties": "tie", "pies": "pie", "lies": "lie", "zombies": "zombie", "selfies": "selfie", "hoodies": "hoodie",
    "brownies": "brownie", "genies": "genie", "prairies": "prairie", "rookies": "rookie", "birdies": "birdie",
    "collies": "collie", "pixies": "pixie", "calories": "calorie", "smoothies": "smoothie", "magpies": "magpie",
    "neckties": "necktie", "eyries": "eyrie", "bookies": "bookie",
}
# Words of more than three letters that end like a plural and are none.
SINGULAR = frozenset({
    "aerobics", "alias", "always", "andes", "aries", "arkansas", "asparagus", "athens", "athletics", "atlas",
    "besides", "bias", "canvas", "chaos", "chassis", "christmas", "corps", "cosmos", "dallas", "diabetes", "does",
    "economics", "electronics", "ethos", "goes", "gymnastics", "has", "hercules", "herpes", "james", "kansas",
    "kudos", "lens", "maldives", "mars", "mathematics", "molasses", "news", "pancreas", "paris", "pathos",
    "perhaps", "physics", "pisces", "politics", "rabies", "rhinoceros", "series", "species", "texas", "this",
    "thomas", "thus", "towards", "vegas", "venus", "was", "yes",
})


def lemma(word: str) -> str:
    """The base form of a word in lower case.

    Known irregular plurals first; then -ies to -y, -sses, -shes, -ches, -xes, -zzes and -oes without -es, and any other
    -s dropped unless the word has at most three letters, is known to be singular, or ends in -ss, -us or -is.
    """
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) <= 3 or not word.endswith("s") or word in SINGULAR or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zzes", "oes")):
        return word[:-2]
    return word[:-1]


class Lemmas(Config):
    """How words become base forms: `rules` (English plurals, see above), `none` (words as they are, in lower case), or
    `spacy`: the pipeline `model` of spaCy, which tags parts of speech and keeps only nouns and proper nouns.

    spaCy reads whole texts and takes a hundred times as long; `pip install spacy`, then
    `python -m spacy download en_core_web_lg` for the model of Udandarao et al. 2024.
    """

    kind: Literal["rules", "none", "spacy"] = "rules"
    model: str = "en_core_web_lg"

    def words(self, words: Iterable[str]) -> list[str]:
        """The base form of each word, taken by itself (in lower case)."""
        return [lemma(word) for word in words] if self.kind == "rules" else list(words)

    def rewritten(self, texts: Sequence[str]) -> list[str]:
        """Texts as the base forms of their nouns, where a model is asked; else as they are."""
        if self.kind != "spacy":
            return list(texts)
        nlp = _pipeline(self.model)
        return [" ".join(token.lemma_.lower() for token in document if token.pos_ in ("NOUN", "PROPN"))
                for document in nlp.pipe(texts, batch_size=256)]

    def queries(self, names: Sequence[str]) -> list[str]:
        """The names of concepts as base forms; all of their words count, whatever part of speech they are."""
        if self.kind != "spacy":
            return list(names)
        nlp = _pipeline(self.model)
        # Word by word, as the study does: a tagger makes little of a name out of context.
        return [" ".join(token.lemma_.lower() for word in name.split() for token in nlp(word)) for name in names]


def _pipeline(model: str) -> Any:
    try:
        import spacy
    except ImportError as error:
        raise BadInput("Lemmas of kind spacy need spaCy: pip install spacy.") from error
    try:
        return spacy.load(model, exclude=["parser", "ner"])
    except OSError as error:
        raise BadInput(f"spaCy has no pipeline '{model}' here: python -m spacy download {model}.") from error
