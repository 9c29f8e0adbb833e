"""What dolma 1.2.1's taggers say about documents, and how long they take; runs in dolma's own environment.

    python dolma_rules.py decide IN.jsonl OUT.jsonl     # one line a document: {tagger: {attribute: value or spans}}
    python dolma_rules.py time IN.jsonl OUT.json TAGGER # CPU-seconds of a tagger, and its values
"""

import contextlib
import gc
import json
import sys
import time
from unittest import mock

from dolma.core.data_types import DocumentWithMetadata
from dolma.core.registry import TaggerRegistry
from dolma.taggers import *  # noqa: F403 registers the taggers

TAGGERS = ("gopher_v1", "gopher_v2", "c4_v1", "c4_v2", "code_redpajama_taggers_v1", "code_copyright_comments_v1",
           "char_length_strip_ws_v1", "whitespace_tokenizer_v1", "pii_regex_with_counts_fast_v2")
SPANS = ("lines_with_no_ending_punctuation", "lines_with_too_few_words", "copyright_notice", "comment_block",
         "EMAIL_ADDRESS", "PHONE_NUMBER", "IP_ADDRESS")


def document_of(record):
    return DocumentWithMetadata(id=record["id"], text=record["text"], source="s", metadata={})


def spans_of(tagger, document):
    try:
        return tagger.predict(document).spans
    except Exception as error:
        return str(error)


def summary(spans):
    """Document values as {name: score}; line spans as {name: [[start, end], ...]}."""
    if isinstance(spans, str):
        return {"error": spans}
    out = {}
    for span in spans:
        if span.type in SPANS:
            out.setdefault(span.type, []).append([span.start, span.end])
        else:
            out[span.type] = span.score
    return out


def decide(source, target):
    taggers = {name: TaggerRegistry.get(name)() for name in TAGGERS}
    with open(source, encoding="utf-8") as lines, open(target, "w", encoding="utf-8") as out:
        for line in lines:
            document = document_of(json.loads(line))
            found = {name: summary(spans_of(tagger, document)) for name, tagger in taggers.items()}
            out.write(json.dumps({"id": document.id, **found}) + "\n")


def timed(source, target, name):
    """CPU-seconds of one tagger and what it says; `gopher_without_ngrams` is gopher_v1 with its n-grams taken out."""
    from dolma.taggers import gopher

    with open(source, encoding="utf-8") as lines:
        documents = [document_of(json.loads(line)) for line in lines]
    tagger = TaggerRegistry.get("gopher_v1" if name.startswith("gopher") else name)()
    gc.collect()
    patched = mock.patch.object(gopher, "all_ngram_counts", lambda words: [])
    with patched if name == "gopher_without_ngrams" else contextlib.nullcontext():
        start = time.process_time()
        spans = [spans_of(tagger, document) for document in documents]
        seconds = time.process_time() - start
    with open(target, "w", encoding="utf-8") as out:
        json.dump({"seconds": seconds, "values": [summary(one) for one in spans]}, out)


if __name__ == "__main__":
    {"decide": decide, "time": timed}[sys.argv[1]](*sys.argv[2:])
