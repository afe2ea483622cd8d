# SPDX-License-Identifier: Apache-2.0
"""Write down what a service says on the bus at DBUS_SYSTEM_BUS_ADDRESS.

bus_listen.py NAME LOG

Each signal is a line of LOG: a JSON array of path, interface, member and arguments. The first line,
"[]", says that it listens.
"""
import json
import sys

import dbus
import dbus.mainloop.glib
from gi.repository import GLib


def plain(v):
    """A D-Bus value as JSON has it."""
    if isinstance(v, dict):
        return {str(k): plain(x) for k, x in v.items()}
    if isinstance(v, (list, tuple)):
        return [plain(x) for x in v]
    if isinstance(v, dbus.Boolean):
        return bool(v)
    return str(v) if isinstance(v, str) else float(v) if isinstance(v, float) else int(v)


def write(what):
    with open(sys.argv[2], "a") as log:
        print(json.dumps(what), file=log)


def on_signal(*args, path, interface, member):
    write([str(path), str(interface), str(member), plain(args)])


dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
bus = dbus.SystemBus()
bus.add_signal_receiver(on_signal, bus_name=sys.argv[1], path_keyword="path", interface_keyword="interface",
                        member_keyword="member")
bus.get_name_owner("org.freedesktop.DBus")  # an answer: the match before it is made
write([])
GLib.MainLoop().run()
