"""What datatrove 0.10.1 decides, rule by rule, and how long its filters take; runs in datatrove's own environment.

    python datatrove_rules.py decide IN.jsonl OUT.jsonl     # one line a document: which rules fire, its words, texts
    python datatrove_rules.py time IN.jsonl OUT.json FILTER  # CPU-seconds of a filter with its defaults, what it keeps
"""

import gc
import hashlib
import json
import sys
import time

from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
from datatrove.utils.text import split_into_sentences, split_into_words

QUALITY = {"min_doc_words": 50, "max_doc_words": 100000, "min_avg_word_length": 3, "max_avg_word_length": 10,
           "max_symbol_word_ratio": 0.1, "max_bullet_lines_ratio": 0.9, "max_ellipsis_lines_ratio": 0.3,
           "max_non_alpha_words_ratio": 0.8, "min_stop_words": 2}
REPETITION = {"dup_line_frac": 0.3, "dup_para_frac": 0.3, "dup_line_char_frac": 0.2, "dup_para_char_frac": 0.2}
TOP = ((2, 0.2), (3, 0.18), (4, 0.16))
DUPLICATED = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
FINEWEB = {"line_punct_thr": 0.12, "short_line_thr": 0.67, "char_duplicates_ratio": 0.01, "new_line_ratio": 0.3}
NEVER = {"line_punct_thr": -1, "short_line_thr": 2, "char_duplicates_ratio": 2, "new_line_ratio": float("inf")}
C4_OFF = {"filter_no_terminal_punct": False, "min_num_sentences": -1, "min_words_per_line": -1, "max_word_length": -1,
          "filter_lorem_ipsum": False, "filter_javascript": False, "filter_curly_bracket": False,
          "filter_policy": False, "remove_citations": False}
C4_ONE = {"terminal": {"filter_no_terminal_punct": True}, "line_words": {"min_words_per_line": 3},
          "long_word": {"max_word_length": 1000}, "javascript": {"filter_javascript": True},
          "policy": {"filter_policy": True}, "citations": {"remove_citations": True},
          "lorem_ipsum": {"filter_lorem_ipsum": True}, "curly_bracket": {"filter_curly_bracket": True},
          "sentences": {"min_num_sentences": 5}}


def single_rules():
    """Every rule alone, the others switched off."""
    off = dict.fromkeys(QUALITY)
    for name, value in QUALITY.items():
        yield f"quality.{name}", GopherQualityFilter(**{**off, name: value})
    off = {**dict.fromkeys(REPETITION), "top_n_grams": (), "dup_n_grams": ()}
    for name, value in REPETITION.items():
        yield f"repetition.{name}", GopherRepetitionFilter(**{**off, name: value})
    for n, limit in TOP:
        yield f"repetition.top_{n}", GopherRepetitionFilter(**{**off, "top_n_grams": ((n, limit),)})
    for n, limit in DUPLICATED:
        yield f"repetition.duplicated_{n}", GopherRepetitionFilter(**{**off, "dup_n_grams": ((n, limit),)})
    for name, value in FINEWEB.items():
        yield f"fineweb.{name}", FineWebQualityFilter(**{**NEVER, name: value})


def fires(rule, text):
    """Whether the rule drops the document; a rule that divides by nothing decides nothing."""
    try:
        result = rule.filter(Document(text=text, id=""))
    except ZeroDivisionError:
        return False
    return result is not True and (not isinstance(result, tuple) or not result[0])


def c4(text):
    """Per line rule a digest of the text it leaves (null if it drops the document); all rules: reason and text."""
    out = {}
    for name, on in {**C4_ONE, "all": {}}.items():
        document = Document(text=text, id="")
        result = C4QualityFilter(**({**C4_OFF, **on} if name != "all" else {})).filter(document)
        out[name] = None if result is not True else hashlib.sha256(document.text.encode()).hexdigest()[:16]
        if name == "all":
            out["reason"] = None if result is True else result[1]
    return out


def decide(source, target):
    rules = dict(single_rules())
    with open(source, encoding="utf-8") as lines, open(target, "w", encoding="utf-8") as out:
        for line in lines:
            record = json.loads(line)
            text = record["text"]
            words = split_into_words(text)
            fired = [name for name, rule in rules.items() if fires(rule, text)]
            out.write(json.dumps({"id": record["id"], "fires": fired, "words": words, "c4": c4(text),
                                  "sentences": len(split_into_sentences(text))}, ensure_ascii=False) + "\n")


FILTERS = {"gopher_quality": GopherQualityFilter, "gopher_repetition": GopherRepetitionFilter,
           "c4": C4QualityFilter, "fineweb": FineWebQualityFilter}


def timed(source, target, name):
    """CPU-seconds of one filter, as datatrove runs it, and which documents (by line) stay."""
    with open(source, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    rule = FILTERS[name]()
    rule.filter(Document(text="Load the word splitter first, please. " * 20, id=""))
    documents = [Document(text=text, id=str(at)) for at, text in enumerate(texts)]
    gc.collect()
    start = time.process_time()
    kept = [int(document.id) for document in rule.run(iter(documents))]
    seconds = time.process_time() - start
    with open(target, "w", encoding="utf-8") as out:
        json.dump({"seconds": seconds, "kept": kept}, out)


if __name__ == "__main__":
    {"decide": decide, "time": timed}[sys.argv[1]](*sys.argv[2:])
