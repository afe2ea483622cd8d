#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Completions of moectl in bash, zsh and fish, as far as these are there: test-completion.py MOECTL FOLDER

systemctl and moectl are scripts that note how they are called: what is offered while the service does
not run must not start it.
"""
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

MOECTL, FOLDER = os.path.abspath(sys.argv.pop(1)), pathlib.Path(sys.argv.pop(1)).absolute()
SCRIPT = """#!/bin/sh
echo "$*" >>"$CALLS"
case $1 in
list) printf 'alpha one  loaded  1.0 GiB  /m/a.gguf\\nbeta       available  2.0 GiB  /m/b.gguf\\n' ;;
top) printf 'moed 1\\n\\n    JOB USER\\n     12 root\\n    345 root\\n' ;;
api-info) printf 'moed 0.1.0\\n\\nserver.info {}\\n    -> {}\\nmodel.show {id: str?}\\n' ;;
*) exec "$REAL" "$@" ;;
esac
"""
ZSH = """
compadd() { while [[ $1 == -* ]]; do [[ $1 == -a ]] && { print -rl -- ${(P)2}; return }; [[ $1 == -P ]] && shift; shift; done; print -rl -- $@ }
_describe() { print -rl -- ${(P)2} }
_files() { print FILES }
words=("$@") CURRENT=$#
set --
source $COMPLETION
true
"""
BASH = """
source "$COMPLETION"
compopt() { :; }
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_moectl
((${#COMPREPLY[@]})) && printf '%s\\n' "${COMPREPLY[@]}"
exit 0
"""


class Shell:
    active = False

    def setUp(self):
        if not shutil.which(self.shell):
            self.skipTest(f"no {self.shell}")
        tmp = tempfile.TemporaryDirectory()
        self.addCleanup(tmp.cleanup)
        self.dir = pathlib.Path(tmp.name)
        for name in "a.gguf", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf", "mmproj-a.gguf", "note.txt":
            (self.dir / name).touch()
        for name, text in ("moectl", SCRIPT), ("systemctl", "#!/bin/sh\nexit $INACTIVE\n"):
            (self.dir / name).write_text(text)
            (self.dir / name).chmod(0o755)

    def offers(self, *words, active=False):
        calls = self.dir / "calls"
        calls.write_text("")
        env = dict(os.environ, PATH=f"{self.dir}:{os.environ['PATH']}", INACTIVE="0" if active else "3", CALLS=str(calls), REAL=MOECTL,
                   COMPLETION=str(FOLDER / self.file), MOECTL_MODELS=str(self.dir), HOME=str(self.dir), XDG_CONFIG_HOME=str(self.dir),
                   LC_ALL="C.UTF-8")
        run = subprocess.run(self.command(words), env=env, cwd=self.dir, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        if not active:
            self.assertEqual(set(calls.read_text().splitlines()) - {"--help"}, set(), "the service was started")
        return run.stdout.splitlines()

    def names(self, *words, **kw):
        """Without descriptions and the quotes of a shell."""
        return sorted(line.split(self.tab)[0].replace("\\", "") for line in self.offers(*words, **kw))

    def test_commands(self):
        said = subprocess.run([MOECTL, "--help"], capture_output=True, text=True, check=True).stdout
        verbs = sorted(line.split()[0] for line in said.splitlines() if line[:2] == "  " and line[2:3].isalpha())
        self.assertGreater(len(verbs), 20)
        self.assertEqual(self.names("moectl", ""), verbs)

    def test_options(self):
        got = self.names("moectl", "run", "--max")
        self.assertEqual([g for g in got if g.startswith("--max")], ["--max-tokens"])
        self.assertLessEqual({"pretty", "short", "off"}, {g.removeprefix("--json=") for g in self.names(*self.json)})
        self.assertEqual(self.names("moectl", "run", "--priority", ""), ["background", "default", "interactive"])

    def test_models(self):
        for words in (["show", ""], ["--json", "load", ""], ["run", "--model", ""]):
            self.assertEqual(self.names("moectl", *words), ["a", "big"])
            self.assertEqual(self.names("moectl", *words, active=True), ["alpha one", "beta"])
        self.assertEqual(self.names("moectl", "show", "be", active=True)[-1], "beta")

    def test_numbers_and_methods(self):
        self.assertEqual(self.names("moectl", "kill", ""), [])
        self.assertEqual(self.names("moectl", "kill", "", active=True), ["12", "345"])
        self.assertEqual(self.names("moectl", "call", "", active=True), ["model.show", "server.info"])


class Bash(Shell, unittest.TestCase):
    shell, file, tab, json = "bash", "moectl.bash", "\0", ("moectl", "--json", "=", "")

    def command(self, words):
        return ["bash", "--norc", "-uc", BASH, "bash", *words]


class Zsh(Shell, unittest.TestCase):
    shell, file, tab, json = "zsh", "_moectl", ":", ("moectl", "--json=")

    def command(self, words):
        return ["zsh", "-fc", ZSH, "zsh", *words]

    def test_syntax(self):
        subprocess.run(["zsh", "-n", FOLDER / self.file], check=True)


class Fish(Shell, unittest.TestCase):
    shell, file, tab, json = "fish", "moectl.fish", "\t", ("moectl", "--json=")

    def command(self, words):
        return ["fish", "--no-config", "-c", f"source \"$COMPLETION\"; complete -C \"{' '.join(words)}\""]

    def test_syntax(self):
        subprocess.run(["fish", "--no-execute", FOLDER / self.file], check=True)


if __name__ == "__main__":
    unittest.main(verbosity=2)
