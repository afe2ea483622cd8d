/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A connection in a GLib main loop, as a GTK program has one: the library never waits.
 *
 *   cc -o ask-glib ask-glib.c $(pkg-config --cflags --libs libmoe glib-2.0)
 *   ./ask-glib "What does grep do?"
 */
#include <glib.h>
#include <moe.h>

struct moe_source {
    GSource source;
    struct moe *m;
    gpointer tag;
};

static GMainLoop *loop;
static int failed;

/* Before each poll: what to wait for now, and for how long. */
static gboolean prepare(GSource *source, gint *timeout_ms) {
    struct moe_source *s = (struct moe_source *)source;
    uint64_t usec = moe_timeout(s->m);

    g_source_modify_unix_fd(source, s->tag, (GIOCondition)moe_events(s->m)); /* poll()'s bits */
    *timeout_ms = usec == MOE_FOREVER ? -1 : (gint)MIN((usec + 999) / 1000, G_MAXINT);
    return usec == 0;
}

static gboolean check(GSource *source) {
    struct moe_source *s = (struct moe_source *)source;

    return g_source_query_unix_fd(source, s->tag) || moe_timeout(s->m) == 0;
}

static gboolean dispatch(GSource *source, GSourceFunc callback, gpointer userdata) {
    struct moe_source *s = (struct moe_source *)source;
    int r = moe_process(s->m, (int)g_source_query_unix_fd(source, s->tag));

    (void)callback, (void)userdata;
    return r < 0 ? G_SOURCE_REMOVE : G_SOURCE_CONTINUE; /* each call has had its reply */
}

static GSourceFuncs funcs = { .prepare = prepare, .check = check, .dispatch = dispatch };

static GSource *moe_source_new(struct moe *m) {
    GSource *source = g_source_new(&funcs, sizeof(struct moe_source));
    struct moe_source *s = (struct moe_source *)source;

    s->m = m;
    s->tag = g_source_add_unix_fd(source, moe_fd(m), G_IO_IN);
    return source;
}

static void on_delta(struct moe *m, uint32_t id, const struct moe_delta *d, void *userdata) {
    (void)m, (void)id, (void)userdata;
    if (!d->thought)
        g_print("%.*s", (int)d->n_text, d->text);
}

static void on_done(struct moe *m, uint32_t id, const struct moe_result *result,
                    const struct moe_error *error, void *userdata) {
    (void)m, (void)id, (void)userdata;
    if (result)
        g_print("\n[%" G_GUINT64_FORMAT " tokens, %s]\n", result->n_generated, result->stop_reason);
    else
        g_printerr("%s\n", error->message);
    failed = !result;
    g_main_loop_quit(loop);
}

int main(int argc, char **argv) {
    struct moe_generate g = MOE_GENERATE_INIT;
    struct moe_message question = { "user", argc > 1 ? argv[1] : "What does grep do?" };
    GSource *source;
    struct moe *m;
    int r;

    r = moe_open(&m, NULL);
    if (r < 0) {
        g_printerr("moed cannot be reached: %s\n", g_strerror(-r));
        return 1;
    }
    loop = g_main_loop_new(NULL, FALSE);
    source = moe_source_new(m);
    g_source_attach(source, NULL);

    g.messages = &question;
    g.n_messages = 1;
    g.max_tokens = 256;
    g.on_delta = on_delta;
    r = moe_generate(m, &g, on_done, NULL);
    if (r < 0)
        g_printerr("%s\n", g_strerror(-r));
    else
        g_main_loop_run(loop);

    g_source_destroy(source);
    g_source_unref(source);
    moe_close(m);
    g_main_loop_unref(loop);

    return r < 0 || failed;
}
