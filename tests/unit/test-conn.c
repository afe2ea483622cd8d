/* SPDX-License-Identifier: Apache-2.0 */

/* What a connection may do, and what becomes of one that does more; slow readers; hang-ups. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "daemon/stream.h"
#include "tests/unit/fake-engine.h"
#include "tests/unit/rig.h"

enum { N_CONN = 16 /* user-connections */ };

static struct rig rig;
static struct rig_client *client, *other;

static int setup(void **state) {
    const struct config_set set[] = { { "stall-timeout", "1", "test" } };

    rig_init(&rig, set, 1);
    client = rig_connect(&rig);
    other = rig_connect(&rig);
    return 0;
}

static int teardown(void **state) {
    rig_hangup(client);
    rig_hangup(other);
    rig_deinit(&rig);
    return 0;
}

static void has(const char *text, const char *want) {
    assert_non_null(text);
    if (!strstr(text, want))
        fail_msg("'%s' has no '%s'", text, want);
}

/* @frame gets an rpc.error with @name and @message, then the end; nobody else is touched. */
static void refused(const void *frame, size_t n, const char *name, const char *message) {
    char want[256];

    rig_send(client, frame, n);
    (void)snprintf(want, sizeof want, "[2, \"rpc.error\", [{\"code\"=>");
    has(rig_recv(client), want);
    (void)snprintf(want, sizeof want, "\"name\"=>\"%s\", \"message\"=>\"%s", name, message);
    has(client->text, want);
    assert_null(rig_recv(client));
    has(rig_call(other, 1, "server.status", "{}"), "[1, 1, nil, {\"state\"");

    rig_hangup(client);
    client = rig_connect(&rig);
}

static void test_malformed(void **state) {
#define REFUSED(s_) refused(s_, sizeof s_ - 1, "InvalidArgs", "not a msgpack-rpc frame")
    REFUSED("\xc1");
    REFUSED("GET / HTTP/1.1\r\n\r\n");
    REFUSED("\x93\x00\x01\xa1x");                                         /* request of three */
    REFUSED("\x94\x05\x01\xa1x\x91\x80");                                 /* type 5 */
    REFUSED("\x94\x00\xff\xa1x\x91\x80");                                 /* msgid -1 */
    REFUSED("\x94\x00\xcf\x00\x00\x00\x01\x00\x00\x00\x00\xa1x\x91\x80"); /* msgid 2^32 */
    REFUSED("\x94\x00\x01\xa1x\x80");                                     /* params no array */
    REFUSED("\x94\x00\x01\xa1x\x91\x90");                                 /* params no map */
    REFUSED("\x94\x00\x01\xa1\xff\x91\x80");                              /* method no UTF-8 */
    REFUSED("\x94\x00\x01\xc4\x01x\x91\x80");                             /* method no str */
    REFUSED("\x94\x01\x01\xc0\x80");                                      /* a response */
    REFUSED("\x94\x00\x01\xa1x\x91\x81\xa1k\xc7\x01\x00x");               /* an extension type */
}

static void test_limits(void **state) {
    char deep[64] = "\x94\x00\x01\xa1x\x91\x81\xa1k";

    /* Five bytes that make an unprepared decoder allocate 2 GiB. */
    refused("\xdd\x04\x00\x00\x00", 5, "InvalidArgs", "not a msgpack-rpc frame");
    refused("\x94\x00\x01\xa1x\x91\x81\xa1k\xdd\x04\x00\x00\x00", 14, "TooLarge",
            "a frame of more than 65536 elements");
    refused("\x94\x00\x01\xa1x\x91\x81\xa1k\xdb\x7f\xff\xff\xff", 14, "TooLarge",
            "a frame larger than 16777216");
    memset(deep + 9, 0x91, 20);
    refused(deep, 29, "TooLarge", "a frame nested deeper than 16");
}

static void test_large_frame_is_fine(void **state) {
    size_t n = 3 << 20;
    char *params = malloc(n + 64), *p = params;

    p += sprintf(p, "{\"name\": \"");
    memset(p, 'n', n);
    (void)strcpy(p + n, "\"}");
    has(rig_call(client, 1, "client.hello", params), "[1, 1, nil");
    has(rig_call(client, 2, "server.status", "{}"), "[1, 2, nil");
    free(params);
}

static void test_frame_in_pieces(void **state) {
    static const char frames[] = "\x94\x00\x05\xadserver.status\x91\x80"
                                 "\x94\x00\x06\xadserver.status\x91\x80";

    for (size_t i = 0; i < sizeof frames - 1; i++) {
        rig_send(client, frames + i, 1);
        rig_turn(&rig);
    }
    has(rig_recv(client), "[1, 5, nil");
    has(rig_recv(client), "[1, 6, nil");
}

static void test_slow_frame(void **state) {
    usec_t start = clock_usec();

    /* Complete frames do not restart the clock of the one that hangs. */
    rig_send(client, "\x94\x00", 2);
    while (clock_usec() - start < 4 * CLOCK_SECOND) {
        rig_turn(&rig);
        (void)usleep(10000);
    }
    assert_int_equal(rig.server->n_channel, 2);
    has(rig_recv(client),
        "\"name\"=>\"Timeout\", \"message\"=>\"a frame that took longer than 5 s");
    assert_true(clock_usec() - start >= WIRE_FRAME_USEC - 10000);
    assert_null(rig_recv(client));
    has(rig_call(other, 1, "server.status", "{}"), "[1, 1, nil");
}

static void test_outstanding(void **state) {
    for (uint32_t i = 0; i < WIRE_OUTSTANDING_MAX; i++)
        rig_request(client, i, "generate", "{'prompt': 'x'}");
    rig_turn(&rig);
    assert_int_equal(fake.n_job, WIRE_OUTSTANDING_MAX);
    rig_request(client, 64, "server.status", "{}");
    has(rig_recv(client), "\"name\"=>\"QuotaExceeded\", \"message\"=>\"64 open requests");
    assert_null(rig_recv(client));
    for (uint32_t i = 0; i < fake.n_job; i++)
        assert_true(fake.job[i].over); /* and its work ended with it */
}

static void test_msgid_reuse(void **state) {
    rig_request(client, 7, "generate", "{'prompt': 'x'}");
    rig_request(other, 7, "generate", "{'prompt': 'x'}"); /* another connection's 7 */
    rig_turn(&rig);
    assert_int_equal(fake.n_job, 2);
    rig_request(client, 7, "server.status", "{}");
    has(rig_recv(client), "\"name\"=>\"InvalidArgs\", \"message\"=>\"the msgid of a request");
    assert_null(rig_recv(client));
    assert_true(fake.job[0].over);
    assert_false(fake.job[1].over);
}

static void test_connections(void **state) {
    struct rig_client *c[N_CONN - 2], *extra;

    for (int i = 0; i < N_CONN - 2; i++)
        c[i] = rig_connect(&rig);
    has(rig_call(c[N_CONN - 3], 1, "server.status", "{}"), "\"connections\"=>16");
    extra = rig_connect(&rig);
    has(rig_recv(extra), "\"name\"=>\"QuotaExceeded\", \"message\"=>\"the user has too many");
    assert_null(rig_recv(extra));
    rig_hangup(c[0]);
    rig_hangup(extra);
    c[0] = rig_connect(&rig);
    has(rig_call(c[0], 1, "server.status", "{}"), "\"connections\"=>16");
    for (int i = 0; i < N_CONN - 2; i++)
        rig_hangup(c[i]);
}

static void test_hangup(void **state) {
    struct rig_client *c = rig_connect(&rig);

    rig_request(c, 1, "generate", "{'prompt': 'x'}");
    rig_request(c, 2, "tokenize", "{'text': 'x'}");
    rig_request(c, 3, "job.wait", "{'id': 1}");
    rig_turn(&rig);
    assert_int_equal(fake.n_job, 2);
    rig_hangup(c);
    assert_true(fake.job[0].over);
    assert_true(fake.job[1].over);
    assert_int_equal(rig.server->n_channel, 2);
    fake_loaded(); /* nobody waits for it any more */
    rig_turn(&rig);
}

/* ---- slow readers ---- */

enum { PIECE = 1000 };

/* Let the engine say @n pieces of PIECE bytes, as long as it is not paused. */
static int say(struct fake_job *j, int n) {
    char piece[PIECE + 1];
    int i;

    for (i = 0; i < n && !j->paused && !j->over; i++) {
        memset(piece, 'a' + i % 26, PIECE);
        piece[PIECE] = '\0';
        fake_text(j, CHAT_TEXT, piece);
        rig_turn(&rig);
    }

    return i;
}

static void start_stream(void) {
    has(rig_call(client, 1, "model.load", "{}"), "\"job\"");
    fake_loaded();
    rig_request(client, 2, "generate", "{'prompt': 'x', 'stream': true}");
    rig_turn(&rig);
}

static void test_slow_reader(void **state) {
    struct fake_job *j = &fake.job[0];
    size_t total = 0, n_delta = 0, largest = 0;
    int said;

    start_stream();
    said = say(j, 10000);
    assert_true(j->paused);
    /* CONN_HIGH queued, STREAM_HELD_MAX held, and what the socket itself takes. */
    assert_in_range(said * PIECE, STREAM_HELD_MAX + CONN_HIGH / 2,
                    STREAM_HELD_MAX + CONN_HIGH + (512 << 10));
    has(rig_call(other, 1, "server.status", "{}"), "[1, 1, nil"); /* nobody else waits */

    while (total < (size_t)said * PIECE) {
        const char *text = strstr(rig_recv(client), "\"text\"=>\"");
        size_t n;

        has(client->text, "\"generate.delta\"");
        n = strcspn(text + 9, "\"");
        for (size_t i = 0; i < n; i++)
            if (text[9 + i] != 'a' + (char)((total + i) / PIECE % 26))
                fail_msg("byte %zu is %c", total + i, text[9 + i]);
        total += n;
        n_delta++;
        largest = n > largest ? n : largest;
    }
    assert_int_equal(total, (size_t)said * PIECE); /* nothing lost, nothing twice */
    assert_false(j->paused);
    assert_int_equal(j->n_pause, 1);
    assert_true(n_delta < (size_t)said); /* some came joined */
    assert_true(largest >= STREAM_HELD_MAX && largest < STREAM_HELD_MAX + 2 * PIECE);

    (void)say(j, 3);
    fake_end(j, ENGINE_END_STOP);
    for (int i = 0; i < 3; i++)
        has(rig_recv(client), "\"generate.delta\"");
    has(rig_recv(client), "[1, 2, nil, {\"stop_reason\"=>\"stop\"");
}

static void test_end_while_held(void **state) {
    struct fake_job *j = &fake.job[0];
    size_t total = 0;
    int said;

    start_stream();
    said = say(j, 10000);
    fake_end(j, ENGINE_END_LENGTH);
    rig_turn(&rig);
    while (strstr(rig_recv(client), "\"generate.delta\""))
        total += strcspn(strstr(client->text, "\"text\"=>\"") + 9, "\"");
    assert_int_equal(total, (size_t)said * PIECE);
    has(client->text, "[1, 2, nil, {\"stop_reason\"=>\"length\"");
}

static void test_stalled_reader_yields(void **state) {
    struct fake_job *j = &fake.job[0];
    usec_t start = clock_usec();

    start_stream();
    (void)say(j, 10000);
    assert_true(j->paused);
    while (clock_usec() - start < 2 * CLOCK_SECOND) {
        rig_turn(&rig);
        (void)usleep(10000);
    }
    assert_false(j->over); /* nobody waits: it may take its time */
    fake.status.n_queued = 1;
    while (clock_usec() - start < 4 * CLOCK_SECOND && !j->over) {
        rig_turn(&rig);
        (void)usleep(10000);
    }
    assert_true(j->over);
    while (strstr(rig_recv(client), "\"generate.delta\""))
        ;
    has(client->text, "\"name\"=>\"Timeout\", \"message\"=>\"the answer was left unread");
}

static void test_hangup_while_not_read(void **state) {
    struct fake_job *j = &fake.job[0];

    start_stream();
    (void)say(j, 10000);
    assert_true(j->paused);
    rig_hangup(client);
    assert_true(j->over);
    client = rig_connect(&rig);
}

/* A client that asks and never listens: its requests stop being read. */
static void test_requests_are_held_back(void **state) {
    static const char frame[] = "\x94\x00\x05\xabserver.info\x91\x80";
    int sent = 0;

    for (int idle = 0; idle < 100 && sent < 10000;) {
        if (send(client->fd, frame, sizeof frame - 1, MSG_DONTWAIT) == sizeof frame - 1)
            sent++, idle = 0;
        else
            idle++;
        rig_turn(&rig);
    }
    assert_in_range(sent, 100, 9999);
    for (int i = 0; i < sent; i++)
        has(rig_recv(client), "[1, 5, nil, {\"channel\"");
}

/* Send @frame and @n descriptors of @file with it. */
static void give(struct rig_client *c, const char *frame, size_t n_frame, int file, size_t n) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(4 * sizeof(int))];
    } control = { 0 };
    struct iovec from = { (void *)(uintptr_t)frame, n_frame };
    struct msghdr m = { .msg_iov = &from, .msg_iovlen = 1, .msg_control = &control };
    struct cmsghdr *h;

    assert_in_range(n, 1, 4);
    m.msg_controllen = CMSG_SPACE(n * sizeof file);
    h = CMSG_FIRSTHDR(&m);
    h->cmsg_level = SOL_SOCKET;
    h->cmsg_type = SCM_RIGHTS;
    h->cmsg_len = CMSG_LEN(n * sizeof file);
    for (size_t i = 0; i < n; i++)
        (void)memcpy(CMSG_DATA(h) + i * sizeof file, &file, sizeof file);
    assert_int_equal(sendmsg(c->fd, &m, MSG_NOSIGNAL), (ssize_t)n_frame);
    rig_turn(&rig);
}

/* Is the other end of the pipe @end, of which we have none, closed everywhere? */
static bool is_closed(int end) {
    char byte;

    return read(end, &byte, 1) == 0;
}

static void test_descriptors(void **state) {
    static const char status[] = "\x94\x00\x05\xadserver.status\x91\x80",
                      import[] = "\x94\x00\x06\xacmodel.import\x91\x81\xa2id\xa1x";
    int fd[2];

    /* What nobody asked for is closed, and the connection goes on. */
    assert_int_equal(pipe2(fd, O_NONBLOCK | O_CLOEXEC), 0);
    give(client, status, sizeof status - 1, fd[1], 1);
    (void)close(fd[1]);
    has(rig_recv(client), "[1, 5, nil");
    assert_true(is_closed(fd[0]));
    (void)close(fd[0]);

    /* It waits for the rest of its frame; a request before that does not take it. */
    assert_int_equal(pipe2(fd, O_NONBLOCK | O_CLOEXEC), 0);
    rig_send(client, status, sizeof status - 1);
    give(client, import, 10, fd[1], 1);
    (void)close(fd[1]);
    has(rig_recv(client), "[1, 5, nil");
    assert_false(is_closed(fd[0]));
    rig_send(client, import + 10, sizeof import - 1 - 10);
    has(rig_recv(client), "the descriptor is of no regular file open for reading");
    assert_true(is_closed(fd[0]));
    (void)close(fd[0]);

    /* The next request has none. */
    rig_send(client, import, sizeof import - 1);
    has(rig_recv(client), "file: no descriptor came with the request");

    /* A hang-up closes what waits. */
    assert_int_equal(pipe2(fd, O_NONBLOCK | O_CLOEXEC), 0);
    give(client, import, 10, fd[1], 1);
    (void)close(fd[1]);
    rig_hangup(client);
    client = rig_connect(&rig);
    assert_true(is_closed(fd[0]));
    (void)close(fd[0]);
}

static void test_too_many_descriptors(void **state) {
    static const char frame[] = "\x94\x00\x05\xadserver.status\x91\x80";

    for (size_t n = 1; n <= 4; n++) {
        int fd[2];

        assert_int_equal(pipe2(fd, O_NONBLOCK | O_CLOEXEC), 0);
        give(client, frame, 4, fd[1], n);
        if (n == 1)
            give(client, frame + 4, 4, fd[1], 1); /* while the first waits */
        (void)close(fd[1]);
        has(rig_recv(client), "\"name\"=>\"InvalidArgs\", \"message\"=>\"a frame with more");
        assert_null(rig_recv(client));
        assert_true(is_closed(fd[0]));
        (void)close(fd[0]);
        rig_hangup(client);
        client = rig_connect(&rig);
    }
    has(rig_call(other, 1, "server.status", "{}"), "[1, 1, nil");
}

int main(void) {
#define TEST(name_) cmocka_unit_test_setup_teardown(name_, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_malformed),
        TEST(test_limits),
        TEST(test_large_frame_is_fine),
        TEST(test_frame_in_pieces),
        TEST(test_slow_frame),
        TEST(test_outstanding),
        TEST(test_msgid_reuse),
        TEST(test_connections),
        TEST(test_hangup),
        TEST(test_slow_reader),
        TEST(test_end_while_held),
        TEST(test_stalled_reader_yields),
        TEST(test_hangup_while_not_read),
        TEST(test_requests_are_held_back),
        TEST(test_descriptors),
        TEST(test_too_many_descriptors),
    };

    return cmocka_run_group_tests_name("conn", tests, NULL, NULL);
}
