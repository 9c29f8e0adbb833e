"""dolma 1.2.1's fastText tagger: trains its model as dolma does, and scores documents; runs in dolma's environment.

    python dolma_classifier.py train LABELLED.jsonl MODEL.bin        # {"text", "label"} a line
    python dolma_classifier.py document IN.jsonl OUT.json MODEL.bin  # CPU-seconds, and the probability of label 1
    python dolma_classifier.py sentence IN.jsonl OUT.json MODEL.bin  # the same by sentence: the highest

The released models are not at hand without a network; one of the same shape (dimension 100, word bigrams, 2,000,000
buckets) takes the same time.
"""

import gc
import json
import sys
import tempfile
import time
from functools import partial

import fasttext
from dolma.core.data_types import Document
from dolma.taggers.jigsaw import FastTextJigsawHatespeechDocumentTagger as Jigsaw
from dolma.taggers.jigsaw import FastTextJigsawHatespeechSentenceTagger as BySentence


def lines_of(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def train(source, target):
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as out:
        for one in lines_of(source):
            name = "hate" if one["label"] == "1" else "non_hate"
            out.write(f"__label__{name} {' '.join(one['text'].split())}\n")
        out.flush()
        # What `Jigsaw.train` does, which fails for its last argument (it gives fastText None for a text).
        made = fasttext.train_supervised(input=out.name, lr=0.1, dim=100, epoch=100, minCount=1, wordNgrams=2,
                                         bucket=2_000_000, loss="softmax", thread=1, verbose=0)
    made.save_model(target)


def timed(source, target, model, cls=Jigsaw):
    documents = [Document(id=one["id"], text=one["text"], source="s") for one in lines_of(source)]
    Jigsaw.MODEL_PATH = model
    tagger = cls()
    tagger.predict(documents[0])
    gc.collect()
    start = time.process_time()
    results = [tagger.predict(document) for document in documents]
    seconds = time.process_time() - start
    values = [max((span.score for span in one.spans if "non" not in span.type), default=0) for one in results]
    with open(target, "w", encoding="utf-8") as out:
        json.dump({"seconds": seconds, "values": values}, out)


if __name__ == "__main__":
    {"train": train, "document": timed, "sentence": partial(timed, cls=BySentence)}[sys.argv[1]](*sys.argv[2:])
