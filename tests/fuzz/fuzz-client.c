/* SPDX-License-Identifier: Apache-2.0 */

/* Any bytes as a service's side of a connection: libmoe takes them or hangs up, answers each call
 * exactly once, and everything it hands out can be read to its end. */

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/moe.h"
#include "tests/fuzz/fuzz.h"

enum { N_CALL = 3, INPUT_MAX = 64 << 10 /* what a socket takes at once */ };

static int n_answer;
static size_t n_read; /* so that every read is a real one */

static void read_value(const struct moe_value *v) {
    n_read += (size_t)moe_int(v) + (size_t)moe_uint(v) + moe_bool(v) + (moe_float(v) > 0);
    if (moe_type(v) == MOE_STR) {
        FUZZ_CHECK(moe_str(v)[moe_size(v)] == 0);
        n_read += strlen(moe_str(v));
    }
    if (moe_type(v) == MOE_BIN && moe_size(v))
        n_read += ((const uint8_t *)moe_bin(v))[moe_size(v) - 1];
    if (moe_type(v) != MOE_ARRAY && moe_type(v) != MOE_MAP)
        return;
    for (size_t i = 0; i < moe_size(v); i++) {
        read_value(moe_at(v, i));
        read_value(moe_key_at(v, i));
    }
    FUZZ_CHECK(!moe_at(v, moe_size(v)) && !moe_key_at(v, moe_size(v)));
}

static void read_error(const struct moe_error *e) {
    FUZZ_CHECK(e->code);
    n_read += strlen(e->name) + strlen(e->message);
    read_value(e->data);
}

static void on_reply(struct moe *m, uint32_t id, const struct moe_value *result,
                     const struct moe_error *error, void *userdata) {
    (void)m;
    (void)id;
    (void)userdata;
    FUZZ_CHECK(!result != !error);
    n_answer++;
    if (error)
        read_error(error);
    read_value(result);
}

static void on_notify(struct moe *m, const char *method, const struct moe_value *params,
                      void *userdata) {
    (void)m;
    (void)userdata;
    n_read += strlen(method);
    read_value(params);
}

static void on_delta(struct moe *m, uint32_t id, const struct moe_delta *d, void *userdata) {
    (void)userdata;
    FUZZ_CHECK(d->text[d->n_text] == 0);
    n_read += strlen(d->text);
    read_value(d->logprobs);
    FUZZ_CHECK(moe_cancel(m, id) == 0);
}

static void on_progress(struct moe *m, uint32_t id, const char *stage, uint64_t done,
                        uint64_t total, void *userdata) {
    (void)m;
    (void)userdata;
    n_read += strlen(stage) + (size_t)done + (size_t)total + id;
}

static void on_done(struct moe *m, uint32_t id, const struct moe_result *result,
                    const struct moe_error *error, void *userdata) {
    (void)m;
    (void)id;
    (void)userdata;
    FUZZ_CHECK(!result != !error);
    n_answer++;
    if (error)
        read_error(error);
    else
        n_read += strlen(result->stop_reason) + strlen(result->model) + result->n_text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct moe_generate g = MOE_GENERATE_INIT;
    const struct moe_value *v;
    size_t half = size / 2;
    struct moe *m;
    int fds[2];

    if (size > INPUT_MAX || socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0 ||
        moe_open_fd(&m, fds[0]) < 0)
        return 0;
    n_answer = 0;
    moe_set_notify(m, on_notify, NULL);
    g.prompt = "p";
    g.on_delta = on_delta;
    g.on_progress = on_progress;
    FUZZ_CHECK(moe_call(m, "a", NULL, on_reply, NULL, NULL, NULL) == 0);
    FUZZ_CHECK(moe_generate(m, &g, on_done, NULL) == 0);
    FUZZ_CHECK(moe_call(m, "c", NULL, on_reply, on_notify, NULL, NULL) == 0);

    /* The first half comes by itself; the second is there when a waiting call asks. */
    FUZZ_CHECK(write(fds[1], data, half) == (ssize_t)half);
    (void)moe_process(m, 0);
    FUZZ_CHECK(write(fds[1], data + half, size - half) == (ssize_t)(size - half));
    (void)shutdown(fds[1], SHUT_WR);
    if (moe_call_wait(m, "d", NULL, MOE_FOREVER, &v) == 0)
        read_value(v);
    else if (moe_last_error(m))
        read_error(moe_last_error(m));
    moe_close(m);
    FUZZ_CHECK(n_answer == N_CALL);
    (void)close(fds[1]);

    return 0;
}
