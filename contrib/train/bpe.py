# SPDX-License-Identifier: Apache-2.0
"""A byte-pair tokenizer in the form of Gemma 4's vocabulary: spaces are U+2581, newlines stand apart, what
has no token is bytes, and the markers have Gemma 4's own ids."""
import collections
import heapq
import re

SPACE = "\u2581"
# No merge crosses these: words, single digits, signs; a space belongs to what follows it.
PART = re.compile(f"{SPACE}?[A-Za-z]+|{SPACE}?[0-9]|{SPACE}?[^A-Za-z0-9\n{SPACE}]+"
                  f"|{SPACE}+(?={SPACE}[^{SPACE}])|{SPACE}+")
LINE = re.compile(r"[^\n]+|\n+")
MARKERS = {
    0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 46: "<|tool>", 47: "<tool|>", 48: "<|tool_call>",
    49: "<tool_call|>", 50: "<|tool_response>", 51: "<tool_response|>", 52: '<|"|>', 98: "<|think|>",
    100: "<|channel>", 101: "<channel|>", 105: "<|turn>", 106: "<turn|>"}
MARKER = re.compile("(" + "|".join(re.escape(m) for m in MARKERS.values()) + ")")
SHOWN = {48, 49, 50, 51, 52, 100, 101}  # markers that other engines print
NORMAL, UNKNOWN, CONTROL, SHOWN_MARKER, UNUSED, BYTE = range(1, 7)  # token types of GGUF
N_RESERVED = 107
LONGEST = 16  # characters of a token


def base_vocabulary():
    tokens, types = [], []
    for i in range(N_RESERVED):
        tokens.append(MARKERS.get(i, f"<unused{i}>"))
        types.append(UNKNOWN if i == 3 else SHOWN_MARKER if i in SHOWN else CONTROL if i in MARKERS else UNUSED)
    plain = ["\n", "\n\n", "\n\n\n"]
    tokens += plain + [f"<0x{b:02X}>" for b in range(256)] + [SPACE] + [chr(c) for c in range(33, 127)]
    types += [NORMAL] * len(plain) + [BYTE] * 256 + [NORMAL] * 95
    return tokens, types


def count_parts(texts):
    """How often each part occurs in ASCII text."""
    count = collections.Counter()
    for text in texts:
        for line in text.split("\n"):
            count.update(p for p in PART.findall(line.replace(" ", SPACE)) if p.replace(SPACE, "").isascii())
    return count


def merged(word, pair):
    """@word with each @pair in it made one."""
    out, i = [], 0
    while i < len(word):
        if tuple(word[i:i + 2]) == pair:
            out.append(word[i] + word[i + 1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return out


def train(count, size):
    """A tokenizer of @size tokens for parts that occur as often as @count says."""
    tokens, types = base_vocabulary()
    known, merges = set(tokens), []
    words, times = [list(p) for p in count], list(count.values())
    pairs, where = collections.Counter(), collections.defaultdict(set)
    for i, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += times[i]
            where[pair].add(i)
    heap = [(-n, pair) for pair, n in pairs.items()]
    heapq.heapify(heap)
    while len(tokens) < size and heap:
        n, pair = heapq.heappop(heap)
        if pairs[pair] != -n:  # it changed since: again at its place, if it still occurs
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        if -n < 2 or len(pair[0] + pair[1]) > LONGEST:
            pairs[pair] = 0
            continue
        merges.append(pair)
        if pair[0] + pair[1] not in known:
            known.add(pair[0] + pair[1])
            tokens.append(pair[0] + pair[1])
            types.append(NORMAL)
        change = collections.Counter()
        for i in where[pair]:
            new = merged(words[i], pair)
            for p in zip(words[i], words[i][1:]):
                change[p] -= times[i]
            for p in zip(new, new[1:]):
                change[p] += times[i]
                where[p].add(i)
            words[i] = new
        for p, d in change.items():
            pairs[p] += d
            if d > 0:
                heapq.heappush(heap, (-pairs[p], p))
        pairs[pair] = 0
    while len(tokens) < size:  # little text: the model's size stays
        tokens.append(f"<unused{len(tokens)}>")
        types.append(UNUSED)
    return Tokenizer(tokens, types, merges)


class Tokenizer:
    def __init__(self, tokens, types, merges):
        self.tokens, self.types, self.merges = tokens, types, [tuple(m) for m in merges]
        self.id = {t: i for i, t in enumerate(tokens)}
        self.rank = {m: i for i, m in enumerate(self.merges)}
        self.known = {}

    def part(self, text):
        """Ids of one part: the earliest merge first."""
        ids = self.known.get(text)
        if ids is None:
            word = list(text)
            while len(word) > 1:
                rank, i = min((self.rank.get(p, len(self.rank)), i) for i, p in enumerate(zip(word, word[1:])))
                if rank == len(self.rank):
                    break
                word[i:i + 2] = [word[i] + word[i + 1]]
            ids = []
            for w in word:
                ids += [self.id[w]] if w in self.id else [self.id[f"<0x{b:02X}>"] for b in w.encode()]
            self.known[text] = ids
        return ids

    def encode(self, text):
        """Ids of a text in which markers are markers."""
        ids = []
        for piece in MARKER.split(text):
            if MARKER.fullmatch(piece):
                ids.append(self.id[piece])
                continue
            for line in LINE.findall(piece):
                if line[0] == "\n":
                    ids += [self.id[line]] if line in self.id else [self.id["\n"]] * len(line)
                else:
                    for part in PART.findall(line.replace(" ", SPACE)):
                        ids += self.part(part)
        return ids
