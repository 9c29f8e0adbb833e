"""What the peers decide on the cases of more_cases.py; each half runs in its peer's own environment.

    python more_rules.py datatrove CASES.json OUT.json
    python more_rules.py dolma CASES.json OUT.json
    python more_rules.py join CASES.json OUT.json DATATROVE.json DOLMA.json     # the fixture of the tests, .json.gz

datatrove: its URLFilter with the lists of the cases instead of its own. dolma: its domain tagger with the same list;
its search for repetition (`find_periodic_sequences`, periods 1 to 13), over the pieces that Tilth's rule cuts texts
into, since dolma's tokenizer is not in its package; the XML test and the ratios of its StarCoder taggers.
"""

import gzip
import json
import sys
import tempfile


def datatrove(cases):
    from datatrove.data import Document
    from datatrove.pipeline.filters import URLFilter

    made = URLFilter(soft_word_threshold=2, extra_domains=cases["domains"], banned_words=cases["adult"],
                     soft_banned_words=cases["soft"], banned_subwords=cases["parts"], use_integrated_lists=False)
    made.banned_subwords_automaton.make_automaton()
    found = [made.filter(Document(text="t", id="0", metadata={"url": url})) for url in cases["urls"]]
    return {"urls": [None if one is True else one[1] for one in found]}


def dolma(cases):
    import numpy as np
    import regex
    from dolma.core.data_types import DocumentWithMetadata
    from dolma.taggers import url as urls
    from dolma.taggers.code.code_taggers import CodeStarCoderTaggers, CodeStarCoderTaggers2
    from dolma.taggers.repetitions.utils import find_periodic_sequences

    def document(text, **metadata):
        return DocumentWithMetadata(id="0", text=text, source="s", metadata=metadata)

    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(cases["domains"]))
        file.flush()
        tagger = type("Listed", (urls.BaseDomainTagger,), {"BLOCKLIST_PATHS": [file.name]})()
    domains = [bool(tagger.predict(document("t", url=url)).spans) for url in cases["urls"]]

    piece = regex.compile(r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+")
    longest = []
    for text in cases["repeated"]:
        pieces, known = piece.findall(text), {}
        ids = np.array([known.setdefault(one, len(known)) for one in pieces] or [0])
        ends = np.cumsum([0, *map(len, pieces)])
        found = list(find_periodic_sequences(ids, max_period=13, min_period=1))
        longest.append([max((int(ends[one.end] - ends[one.start]) for one in found), default=0),
                        max((int(one.times) for one in found), default=0)])
    starcoder = CodeStarCoderTaggers()
    xml = [next(span.score for span in starcoder.predict(document(text)).spans if span.type == "has_xml_template_doc")
           for text in cases["code"]]
    ratios, second = [], CodeStarCoderTaggers2()
    for ending, text in cases["programs"]:
        found = {span.type: span.score for span in second.predict(document(text, ext=ending)).spans}
        ratios.append([found["code_to_comment_ratio_doc"], found["code_to_text_ratio_html_doc"]])
    return {"domains": domains, "repeated": longest, "xml": xml, "programs": ratios}


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


if __name__ == "__main__":
    what, source, target, *answers = sys.argv[1:]
    given = read(source)
    if what == "join":
        given |= dict(zip(("datatrove", "dolma"), map(read, answers), strict=True))
        with open(target, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as out:
            out.write(json.dumps(given, ensure_ascii=False).encode())
    else:
        with open(target, "w", encoding="utf-8") as out:
            json.dump({"datatrove": datatrove, "dolma": dolma}[what](given), out)
