# SPDX-License-Identifier: Apache-2.0
"""An authority that answers as it is told, on the bus at DBUS_SYSTEM_BUS_ADDRESS.

fake_polkit.py RULES LOG

RULES is a JSON file {action: [authorized, challenge]}, read at every question; with a third element
it waits that many seconds. Each question is a line of LOG: the action, its flags, the caller.
"""
import json
import sys
import time

import dbus
import dbus.mainloop.glib
import dbus.service
from gi.repository import GLib

NAME = "org.freedesktop.PolicyKit1"


class Authority(dbus.service.Object):
    @dbus.service.method(NAME + ".Authority", "(sa{sv})sa{ss}us", "(bba{ss})")
    def CheckAuthorization(self, subject, action, details, flags, cancellation):
        with open(sys.argv[2], "a") as log:
            print(action, int(flags), subject[1]["name"], file=log)
        with open(sys.argv[1]) as rules:
            authorized, challenge, *wait = json.load(rules).get(action, [False, False])
        time.sleep(sum(wait))
        return bool(authorized), bool(challenge), {}


dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
bus = dbus.SystemBus()
authority = Authority(bus, "/org/freedesktop/PolicyKit1/Authority")
name = dbus.service.BusName(NAME, bus)
GLib.MainLoop().run()
