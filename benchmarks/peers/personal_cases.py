"""Boundary cases of personal data, and what dolma 1.2.1 finds in them, as one small file for the tests.

    python personal_cases.py cases CASES.jsonl
    python dolma_rules.py decide CASES.jsonl DOLMA.jsonl        # in dolma's environment
    python personal_cases.py fixture CASES.jsonl DOLMA.jsonl OUT.jsonl.gz
"""

import gzip
import json
import random
import sys

PARTS = ["ann@x.org", "a.b+c@mail.example.co.uk", "(@x.org", "a@b", "@", "a@@b.c", "j@x.org,k@y.org", "user@x_y.de",
         "206-555-0100", "(206) 555-0100", "206.555.0100", "206 555 0100", "2065550100", "+1 206 555 0100",
         "20655501001", "206--555-0100", "٢٠٦-٥٥٥-٠١٠٠", "10.0.0.12", "256.1.1.1", "1.2.3.4.5", "1.2.3.4567", "http://10.0.0.1/a?b=c",
         "01.002.3.4", "2001:db8::1", "::1", "12:30:45", "word", "naïve", "日本", ".", ",", "?", "!", ";", ":", "(",
         ")", "#", "isbn", "\n", "\n\n", " ", "  ", "\t", "\r\n", "\u00a0", "\u2003", "\x1c", "\x1f", "\x85", "\u2028",
         "-"]


def cases(target):
    draw = random.Random(7)
    with open(target, "w", encoding="utf-8") as out:
        for at in range(1500):
            text = "".join(draw.choice(PARTS) + draw.choice(["", " ", " ", "\n"]) for _ in range(draw.randint(1, 12)))
            out.write(json.dumps({"id": str(at), "text": text}) + "\n")


def lines_of(path):
    with open(path, encoding="utf-8") as lines:
        return lines.readlines()


def fixture(source, decided, target):
    with open(target, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as out:
        for case, found in zip(lines_of(source), lines_of(decided), strict=True):
            spans = json.loads(found)["pii_regex_with_counts_fast_v2"]
            joined = {"text": json.loads(case)["text"], "count": spans["doc_count"],
                      **{kind: spans.get(name, []) for kind, name in (("email", "EMAIL_ADDRESS"),
                                                                      ("phone", "PHONE_NUMBER"), ("ip", "IP_ADDRESS"))}}
            out.write((json.dumps(joined) + "\n").encode())


if __name__ == "__main__":
    {"cases": cases, "fixture": fixture}[sys.argv[1]](*sys.argv[2:])
