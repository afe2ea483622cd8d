# SPDX-License-Identifier: Apache-2.0
"""Shares of two users by the clock, with the weights that systemd gives their control groups."""
import os
import sys
import time
import unittest

from rig import Client, LONG, until
from systemd_rig import SOCKET, Service, run

SECONDS = 60
USERS = 1001, 1002


def stream(uid, n):
    """A client of @uid, which may be nobody's, with @n answers under way all the time until somebody ends it."""
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    params = {"prompt": "once", "max_tokens": 400, "logit_bias": LONG["logit_bias"]}
    with Client(SOCKET) as c:
        for _ in range(n):
            c.send("generate", **params)
        while True:
            kind, _, error, *_ = c.frame()
            if kind == 1 and error:
                sys.exit(str(error))
            if kind == 1:
                c.send("generate", **params)


class Shares(Service):
    config = "threads = 1\nsequences = 16\n"

    def done(self, c, uid):
        """Tokens of answers of @uid that are over."""
        row = f'moed_tokens_total{{uid="{uid}",'
        return sum(int(line.split()[-1]) for line in c.call("server.metrics")["text"].splitlines()
                   if line.startswith(row) and 'kind="generated"' in line)

    def tokens(self, c):
        """Tokens generated so far, of each user, at one moment: no answer ends while they are counted."""
        while True:
            before = [self.done(c, u) for u in USERS]
            jobs = c.call("job.list")["jobs"]
            if before == [self.done(c, u) for u in USERS]:
                return [n + sum(j["generated"] for j in jobs if j["uid"] == u) for u, n in zip(USERS, before)]

    def share(self, streams, weights):
        """Percent of the tokens that the first user gets."""
        c = self.loaded()
        for uid, n, weight in zip(USERS, streams, weights):
            unit = f"moed-test-{uid}.service"
            run("systemd-run", "-q", "--collect", f"--unit={unit}", f"-pCPUWeight={weight}", sys.executable, __file__, str(uid), str(n))
            self.addCleanup(run, "systemctl", "stop", unit, check=False)
        until(lambda: all(self.tokens(c)), "nothing is generated")
        began = self.tokens(c)
        time.sleep(SECONDS)
        a, b = (now - then for now, then in zip(self.tokens(c), began))
        units = {(j["uid"], j["unit"]) for j in c.call("job.list")["jobs"]}
        self.assertEqual(units, {(u, f"moed-test-{u}.service") for u in USERS})
        percent = 100 * a / (a + b)
        print(f"{streams} streams of weights {weights}, {SECONDS} s: {a} and {b} tokens, {percent:.1f} %", flush=True)
        self.assertGreater(a + b, 1000)
        return percent

    def test_one_and_fifteen(self):
        self.assertAlmostEqual(self.share((1, 15), (100, 100)), 50, delta=5)

    def test_weights(self):
        self.assertAlmostEqual(self.share((8, 8), (300, 100)), 75, delta=5)


if __name__ == "__main__":
    stream(*map(int, sys.argv[1:]))
