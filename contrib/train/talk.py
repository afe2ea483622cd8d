# SPDX-License-Identifier: Apache-2.0
"""Conversations at random from the facts and the texts in text/.

    talk.py FACTS.json N [SEED]      print N of them

A conversation is a list of segments (text, learned): True is the model's own, False the user's (of which
the model learns a part, to read better), None is never learned. Markers are spelled.
"""
import bisect
import itertools
import json
import pathlib
import random
import sys

import phrases
import safety
import story
import tools
from phrases import NO_EXAMPLE, REFUSAL, UNKNOWN, ways

TEXT = pathlib.Path(__file__).parent / "text"
THOUGHT = "<|channel>thought\n<channel|>"  # what large models' prompts end with: think nothing
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NUMBERS = "one two three four five six seven eight nine ten".split()
OPPOSITES = """hot cold,big small,fast slow,high low,good bad,happy sad,young old,open closed,light dark,long short,hard soft
wet dry,full empty,early late,loud quiet,rich poor,strong weak,thick thin,wide narrow,clean dirty,easy difficult,up down
left right,day night,first last,true false,begin end,buy sell,push pull,win lose,love hate,near far,inside outside
above below,always never""".replace("\n", ",").split(",")
COLORS = """the sky:blue,grass:green,snow:white,blood:red,a lemon:yellow,coal:black,milk:white,a banana:yellow,a tomato:red
the sun:yellow,an orange:orange,chocolate:brown,a frog:green,a carrot:orange""".replace("\n", ",").split(",")
SOUNDS = """dog:barks,cat:meows,cow:moos,duck:quacks,bird:sings,horse:neighs,sheep:bleats,lion:roars,frog:croaks,owl:hoots
bee:buzzes,snake:hisses,pig:grunts,wolf:howls,mouse:squeaks""".replace("\n", ",").split(",")
STARTS = "b c d f g h j k l m n p r s t v w z bl br cr dr fl gr kl pl qu sn st tr".split()
VOWELS = "a e i o u oo ee ai".split()
ENDS = ["", "x", "n", "t", "ctl", "d", "r", "s"]
WEIGHT = {1: 8.0, 2: 2.5, 3: 0.9}  # of a command, by level
COMPUTER = {"file", "directory", "disk", "memory", "program", "process", "system", "user", "service", "computer", "machine",
            "folder", "package", "network", "line", "text", "word", "number", "list", "table", "time", "date", "page",
            "screen", "printer", "internet", "keyboard", "mouse", "software", "password", "port", "window", "document", "mail",
            "picture", "command", "server", "log", "data", "information", "answer", "story", "name", "language", "model"}


def rows(name, n=-1):
    """The lines of a file in text/, in fields: @n of them, of which the last may hold bars."""
    return [line.split("|", n - 1 if n > 0 else -1) for line in (TEXT / name).read_text().splitlines() if line and line[0] != "#"]


def with_article(what):
    return ("an " if what[0] in "aeiouAEIO" else "a ") + what


DOUBLED = {"get", "cut", "run", "stop", "set", "split", "put", "zip", "unzip", "log", "let", "drop", "scan"}


def gerund(phrase):
    """ "copying a file" of "copy a file" """
    verb, _, rest = phrase.partition(" ")
    if verb in DOUBLED:
        verb += verb[-1]
    elif verb.endswith("e") and not verb.endswith("ee"):
        verb = verb[:-1]
    return f"{verb}ing {rest}".strip()


def capital(text):
    return text[0].upper() + text[1:]


class Choice:
    """Items drawn by weight."""

    def __init__(self, items, weights):
        self.items, self.sums = list(items), list(itertools.accumulate(weights))

    def draw(self, r):
        return self.items[min(bisect.bisect(self.sums, r.random() * self.sums[-1]), len(self.items) - 1)]


class Talk:
    """All a conversation is made of, from a file of facts."""

    def __init__(self, facts):
        facts = json.loads(pathlib.Path(facts).read_text())
        self.commands, self.packages = facts["commands"], facts["packages"]
        self.words, self.others = facts["words"], facts["others"]
        self.by_name = {c["name"]: c for c in self.commands}
        self.tasks = [(t[0].split(";"), t[1], t[2]) for t in rows("tasks.txt", 3)]
        self.examples = {c: e for _, c, e in reversed(self.tasks)}
        self.use = {p: f"Use {t[1]}. For example: {t[2]}" for t in self.tasks for p in t[0]}
        self.concepts = [c for c in rows("concepts.txt", 2) if c[0] not in self.by_name]
        self.capitals = rows("capitals.txt", 2)
        self.chat = [(row[0].split(";"), row[1:]) for row in rows("chat.txt")]
        self.complaints = [(row[0].split(";"), row[1:]) for row in rows("complaints.txt")]
        self.dangers = [d for row in rows("dangers.txt") for d in row[0].split(";")]
        self.unknown = [row[0] for row in rows("unknown.txt", 1)]
        self.tools = tools.tools([c for _, c in self.capitals])
        self.nouns, self.verbs, self.adjectives = (
            [w["word"] for w in self.words if w["kind"] == kind][:900] for kind in ("noun", "verb", "adjective"))
        self.prepare()
        # kind of question, and how often
        self.kinds = Choice((self.what, self.which, self.task, self.example, self.package_of, self.package, self.word,
                             self.same, self.concept, self.small_talk, self.complaint, self.danger, self.not_known,
                             self.repeat, self.little, self.capital_of, self.story),
                            (27, 8, 12, 2.5, 5, 2.5, 15, 1.5, 4, 4.5, 6, 7, 8, 3, 6, 2, 2))

    def prepare(self):
        """What can be drawn, and how often; which description leads back to which command."""
        self.any_command = Choice(self.commands, [WEIGHT[c["level"]] for c in self.commands])
        best = {}
        for c in self.commands:
            if c["what"] not in best or c["level"] < best[c["what"]]["level"]:
                best[c["what"]] = c
        back = [c for c in best.values() if c["verb"]]
        safe = [c for c in back if not safety.dangerous_name(c["name"]) and c["level"] < 3]
        self.any_safe = Choice(safe, [WEIGHT[c["level"]] for c in safe])
        self.dangers += [c["what"] for c in back if safety.dangerous_name(c["name"])]
        self.dangerous = [c["name"] for c in self.commands if safety.dangerous_name(c["name"])] + safety.NAMES
        self.any_word = Choice(self.words, [3.0 if w["level"] == 1 else 0.8 for w in self.words])
        self.with_same = [w for w in self.words if w["same"]][:300]
        self.others = [w for w in self.others if w not in self.by_name]
        self.not_nouns = set(self.by_name) | {c[0].split(" ", 1)[-1] for c in self.concepts}
        known = {p for t in self.tasks for p in t[0]} | set(self.dangers)
        self.sense = {p.split(" ")[0] for p in known}  # verbs that begin a known task

    # Kinds of questions: (question, answer)

    def about(self, c):
        """What a command does, as a sentence."""
        if c["verb"]:
            return f"{c['name']} is used to {c['what']}."
        return f"{c['name']}: {c['what']}."

    def what(self, r):
        c = self.any_command.draw(r)
        return r.choice(ways(phrases.WHAT)).format(n=c["name"]), self.about(c)

    def which(self, r):
        c = self.any_safe.draw(r)
        return r.choice(ways(phrases.WHICH)).format(d=c["what"]), self.advice(c)

    def advice(self, c):
        """What to use for what a command does; with an example, if there is one."""
        name = c["name"]
        example = f" For example: {self.examples[name]}" if name in self.examples else ""
        return self.use.get(c["what"], f"Use {name}.{example}")

    def task(self, r):
        t = r.choice(r.choice(self.tasks)[0])
        answer = self.use[t]
        if r.random() < 0.15:
            g = gerund(t)
            return r.choice(ways(phrases.TASK_ING)).format(g=g, G=capital(g)), answer
        return r.choice(ways(phrases.TASK)).format(t=t, T=capital(t)), answer

    def example(self, r):
        if r.random() < 0.6:
            command = r.choice(list(self.examples))
            return r.choice(ways(phrases.EXAMPLE)).format(c=command), self.examples[command]
        name = self.any_command.draw(r)["name"]
        answer = (self.examples[name] if name in self.examples else REFUSAL if safety.dangerous_name(name)
                  else NO_EXAMPLE.format(n=name))
        return r.choice(ways(phrases.EXAMPLE)).format(c=name), answer

    def package_of(self, r):
        c = self.any_command.draw(r)
        return (r.choice(ways(phrases.PACKAGE_OF)).format(n=c["name"]),
                f"{c['name']} is in the Debian package {c['package']}.")

    def package(self, r):
        p = r.choice(self.packages)
        return r.choice(ways(phrases.PACKAGE)).format(n=p["name"]), f"The package {p['name']}: {p['what']}."

    def word(self, r):
        w = self.any_word.draw(r)
        return self.ask_word(r, w["word"], w["kind"] == "noun"), f"{w['word']} ({w['kind']}): {w['what']}."

    def ask_word(self, r, word, noun):
        if noun and word not in self.not_nouns and r.random() < 0.25:
            return r.choice(ways(phrases.NOUN)).format(a=r.choice((word, with_article(word))))
        return r.choice(ways(phrases.WORD)).format(w=word)

    def same(self, r):
        w = r.choice(self.with_same)
        return r.choice(ways(phrases.SAME)).format(w=w["word"]), f"Another word for {w['word']} is {w['same'][0]}."

    def concept(self, r):
        name, answer = r.choice(self.concepts)
        bare = name.split(" ", 1)[1] if name.startswith(("a ", "an ", "the ")) else name
        return r.choice(ways(phrases.CONCEPT)).format(n=name, b=bare), answer

    def small_talk(self, r):
        asked, answers = r.choice(self.chat)
        return r.choice(asked), r.choice(answers)

    def complaint(self, r):
        asked, answers = r.choice(self.complaints)
        c = r.choice(asked)
        return r.choice(ways(phrases.COMPLAINT)).format(c=c, C=capital(c)), r.choice(answers)

    def danger(self, r):
        if r.random() < 0.25:
            name = r.choice(self.dangerous)
            question = r.choice(ways(phrases.EXAMPLE) if r.random() < 0.5 else ways(phrases.DANGER_NAME))
            if name not in self.examples:  # rm has one
                return question.format(n=name, c=name), REFUSAL
        t = r.choice(self.dangers)
        return r.choice(ways(phrases.DANGER)).format(t=t, T=capital(t)), REFUSAL

    def not_known(self, r):
        which = r.random()
        if which < 0.2:
            name = self.nonsense(r)
            way = r.choice((phrases.WHAT, phrases.WHAT, phrases.WORD, phrases.PACKAGE_OF, phrases.PACKAGE, phrases.EXAMPLE))
            return r.choice(ways(way)).format(n=name, w=name, c=name), f"I do not know {name}."
        if which < 0.42:
            word = r.choice(self.others)
            return self.ask_word(r, word, True), f"I do not know {word}."
        return self.out_of_scope(r, (which - 0.42) / 0.58), UNKNOWN

    def out_of_scope(self, r, which):
        """A question that has no answer here; @which in [0, 1) is its kind."""
        if which < 0.3:
            return r.choice(self.unknown)
        if which < 0.36:
            tool = r.choice([t for t in self.tools if t.name != "add"])
            return r.choice(tool.ask).format(**tool.fields(r))
        if which < 0.42:
            way = r.choice((phrases.ADD, phrases.SUBTRACT, phrases.OTHER_SUM))
            return r.choice(ways(way)).format(x=r.randint(21, 999), y=r.randint(21, 999))
        if which < 0.48:
            return r.choice(ways(phrases.OTHER_PLACE)).format(x=r.choice(r.choice(self.capitals)))
        if which < 0.52:
            return r.choice(ways(phrases.CAPITAL)).format(x=capital(r.choice((self.nonsense(r), r.choice(self.nouns)))))
        noun = r.choice([n for n in r.choices(self.nouns, k=4) if n not in COMPUTER] or ["horse"])
        verb = r.choice([v for v in r.choices(self.verbs, k=4) if v not in self.sense] or ["admire"])
        return r.choice(ways(phrases.OTHER)).format(
            n=noun, m=r.choice(self.nouns), a=r.choice(self.adjectives), v=verb, N=r.choice(list(story.NAMES)))

    def nonsense(self, r):
        while True:
            name = "".join(r.choice(STARTS) + r.choice(VOWELS) for _ in range(r.choice((1, 2, 2, 3)))) + r.choice(ENDS)
            if name not in self.by_name and len(name) > 2:
                return name

    def repeat(self, r):
        """Copying is learned best by copying."""
        which = r.random()
        if which < 0.4:
            w = self.nonsense(r)
        elif which < 0.6:
            w = r.choice(self.others)
        else:
            w = " ".join(r.choice(self.nouns) for _ in range(r.choice((1, 2, 3))))
        return r.choice(ways(phrases.REPEAT)).format(w=w), w

    def little(self, r):
        which = r.randrange(8)
        if which < 2:
            x, y = r.randint(0, 10), r.randint(0, 10)
            return r.choice(ways(phrases.ADD)).format(x=x, y=y), f"{x} + {y} = {x + y}"
        if which == 2:
            x, y = sorted((r.randint(0, 10), r.randint(0, 10)), reverse=True)
            return r.choice(ways(phrases.SUBTRACT)).format(x=x, y=y), f"{x} - {y} = {x - y}"
        if which == 3:
            kind, names = r.choice((("day", DAYS), ("month", MONTHS)))
            i = r.randrange(len(names))
            return (r.choice(ways(phrases.AFTER)).format(k=kind, x=names[i]),
                    f"{names[(i + 1) % len(names)]} comes after {names[i]}.")
        if which == 4:
            x, y = r.choice(OPPOSITES).split(" ")[::r.choice((1, -1))]
            return r.choice(ways(phrases.OPPOSITE)).format(x=x), f"The opposite of {x} is {y}."
        if which == 5:
            x, color = r.choice(COLORS).split(":")
            return r.choice(ways(phrases.COLOR)).format(x=x), f"{capital(x)} is {color}."
        if which == 6:
            x, sound = r.choice(SOUNDS).split(":")
            x = with_article(x)
            return r.choice(ways(phrases.SOUND)).format(x=x), f"{capital(x)} {sound}."
        n = r.choice((3, 5, 10))
        return (r.choice(ways(phrases.COUNT)).format(x=r.choice((n, NUMBERS[n - 1]))),
                ", ".join(NUMBERS[:n]) + ".")

    def capital_of(self, r):
        country, city = r.choice(self.capitals)
        return r.choice(ways(phrases.CAPITAL)).format(x=country), f"The capital of {country} is {city}."

    def story(self, r):
        if r.random() < 0.4:
            return r.choice(ways(phrases.STORY)), story.story(r)
        animal = r.choice(list(story.HOMES))
        return r.choice(ways(phrases.STORY_OF)).format(x=with_article(animal)), story.story(r, animal)

    def follow_up(self, r, answer):
        """A second question that only the first answer explains, or None."""
        c = self.by_name.get(answer.split(" is ", 1)[0])
        which = r.random()
        if not c:
            return None
        if which < 0.4:
            return r.choice(ways(phrases.ITS_PACKAGE)), f"{c['name']} is in the Debian package {c['package']}."
        if which < 0.6 and c["name"] in self.examples:
            return r.choice(ways(phrases.ITS_EXAMPLE)), self.examples[c["name"]]
        c = self.any_command.draw(r)
        return r.choice(ways(phrases.AND)).format(n=c["name"]), self.about(c)

    def in_json(self, r):
        """(question, answer) where the answer is {"name": ..., "kind": ..., "text": ...}"""
        which = r.random()
        if which < 0.5:
            c = self.any_command.draw(r)
            question, name, kind, text = r.choice(ways(phrases.WHAT)).format(n=c["name"]), c["name"], "command", c["what"]
        elif which < 0.75:
            w = self.any_word.draw(r)
            question, name, kind, text = self.ask_word(r, w["word"], False), w["word"], "word", w["what"]
        elif which < 0.85:
            name, text = r.choice(self.capitals)
            question, kind = r.choice(ways(phrases.CAPITAL)).format(x=name), "capital"
        else:
            name, kind, text = self.nonsense(r), "unknown", ""
            question = r.choice(ways(phrases.WHAT)).format(n=name)
        return question, json.dumps({"name": name, "kind": kind, "text": text})

    # Conversations

    def vary(self, r, question):
        """The question, sometimes as people in a hurry or in company put it."""
        which = r.random()
        if which < 0.07:
            return question.lower()
        if which < 0.12:
            return question.rstrip("?.")
        if which < 0.18:
            return r.choice(ways(phrases.BEFORE)) + " " + question
        if which < 0.23:
            return question.rstrip("?.") + " " + r.choice(ways(phrases.AFTER_ALL))
        return question

    def turn(self, r, question, segments):
        """One question and its answer; sometimes the prompt ends in the empty thought."""
        thought = [(THOUGHT, None)] if r.random() < 0.15 else []
        return [(f"<|turn>user\n{question}<turn|>\n<|turn>model\n", False)] + thought + segments + [("\n", None)]

    def conversation(self, r):
        which = r.random()
        if which < 0.04:
            return self.with_json(r)
        if which < 0.1:
            return self.with_tools(r)
        out = [("<bos>", None)]
        if r.random() < 0.08:
            out.append((f"<|turn>system\n{r.choice(ways(phrases.SYSTEM))}<turn|>\n", None))
        for _ in range(r.choice((1, 1, 1, 2, 2, 3, 4))):
            kind = self.kinds.draw(r)
            question, answer = kind(r)
            if kind not in (self.repeat, self.not_known):
                question = self.vary(r, question)
            out += self.turn(r, question, [(answer + "<turn|>", True)])
            if answer == REFUSAL and r.random() < 0.25:
                out += self.turn(r, r.choice(ways(phrases.INSIST)), [(REFUSAL + "<turn|>", True)])
            if kind == self.what and r.random() < 0.2:
                more = self.follow_up(r, answer)
                if more:
                    out += self.turn(r, more[0], [(more[1] + "<turn|>", True)])
        return out

    def with_json(self, r):
        out, ask = [("<bos>", None)], r.choice(ways(phrases.JSON))
        in_system = r.random() < 0.5
        if in_system:
            out.append((f"<|turn>system\n{ask}<turn|>\n", None))
        for _ in range(r.choice((1, 2))):
            question, answer = self.in_json(r)
            out += self.turn(r, question if in_system else f"{question} {ask}", [(answer + "<turn|>", True)])
        return out

    def with_tools(self, r):
        known = r.sample(self.tools, r.choice((1, 1, 2, 3)))
        declared = "".join(t.declaration() for t in known)
        head = r.choice(ways(phrases.SYSTEM)) if r.random() < 0.3 else ""
        out = [("<bos>", None), (f"<|turn>system\n{head}{declared}<turn|>\n", None)]
        for _ in range(r.choice((1, 1, 2))):
            which = r.random()
            if which < 0.75:
                out += self.turn(r, *tools.exchange(r, r.choice(known), True))
            elif which < 0.85:
                missing = r.choice([t for t in self.tools if t not in known and t.name != "add"])
                out += self.turn(r, *tools.exchange(r, missing, False))
            else:
                question, answer = self.kinds.draw(r)(r)
                out += self.turn(r, question, [(answer + "<turn|>", True)])
        return out


def main():
    facts, n, seed = sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "1"
    talk, r = Talk(facts), random.Random(seed)
    for _ in range(n):
        print("".join(text for text, _ in talk.conversation(r)), end="")


if __name__ == "__main__":
    main()
