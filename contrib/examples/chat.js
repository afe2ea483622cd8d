#!/usr/bin/env -S gjs -m
// SPDX-License-Identifier: Apache-2.0
//
// A conversation over D-Bus in JavaScript, as an extension of GNOME Shell would have it: each argument
// is a question, and the session remembers.
//
//   gjs -m chat.js "What does grep do?" "What does tar do?"
import Gio from 'gi://Gio';
import GLib from 'gi://GLib';
import System from 'system';

const NAME = 'io.github.moed.Moed1', PATH = '/io/github/moed/Moed1';
const LONG = 10 * 60 * 1000; // ms: an answer takes as long as it takes

// The values and the descriptors that a method returns.
function call(path, face, member, signature, ...args) {
    return new Promise((resolve, reject) => {
        Gio.DBus.system.call_with_unix_fd_list(NAME, path, `${NAME}.${face}`, member,
            new GLib.Variant(signature, args), null, Gio.DBusCallFlags.NONE, LONG, null, null, (bus, result) => {
                try {
                    const [values, fds] = bus.call_with_unix_fd_list_finish(result);
                    resolve([values.recursiveUnpack(), fds]);
                } catch (e) {
                    Gio.DBusError.strip_remote_error(e);
                    reject(e);
                }
            });
    });
}

async function chat(questions) {
    const options = {instructions: new GLib.Variant('s', 'Answer in one sentence.')};
    const [[session], connection] = await call(PATH, 'Manager', 'OpenSession', '(a{sv})', options);
    for (const question of questions) {
        const [[text, info]] = await call(session, 'Session', 'Respond', '(sa{sv})', question,
            {'max-tokens': new GLib.Variant('u', 100)});
        print(`> ${question}\n${text}`);
        printerr(`${info['generated-tokens']} tokens; of the prompt's ${info['prompt-tokens']}, ` +
            `${info['cached-tokens']} were known`);
    }
    await call(session, 'Session', 'Close', '()');
    connection.close; // until here it is referred to, and open: the session lives as long
}

const loop = GLib.MainLoop.new(null, false);
let status = 0;
chat(ARGV).catch(e => {
    printerr(e.message);
    status = 1;
}).finally(() => loop.quit());
loop.run();
System.exit(status);
