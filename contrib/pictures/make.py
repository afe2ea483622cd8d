#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Pictures of moectl for the README: contrib/pictures/make.py BUILD

A service with the demo model is started; `moectl chat`, `moectl top` and `moectl topology` run before it
on a terminal that only exists in memory, and what that shows is written beside this file.
Takes python3-pyte and python3-msgpack.
"""
import contextlib
import fcntl
import html
import os
import pathlib
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time

import pyte

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "contrib/python"))

import moed  # noqa: E402

MODEL = ROOT / "contrib/demo-model/tiny-linux-gemma4-Q8_0.gguf"
FOREVER = {1: -100.0, 50: -100.0, 106: -100.0}  # the model cannot end its answer
COLUMNS, LINES = 100, 24
WIDE, HIGH = 8.4, 19  # pixels of a character
COLOURS = {"default": "#d8dee4", "black": "#6a737d", "red": "#f97583", "green": "#85e89d", "brown": "#ffea7f", "yellow": "#ffea7f",
           "blue": "#79b8ff", "magenta": "#b392f0", "cyan": "#73e3ff", "white": "#fafbfc"}


class Terminal:
    """A program on a pseudo-terminal, and the screen that it paints."""

    def __init__(self, argv, env):
        self.screen = pyte.HistoryScreen(COLUMNS, LINES, history=200)
        self.stream = pyte.ByteStream(self.screen)
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.execve(argv[0], [str(a) for a in argv], env)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("4H", LINES, COLUMNS, 0, 0))

    def show(self, seconds, until=None):
        """Paint what comes for so long, or until the screen has the text @until."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not (until and until in "\n".join(self.screen.display)):
            if select.select([self.fd], [], [], min(left, 0.2))[0]:
                try:
                    data = os.read(self.fd, 4096)
                except OSError:
                    return
                self.stream.feed(data)

    def type(self, text):
        for c in text:
            os.write(self.fd, c.encode())
            self.show(0.02)

    def end(self):
        os.kill(self.pid, signal.SIGTERM)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


def run_of(cells):
    """(column, text, look) of what looks the same in a line."""
    run = None
    for x in range(COLUMNS):
        c = cells[x]
        look = (c.bg if c.reverse else c.fg, c.bold, c.reverse)
        if run and run[2] == look:
            run[1] += c.data
        else:
            if run:
                yield run
            run = [x, c.data, look]
    yield run


def picture(screen, title):
    """The screen as SVG, up to its last line that is not empty."""
    rows = [i for i, line in enumerate(screen.display) if line.strip()]
    n = max(rows) + 1
    width, height = COLUMNS * WIDE + 32, n * HIGH + 58
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" height="{height}" '
           'font-family="ui-monospace, DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="14">',
           "<!-- SPDX-License-Identifier: Apache-2.0 -->",
           f'<rect width="{width:.0f}" height="{height}" rx="9" fill="#1b1f23"/>',
           *(f'<circle cx="{18 + 18 * i}" cy="18" r="5.5" fill="{c}"/>' for i, c in enumerate(("#ff5f56", "#ffbd2e", "#27c93f"))),
           f'<text x="{width / 2:.0f}" y="22" text-anchor="middle" fill="#8b949e" font-size="12">{html.escape(title)}</text>']
    for y in range(n):
        for x, text, (colour, bold, reverse) in run_of(screen.buffer[y]):
            left, top = 16 + x * WIDE, 54 + y * HIGH
            if reverse:
                out.append(f'<rect x="{left:.1f}" y="{top - 14}" width="{len(text) * WIDE:.1f}" height="{HIGH}" fill="#d8dee4"/>')
            if text.strip():
                kept = text.rstrip()
                x = left + (len(kept) - len(kept.lstrip())) * WIDE
                fill = "#1b1f23" if reverse else COLOURS.get(colour, f"#{colour}")
                out.append(f'<text x="{x:.1f}" y="{top}" fill="{fill}"{" font-weight=" + chr(34) + "bold" + chr(34) if bold else ""} '
                           f'textLength="{len(kept.lstrip()) * WIDE:.1f}" xml:space="preserve">{html.escape(kept.lstrip())}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def work(path, priority):
    """Have answers without an end, until the service goes."""
    with contextlib.suppress(ConnectionError, moed.Error), moed.Client(path) as client:
        while True:
            client.ask(prompt="Once upon a time", priority=priority, logit_bias=FOREVER)


def main():
    build, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory(prefix="moed-pictures-") as d:
        moectl, env = build / "client/moectl", {"MOE_SOCKET": f"{d}/rpc", "TERM": "xterm-256color", "LANG": "C.UTF-8", "HOME": d,
                                                "PATH": os.environ["PATH"]}
        service = subprocess.Popen([build / "daemon/moed", "--socket", f"{d}/rpc", "--model", MODEL], stderr=subprocess.DEVNULL)
        try:
            while not os.path.exists(f"{d}/rpc"):
                time.sleep(0.1)
            subprocess.run([moectl, "wait"], env=env, check=True)

            t = Terminal([moectl, "chat", "--temperature", "0"], env)
            for question in "What does grep do?", "How do I list directory contents?", "What is the capital of France?":
                t.show(1.5)
                t.type(question + "\r")
                t.show(3)
            (folder / "chat.svg").write_text(picture(t.screen, "moectl chat"))
            t.end()

            for priority in "interactive", "default", "background":
                threading.Thread(target=work, args=(f"{d}/rpc", priority), daemon=True).start()
            t = Terminal([moectl, "top"], env)
            t.show(3.2)
            (folder / "top.svg").write_text(picture(t.screen, "moectl top"))
            t.end()

            t = Terminal([moectl, "topology"], env)
            t.show(3)
            (folder / "topology.svg").write_text(picture(t.screen, "moectl topology"))
            t.end()
        finally:
            service.terminate()
            service.wait()


if __name__ == "__main__":
    main()
