"""The peers' decisions on boundary cases and public-domain samples, as one small file for the tests.

    python make_fixtures.py CASES.jsonl DATATROVE.jsonl DOLMA.jsonl OUT.jsonl.gz
"""

import gzip
import json
import sys


def lines_of(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


if __name__ == "__main__":
    *sources, target = sys.argv[1:]
    with open(target, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as out:
        for case, datatrove, dolma in zip(*map(lines_of, sources), strict=True):
            assert case["id"] == datatrove.pop("id") == dolma.pop("id")
            joined = {"text": case["text"], "datatrove": datatrove, "dolma": dolma}
            out.write((json.dumps(joined, ensure_ascii=False) + "\n").encode())
