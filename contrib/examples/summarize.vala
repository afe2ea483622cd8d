/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A desktop program in Vala: is there a model for this, and what does it say? Over D-Bus, which
 * starts the service; without any library of ours.
 *
 *   valac --pkg gio-2.0 -o summarize summarize.vala
 *   ./summarize "The committee met for three hours and agreed on nothing."
 */
[DBus (name = "io.github.moed.Moed1.Manager")]
interface Manager : Object {
    public abstract async void get_availability (string use_case, HashTable<string, Variant> requirements,
        out uint state, out HashTable<string, Variant> details) throws Error;
    public abstract async void respond (string prompt, HashTable<string, Variant> options,
        out string text, out HashTable<string, Variant> info) throws Error;
}

const string USE_CASE = "language.summarize";
const string[] STATES = { "unknown", "unavailable", "not loaded", "loading", "available", "busy", "denied" };

async void summarize (string text) throws Error {
    Manager moed = yield Bus.get_proxy (BusType.SYSTEM, "io.github.moed.Moed1", "/io/github/moed/Moed1");
    ((DBusProxy) moed).set_default_timeout (10 * 60 * 1000); // an answer takes as long as it takes

    var options = new HashTable<string, Variant> (str_hash, str_equal);
    HashTable<string, Variant> info;
    uint state;
    yield moed.get_availability (USE_CASE, options, out state, out info);
    stderr.printf ("%s: %s\n", USE_CASE, STATES[state]);

    options["use-case"] = USE_CASE;
    options["max-tokens"] = (uint32) 100;
    string summary;
    yield moed.respond (text, options, out summary, out info);
    stdout.printf ("%s\n", summary);
    stderr.printf ("%u tokens, %s\n", info["generated-tokens"].get_uint32 (), info["stop-reason"].get_string ());
}

int main (string[] args) {
    var loop = new MainLoop ();
    var status = 0;

    summarize.begin (args[1] ?? "", (object, result) => {
        try {
            summarize.end (result);
        } catch (Error e) {
            DBusError.strip_remote_error (e);
            stderr.printf ("%s\n", e.message);
            status = 1;
        }
        loop.quit ();
    });
    loop.run ();
    return status;
}
