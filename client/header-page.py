# SPDX-License-Identifier: Apache-2.0
"""The headers of libmoe as a manual page on standard output: header-page.py HEADER...

Comments become text, declarations stay what they are, and lines /* -- Title -- */ begin sections.
"""
import pathlib
import re
import sys

HEAD = r""".\" SPDX-License-Identifier: Apache-2.0
.TH LIBMOE 3 "" moed "Library Functions"
.SH NAME
libmoe \- talk to moed, the language model service of this machine
.SH SYNOPSIS
.nf
.B #include <moe.h>
.B #include <moe\-session.h>

cc ... $(pkg\-config \-\-cflags \-\-libs libmoe)
.fi
.SH DESCRIPTION
.ad l"""
TAIL = r""".SH SEE ALSO
.BR moed\-rpc (7),
.BR moed (8),
.BR moectl (1)"""
PART = re.compile(r"/\*\*?(.*?)\*/\n|((?:[^/\n][^\n]*\n)+)|\n", re.S)  # a comment, lines of C, an empty line
NOISE = re.compile(r'^(#(ifn?def|endif|include)|#define MOE(_SESSION)?_(H|API)|extern "C"|\}$)')


def escape(text):
    return re.sub(r"^(?=[.'])", r"\\&", text.replace("\\", "\\e").replace("-", "\\-"), flags=re.M)


def code(text):
    """Declarations as they are; those that follow each other stay together."""
    text = re.sub(r"^MOE_API ([^;]*;)", lambda m: m[1].replace("\n" + 8 * " ", "\n"), text.rstrip(), flags=re.M)
    lines = [line for line in text.split("\n") if not NOISE.match(line)]
    return [".PP", ".RS 4", ".nf", escape("\n".join(lines)), ".fi", ".RE"] if lines else []


def prose(comment):
    """The text of a comment: paragraphs; what is set off further, and lists of names, line by line."""
    text = "\n".join(re.sub(r"^ \* ?", "", line) for line in comment.strip("\n").split("\n")).strip()
    for paragraph in re.split(r"\n\s*\n", text):
        if re.match(r"\s*(SPDX|clang-format)", paragraph):
            continue
        if m := re.match(r"(moe(-\w+)?) - (.*)", paragraph, re.S):
            if m[2]:
                yield from [f'.SH "{m[1].upper()}.H"', escape(m[3])]
            continue
        if m := re.match(r"(moe_\w+)\(\) - (.*)", paragraph, re.S):
            paragraph = f"{m[1]}(): {m[2]}"
        yield ".PP"
        listed = re.search(r"^(@\w+:|[A-Z]\w+: )", paragraph, re.M) or paragraph.startswith("  ")
        yield from [".nf", escape(paragraph), ".fi"] if listed else [escape(paragraph)]


def page(text):
    for m in PART.finditer(text):
        comment, lines = m.groups()
        if comment and (title := re.match(r"\s*-- (.*?) -+\s*$", comment)):
            yield f'.SH "{title[1].upper()}"'
        elif comment:
            yield from prose(comment)
        elif lines:
            yield from code(lines)


text = "\n".join([HEAD, *(line for header in sys.argv[1:] for line in page(pathlib.Path(header).read_text())), TAIL])
print(re.sub(r"^(\.(SH .*|ad l)\n)\.PP\n", r"\1", text, flags=re.M))
