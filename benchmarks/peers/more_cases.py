"""Boundary cases of rules by token repetition, by address and for code. Seeded.

    python more_cases.py OUT.json [LINKS.jsonl.zst]    # addresses also from these documents
"""

import io
import json
import random
import re
import sys

WORDS = ["the", "of", "river", "stone", "don't", "3.14", "日本", "мир", "=", "--", "x1", "\n", "\n\n", "été", "}", "()"]
CODE = ["<?xml version='1.0'?>", "<?xml version = '1.0'?>",
        "int a = 1;\n", "// note\n", "é", "# x\n", " " * 30, "a" * 70]
HOSTS = ["example.org", "wwf.org", "bad.com", "w3w.co", "sub.bad.com", "notbad.com", "bad.co.uk", "deep.sub.bad.com"]
DOMAINS = ["bad.com", "wwf.org", "w3w.co", "bad.co.uk"]
ADULT, SOFT, PARTS = ["casino", "poker"], ["free", "books", "learn", "guide"], ["progit", "hackr"]


def repeated(chance):
    """Words with a stretch that repeats, near the 100 characters from which Dolma drops."""
    def some(count):
        return [chance.choice(WORDS) for _ in range(count)]
    period = some(chance.randint(1, 15))
    size = max(1, sum(len(word) + 1 for word in period))
    times = chance.choice([1, 2, 3, 4, max(1, round(100 / size) + chance.randint(-1, 2))])
    made = some(chance.randint(0, 20)) + period * times + period[:chance.randint(0, len(period))]
    return " ".join(made + some(chance.randint(0, 20)))


def code(chance):
    return "".join(chance.choice(CODE) for _ in range(chance.randint(1, 8)))


LINES = {
    "py": ["x = 1", "def f(a):", "    return a + 1", "# a note on it", "    # deep", "s = '# no comment'", "class A:",
           '    """What it is, said at some length."""', '"""Top."""', "if (", "    pass", "async def g():"],
    "java": ["int a = 1;", "// a note", "/* a\n block */", "/** What it does.\n * @return it */", "class A { }", "}",
             'String s = "// none";', "import a.b;"],
    "js": ["let a = 1;", "// a note", "/* a\n block */", "/** What it does. */", "f(() => { return `//`; });", "#!x"],
    "html": ["<p>Some words that one reads.</p>",
             "<div class='a very long name of a class' id='and another one'></div>",
             "<script>let hidden = '<b>';</script>", "<style>p { margin: 0 }</style>", "<!-- said to nobody -->",
             "A &amp; B &nbsp; &#233; &eacute", "<br/>", "text < 3", "<table><tr><td>1</td></tr></table>"]}


def program(chance):
    ending = chance.choice(list(LINES))
    few = chance.sample(LINES[ending], chance.randint(1, 4))  # so that some are hardly, and some nearly all comment
    return [ending, "\n".join(chance.choice(few) for _ in range(chance.randint(1, 60))) + chance.choice(["", "\n"])]


def addresses(chance, texts):
    found = sorted({one for text in texts for one in re.findall(r"https?://[^\s)>\]\"']+[a-zA-Z0-9/]", text)})
    real = chance.sample(found, min(600, len(found)))
    for _ in range(500):
        host = chance.choice(HOSTS)
        host = chance.choice(["", "www."]) + chance.choice([host, host, host.upper()])
        path = "/".join(chance.choice([*ADULT, *SOFT, *PARTS, "a", "b-books", "casinos", "pro-git"])
                        for _ in range(chance.randint(0, 3)))
        real.append(chance.choice(["http://", "https://"]) + host + chance.choice(["", "", ":8080"]) + "/" + path
                    + chance.choice(["", "", "?q=free-guide", "#books"]))
    listed = [re.sub(r"^https?://|[/?#:].*$", "", one).lower() for one in chance.sample(found, min(60, len(found)))]
    return real, sorted({*DOMAINS, *(one.removeprefix("www.") for one in listed)})


def main():
    chance, texts = random.Random(11), []
    if len(sys.argv) > 2:
        import pyarrow as pa
        with io.TextIOWrapper(pa.CompressedInputStream(sys.argv[2], "zstd"), "utf-8") as lines:
            texts = [json.loads(line)["text"] for line in lines]
    urls, domains = addresses(chance, texts)
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        json.dump({"repeated": [repeated(chance) for _ in range(600)], "code": [code(chance) for _ in range(200)],
                   "programs": [program(chance) for _ in range(800)],
                   "urls": urls, "domains": domains, "adult": ADULT, "soft": SOFT, "parts": PARTS}, out,
                  ensure_ascii=False)


if __name__ == "__main__":
    main()
