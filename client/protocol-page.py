# SPDX-License-Identifier: Apache-2.0
"""PROTOCOL.md as a manual page on standard output: protocol-page.py PROTOCOL.md"""
import pathlib
import re
import sys

HEAD = r"""'\" t
.\" SPDX-License-Identifier: Apache-2.0
.TH MOED\-RPC 7 "" moed "Miscellaneous"
.SH NAME
moed\-rpc \- protocol of the language model service's socket
.SH DESCRIPTION
.ad l"""
TAIL = r""".SH SEE ALSO
.BR moed (8),
.BR libmoe (3),
.BR moed.conf (5)"""


def escape(text):
    return text.replace("\\", "\\e")


def inline(text):
    """Code in bold, links by their text; a line of text begins with no control character."""
    out = ""
    for i, part in enumerate(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).split("`")):
        out += r"\fB" + escape(part).replace("-", "\\-") + r"\fR" if i % 2 else escape(part).replace("**", "")
    return re.sub(r"^(?=[.'])", r"\\&", out)


def blocks(text):
    """Paragraphs, list items, tables and fenced blocks, as lists of lines; the first line tells which."""
    block, fenced = [], False
    for line in text.splitlines():
        begins = line.startswith(("#", "- ", "```")) or (line.startswith("|") and not (block and block[0].startswith("|")))
        if not fenced and (not line.strip() or begins) and block:
            yield block
            block = []
        if line.startswith("```"):
            fenced = not fenced
        if line.strip() or fenced:
            block.append(line)
    yield block


def table(lines):
    rows = [[inline(cell.strip().replace("\\|", "|")) for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines if
            not re.match(r"\|[-|]*\|$", line)]
    wide = [min(max(len(re.sub(r"\\\\f.|\\\\(?=-)", "", cell)) for cell in column), 30) for column in zip(*rows)]
    form = " ".join([*(f"lw({w}n)" for w in wide[:-1]), "lx"]) + "."
    return [".TS", form, *("\t".join(f"T{{\n{cell}\nT}}" for cell in row) for row in rows), ".TE"]


def page(text):
    for block in blocks(text):
        first = block[0]
        if first.startswith(("# ", "<!--")):
            continue
        if first.startswith("## "):
            yield f'.SH "{inline(first[3:]).upper() if "`" not in first else inline(first[3:])}"'
        elif first.startswith("### "):
            yield f'.SS "{inline(first[4:])}"'
        elif first.startswith("```"):
            yield from [".PP", ".nf", *(re.sub(r"^(?=[.'])", r"\\&", escape(x)) for x in block[1:-1]), ".fi"]
        elif first.startswith("|"):
            yield from table(block)
        elif first.startswith("- "):
            yield ".IP \\(bu 2"
            yield from inline("\n".join(x.strip() for x in [first[2:], *block[1:]])).split("\n")
        else:
            yield ".PP"
            yield from re.sub(r"\n(?=[.'])", r"\n\\&", inline("\n".join(block))).split("\n")


text = "\n".join([HEAD, *page(pathlib.Path(sys.argv[1]).read_text()), TAIL])
print(re.sub(r"^(\.(S[HS] .*|ad l)\n)\.PP\n", r"\1", text, flags=re.M))
