# SPDX-License-Identifier: Apache-2.0
"""A message bus of its own with the policy that is installed, a service on it, and callers."""
import json
import os
import pathlib
import pwd
import signal
import subprocess
import sys
import tempfile

import rig

try:
    import dbus
    import dbus.bus
except ImportError:
    print("python3-dbus is missing")
    sys.exit(77)

BUILD = ""  # the build directory, set by main()
NAME = PATH = ""

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
 <type>system</type>
 <listen>unix:path={dir}/bus</listen>
 <auth>EXTERNAL</auth>
 <policy context="default">
  <allow user="*"/>
  <deny own="*"/>
  <deny send_type="method_call"/>
  <allow send_type="signal"/>
  <allow send_requested_reply="true" send_type="method_return"/>
  <allow send_requested_reply="true" send_type="error"/>
  <allow receive_type="method_call"/>
  <allow receive_type="method_return"/>
  <allow receive_type="error"/>
  <allow receive_type="signal"/>
  <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
  <allow send_destination="org.freedesktop.PolicyKit1"/>
 </policy>
 <policy user="{user}"><allow own="org.freedesktop.PolicyKit1"/></policy>
{extra} <include>{dir}/policy.conf</include>
</busconfig>
"""


class Bus:
    """dbus-daemon as a system bus: nobody owns or calls anything that a policy does not allow."""

    def __init__(self, own=()):
        """@own: names of services that a test brings."""
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="moed-bus-"))
        self.dir.chmod(0o755)
        user = pwd.getpwuid(os.geteuid()).pw_name
        policy = (BUILD / f"dbus/{NAME}.conf").read_text()
        (self.dir / "policy.conf").write_text(policy.replace('user="moed"', f'user="{user}"'))
        extra = "".join(f' <policy user="{user}"><allow own="{n}"/><allow send_destination="{n}"/></policy>\n' for n in own)
        (self.dir / "bus.conf").write_text(CONFIG.format(dir=self.dir, user=user, extra=extra))
        self.address = f"unix:path={self.dir}/bus"
        self.procs = []
        self.daemon = self.spawn(["dbus-daemon", f"--config-file={self.dir}/bus.conf", "--nofork", "--nopidfile",
                                  "--nosyslog"], stderr=subprocess.DEVNULL)
        rig.until(lambda: rig.listens(self.dir / "bus"), "no bus")

    def spawn(self, argv, **kw):
        proc = subprocess.Popen([str(a) for a in argv], env={**os.environ, **self.env()}, **kw)
        self.procs.append(proc)
        return proc

    def env(self):
        return {"DBUS_SYSTEM_BUS_ADDRESS": self.address}

    def connect(self):
        return dbus.bus.BusConnection(self.address)

    def has_owner(self, name):
        bus = self.connect()
        try:
            return bus.name_has_owner(name)
        finally:
            bus.close()

    def polkit(self, **rules):
        """A fake authority with these answers; its questions are in self.asked()."""
        self.rules(**rules)
        self.spawn([sys.executable, pathlib.Path(__file__).parent / "fake_polkit.py", self.dir / "rules", self.dir / "asked"])
        rig.until(lambda: self.has_owner("org.freedesktop.PolicyKit1"), "no authority")

    def rules(self, **rules):
        namespace = NAME.rpartition(".")[0]
        (self.dir / "rules").write_text(json.dumps({f"{namespace}.{k.replace('_', '-')}": v for k, v in rules.items()}))

    def asked(self):
        path = self.dir / "asked"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def listen(self):
        """Write down the service's signals from now on. Return: a function, all so far."""
        log = self.dir / f"signals-{len(self.procs)}"

        def signals():
            return [json.loads(line) for line in log.read_text().splitlines(True) if line.endswith("\n")][1:]

        self.spawn([sys.executable, pathlib.Path(__file__).parent / "bus_listen.py", NAME, log])
        rig.until(log.exists, "nobody listens")
        return signals

    def moed(self, config="", **kw):
        service = rig.Moed(config="bus = system\n" + config, env=self.env(), **kw)
        rig.until(lambda: self.has_owner(NAME), "the service has no name")
        return service

    def busctl(self, *args, user=None, timeout=30):
        """What busctl prints as JSON, or raises BusError. @user: a name, when root tests."""
        argv = ["busctl", f"--address={self.address}", "--json=short", f"--timeout={timeout}", *args]
        if user:
            argv = ["setpriv", f"--reuid={user}", "--clear-groups", *argv]
        done = subprocess.run([str(a) for a in argv], capture_output=True, text=True)
        if done.returncode:
            raise BusError(done.stderr.strip())
        return json.loads(done.stdout)["data"] if done.stdout.strip() else None

    def call(self, member, signature="", *args, interface="Manager", path="", **kw):
        extra = ["--allow-interactive-authorization=" + ("yes" if kw.pop("interactive", False) else "no")]
        return self.busctl(*extra, "call", NAME, PATH + path, f"{NAME}.{interface}", member, signature, *args, **kw)

    def get(self, name, interface="Manager", path=""):
        return self.busctl("get-property", NAME, PATH + path, f"{NAME}.{interface}", name)

    def __enter__(self):
        return self

    def __exit__(self, *what):
        for proc in reversed(self.procs):
            proc.send_signal(signal.SIGTERM)
            proc.wait(10)
        subprocess.run(["rm", "-r", self.dir], check=True)


class BusError(Exception):
    pass


def error_of(call, *args):
    """The D-Bus error's name and text that @call raises."""
    try:
        call(*args)
    except dbus.DBusException as e:
        return e.get_dbus_name(), e.get_dbus_message()
    raise AssertionError("no error")


def manager(bus, interface="Manager", path=""):
    return dbus.Interface(bus.get_object(NAME, PATH + path, introspect=False), f"{NAME}.{interface}")


def options(**kw):
    return dbus.Dictionary({k.replace("_", "-"): v for k, v in kw.items()}, signature="sv")


def main(unittest):
    """test-NAME.py MOED BUILD BUS_NAME [unittest arguments]"""
    global BUILD, NAME, PATH
    BUILD, NAME = pathlib.Path(os.path.abspath(sys.argv.pop(2))), sys.argv.pop(2)
    PATH = "/" + NAME.replace(".", "/")
    rig.main(unittest)
