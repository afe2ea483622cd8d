# SPDX-License-Identifier: Apache-2.0
"""Instructions that all users share, from the folder where packages put them, as the unit's sandbox shows it."""
import pathlib
import shutil

from rig import until
from systemd_rig import Service, run

FOLDER = pathlib.Path("/usr/share/moed/prefixes.d")


class Prefixes(Service):
    def setUp(self):
        FOLDER.mkdir(parents=True)
        self.addCleanup(shutil.rmtree, FOLDER)
        self.put("tools")
        super().setUp()

    def put(self, name):
        (FOLDER / f"{name}.txt").write_text(f"You answer questions about the {name} of this machine, and nothing else.")

    def public(self, c, n):
        until(lambda: c.call("server.status")["prefixes"]["public"] == n, f"not {n} public ones", 30)

    def test_default_folder(self):
        c = self.loaded()
        self.public(c, 1)
        self.put("files")
        run("systemctl", "reload", "moed.service")
        self.public(c, 2)
