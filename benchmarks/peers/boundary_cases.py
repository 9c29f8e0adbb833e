"""Documents on which toolkits could differ: each lies near a threshold or holds what trips a splitter. Seeded.

    python boundary_cases.py OUT.jsonl [REAL.jsonl ...]     # from each file of real documents a few, cut to 3,000 bytes
"""

import json
import random
import sys

WORDS = ["the", "of", "and", "to", "be", "that", "have", "with", "harvest", "field", "river", "stone", "letter",
         "morning", "window", "question", "answer", "carry", "follow", "gather", "quiet", "bright", "narrow",
         "season", "village", "market", "record", "measure", "don't", "it's", "we'll", "U.S.", "e.g.", "3.14",
         "1,000", "10:30", "and/or", "well-known", "naïve", "Straße", "été", "日本語", "мир", "שלום", "a", "I", "2024",
         "COVID-19", "x=1", "foo_bar", "http://example.org/a?b=1"]
SPACES = ["\t", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\xa0", "\u2003", "\u2028", "\u2029",
          "\u3000", "\u200b", "\ufeff", "\x00"]
ENDS = [".", "?", "!", '"', "'", "...", "…", "。", "", ",", ".)", ";", "？", "։"]
PHRASES = ["lorem ipsum", "Lorem Ipsum dolor", "JavaScript is off", "javascript", "terms of use", "Privacy Policy",
           "uses cookies", "{", "{ a: 1 }", "[1]", "[edit]", "[citation needed]", "w" * 1001, "w" * 1000, "# # #", "#"]


def words(random, count, distinct=None):
    chosen = random.sample(WORDS, distinct) if distinct else WORDS
    return [random.choice(chosen) for _ in range(count)]


def by_length(random):
    """45 to 55 words, plain or with punctuation marks apart."""
    made = words(random, random.randint(45, 55))
    return " ".join(word + random.choice(["", "", ",", " -", " !", " #"]) for word in made)


def by_symbols(random):
    made = words(random, 100)
    for at in random.sample(range(100), random.randint(8, 12)):
        made[at] += random.choice(["#", "...", "…", " # "])
    return " ".join(made)


def by_letters(random):
    made = words(random, 100)
    for at in random.sample(range(100), random.randint(17, 23)):
        made[at] = random.choice(["12", "-", "&", "3.5", "++", "२", "①"])
    return " ".join(made)


def by_word_length(random):
    size = random.choice([(1, 4), (2, 4), (3, 3), (9, 11), (10, 10), (8, 13)])
    return " ".join("abcdefghijklmnopq"[:random.randint(*size)] for _ in range(random.randint(50, 80)))


def by_lines(random):
    """Bullets, ellipses and repeated lines near their thresholds."""
    count, lines = random.randint(5, 20), []
    starts, ends = random.choice([["- ", "* ", "• ", "-", " - "], [""]]), random.choice([ENDS, ["…", "..."], ["."]])
    for _ in range(count):
        lines.append(random.choice(starts) + " ".join(words(random, random.randint(1, 9))) + random.choice(ends))
    for _ in range(random.randint(0, count // 2)):
        lines[random.randrange(count)] = lines[random.randrange(count)]
    return random.choice(["\n", "\n", "\n\n", "\r\n", "\n \n"]).join(lines) + random.choice(["", "\n", "\n\n", " "])


def by_repetition(random):
    made = words(random, random.randint(20, 120), random.choice([None, 5, 12]))
    for _ in range(random.randint(0, 4)):
        at, size, to = random.randrange(len(made)), random.randint(2, 12), random.randrange(len(made))
        made[to:to] = made[at:at + size]
    return " ".join(made)


def by_web(random):
    """Sentences in lines, with the phrases that C4 looks for."""
    lines = []
    for _ in range(random.randint(2, 12)):
        made = words(random, random.randint(1, 12))
        if random.random() < 0.25:
            made[random.randrange(len(made))] = random.choice(PHRASES)
        made[0] = made[0].capitalize()
        lines.append(" ".join(made) + random.choice([*ENDS, *[". Then more."] * 6, *["."] * 12]))
    return "\n".join(lines)


def by_space(random):
    made = words(random, random.randint(1, 60))
    return "".join(word + random.choice([" ", " ", "\n", random.choice(SPACES)]) for word in made)


def by_code(random):
    lines = [" " * random.choice([0, 4, 8]) + random.choice(["x = 1", "return {a: b}", "# comment", "", "}", "0, " * 40,
                                                            "y" * random.choice([90, 100, 110, 999, 1001])])
             for _ in range(random.randint(1, 30))]
    return random.choice(["", "/* Copyright 2020 A. Author. All rights reserved. */\n", "# Copyright (c) A\n# MIT\n"]) \
        + "\n".join(lines)


SHORT = ["", " ", "\n", "a", "a b", "the", "…", "...", "-", "- a", "#", "a b c a b c", "\x00", "a\n\na", "a\na\n",
         "- the cat sat\n- the cat sat\nto be \u2026\nwe have 42 # dogs",
         "Hello there my friend.\nMenu\nJavaScript is off.\n",
         "{", "lorem ipsum", "lorem ipsum and more words here.", "今天天气好今天天气好今天天气好。"]
KINDS = [by_length, by_symbols, by_letters, by_word_length, by_lines, by_repetition, by_web, by_web, by_space, by_code]


def cases(count=500):
    chance = random.Random(7)
    yield from SHORT
    for at in range(count):
        yield KINDS[at % len(KINDS)](chance)


def real(paths, of_each=14, size=3000):
    """A few documents of each file, each from its beginning (or its middle), cut at a character."""
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            texts = [json.loads(line)["text"] for line in lines]
        for at, text in enumerate(random.Random(path.rpartition("/")[2]).sample(texts, min(of_each, len(texts)))):
            yield (text if at % 2 else text[len(text) // 2:]).encode()[:size].decode(errors="ignore")


if __name__ == "__main__":
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        for at, text in enumerate([*cases(), *real(sys.argv[2:])]):
            out.write(json.dumps({"id": str(at), "text": text}, ensure_ascii=False) + "\n")
