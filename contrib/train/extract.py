#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Facts from unpacked Debian packages: what commands do, where they are, what packages and words are.

    extract.py DIRECTORY FACTS.json [N]      DIRECTORY as fetch.sh leaves it; N: keep one fact in N

Of a manual page only the line under NAME is taken, of a package the first line of its description, of
WordNet glosses and synonyms.
"""
import collections
import gzip
import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent / "text"
N_WORDS = 2400
GLYPHS = {"aq": "'", "cq": "'", "oq": "'", "lq": '"', "rq": '"', "dq": '"', "em": "-", "en": "-", "hy": "-"}
NAME_SECTION = re.compile(r'^\.S[Hh] +"?NAME"? *\n(.*?)(?=^\.S[Hh]|\Z)', re.M | re.S | re.I)
COMMAND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+@-]{0,23}")
PLAIN = re.compile(r"[ -~]+")


def words_of(name):
    """The entries of a list in text/, without its comments."""
    lines = (HERE / name).read_text().splitlines()
    return " ".join(line for line in lines if not line.startswith("#")).split()


def untroff(s):
    """Text of a troff line: fonts and sizes gone, the usual glyphs spelled."""
    s = re.sub(r"\\f(\(..|\[[^]]*\]|.)|\\s[-+]?\d|\\m\[[^]]*\]|\\[&|^%/,:]", "", s)
    s = re.sub(r"\\\*?(?:\((..)|\[([^]]*)\])", lambda m: GLYPHS.get(m[1] or m[2], ""), s)
    return re.sub(r"\\(.)", lambda m: {"e": "\\", "~": " "}.get(m[1], m[1]), s)


def name_line(page):
    """(names, description) of a manual page, or None"""
    section = NAME_SECTION.search(page)
    if not section:
        return None
    body = section[1]
    what = re.search(r"^\.Nd +(.+)$", body, re.M)
    if what:  # a page in mdoc
        names = re.findall(r"^\.Nm +(.+)$", body, re.M)
        return [untroff(n).strip(" ,") for n in names], untroff(what[1]).strip()
    lines = []
    for line in body.split("\n"):
        macro = re.match(r"\.(?:B|I|BR|RB|IR|RI|BI|IB|R|SM) +(.*)", line)
        if macro:
            lines.append(macro[1].replace('"', ""))
        elif line[:1] not in (".", "'"):
            lines.append(line)
    text = re.sub(r"\s+", " ", untroff(" ".join(lines))).strip()
    found = re.match(r"(.+?)\s+-+\s+(.+)$", text)
    return ([n.strip() for n in found[1].split(",")], found[2]) if found else None


def tidy(what, verbs):
    """A description as it stands inside a sentence."""
    what = re.sub(r"\s+", " ", what).strip().strip('"').rstrip(".")
    return what[0].lower() + what[1:] if first_word(what) in verbs | {"a", "an", "the"} else what


def first_word(what):
    return re.match("[A-Za-z]*", what)[0].lower()


def commands(root, package_of, verbs):
    """Commands whose page says what they do. `n` is how well they are to be known: 1 best."""
    core, common = set(words_of("core.txt")), set(words_of("common.txt"))
    found = {}
    for section in "186":
        for path in sorted((root / f"usr/share/man/man{section}").glob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            opened = gzip.open(path, "rt", errors="replace") if path.suffix == ".gz" else open(path, errors="replace")
            with opened as f:
                line = name_line(f.read())
            if not line or not PLAIN.fullmatch(line[1] or "\0"):
                continue
            what = tidy(line[1], verbs)
            for name in line[0][:4]:
                name = name.removesuffix("-12")  # gcc-12 is what gcc runs
                if not 6 <= len(what) <= 90 or not COMMAND.fullmatch(name) or name.startswith("x86_64"):
                    continue
                if name not in package_of:
                    continue
                package = package_of[name]
                if name.startswith("git-"):
                    name = name.replace("-", " ", 1)
                level = 1 if name in core else 2 if package in common else 3
                found.setdefault(name, {"name": name, "what": what, "package": package, "level": level,
                                        "verb": first_word(what) in verbs})
    for line in (HERE / "commands.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, what, package = line.split("|")
            found[name] = {"name": name, "what": what, "package": package, "level": 1, "verb": True}
    return sorted(found.values(), key=lambda c: c["name"])


def packages(available, fetched):
    """One-line descriptions of the packages that were fetched, and of some well-known ones."""
    known = set(words_of("known-packages.txt")) | fetched
    out, name = {}, None
    for line in available.read_text().splitlines():
        key, _, value = line.partition(": ")
        if key == "Package":
            name = value
        elif key.startswith("Description") and name in known:
            what = value.strip().rstrip(".")
            if PLAIN.fullmatch(what) and 10 <= len(what) <= 75 and "transitional" not in what:
                out[name] = {"name": name, "what": what}
    return sorted(out.values(), key=lambda p: p["name"])


def wordnet(root):
    """(word, part of speech, sense, gloss, synonyms, how often it was counted in text)"""
    directory = root / "usr/share/wordnet"
    often = collections.Counter()
    for line in (directory / "cntlist.rev").read_text().splitlines():
        sense, _, n = line.split()
        word, rest = sense.split("%")
        often[word, {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}[rest[0]]] += int(n)
    for kind in ("noun", "verb", "adj", "adv"):
        glosses = {}
        for line in (directory / f"data.{kind}").read_text().splitlines():
            if not line.startswith("  "):
                data, gloss = line.split("|", 1)
                fields = data.split()
                same = [fields[4 + 2 * i] for i in range(int(fields[3], 16))]
                glosses[fields[0]] = gloss.strip(), [re.sub(r"\(.*\)", "", w).replace("_", " ") for w in same]
        for line in (directory / f"index.{kind}").read_text().splitlines():
            if not line.startswith("  "):
                fields = line.split()
                word, first = fields[0], fields[6 + int(fields[3])]
                yield (word.replace("_", " "), kind) + glosses[first] + (often[word, kind],)


def words(root):
    """The commonest words with their commonest meaning; level 1 is the first 600. And other real words."""
    everyday = set(words_of("everyday.txt"))
    best, others = {}, set()
    for word, kind, gloss, same, n in wordnet(root):
        if not re.fullmatch("[a-z]{2,14}", word):
            continue
        what = re.sub(r"^\([^)]*\)\s*", "", re.split(r'; |: "| - ', gloss)[0].strip())
        others.add(word)
        if not PLAIN.fullmatch(what) or not 8 <= len(what) <= 130 or (n < 4 and word not in everyday):
            continue
        if word not in best or best[word]["n"] < n:
            best[word] = {"word": word, "kind": {"adj": "adjective", "adv": "adverb"}.get(kind, kind), "what": what,
                          "same": [s for s in same if s != word and re.fullmatch("[a-z ]+", s)][:2], "n": n}
    ranked = sorted(best.values(), key=lambda w: (w["word"] not in everyday, -w["n"], w["word"]))[:N_WORDS]
    for i, word in enumerate(ranked):
        word["level"] = 1 if i < 600 + len(everyday) else 2
        del word["n"]
    return ranked, sorted(others - {w["word"] for w in ranked})


def main():
    directory, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    package_of = {}
    for line in (directory / "files.tsv").read_text().splitlines():
        package, path = line.split("\t")
        if "/man/" not in path:
            package_of[path.rsplit("/", 1)[1]] = package
    for page in (directory / "root/usr/share/man").glob("man[186]/*"):  # git-log is no file in bin
        name = re.sub(r"\.\d\w*(\.gz)?$", "", page.name)
        if name.startswith("git-"):
            package_of.setdefault(name, "git")
    verbs = set(words_of("verbs.txt"))
    fetched = {line.split("\t")[0] for line in (directory / "files.tsv").read_text().splitlines()}
    known, others = words(directory / "root")
    facts = {"commands": commands(directory / "root", package_of, verbs),
             "packages": packages(directory / "available", fetched), "words": known, "others": others}
    every = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    facts = {name: found[::every] for name, found in facts.items()}
    out.write_text(json.dumps(facts, indent=0) + "\n")
    print({name: len(found) for name, found in facts.items()})


if __name__ == "__main__":
    main()
