/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * moectl - what the sources of the command share
 *
 * Rules: stdout carries what was asked for and nothing else; everything for people who watch goes
 * to stderr. Progress and thoughts are only for a terminal. Nothing but moe.h talks to the service.
 */

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "client/moe-session.h"
#include "client/moe.h"

enum ctl_exit {
    EXIT_OK,
    EXIT_FAILED,
    EXIT_USAGE,
    EXIT_UNREACHABLE,
    EXIT_NO_MODEL,
    EXIT_LIMIT, /* length or deadline: the output is a prefix */
    EXIT_DENIED,
    EXIT_BUSY,
    EXIT_SCHEMA,
    EXIT_INTERRUPTED = 130,
};

enum ctl_json { JSON_OFF, JSON_SHORT, JSON_PRETTY };

enum {
    CTL_LIST_MAX = 64,    /* -f and --stop, each */
    CTL_CHOICE_MAX = 256, /* what the service takes */
};

struct ctl {
    const char *socket; /* --socket, or NULL */
    enum ctl_json json;
    bool quiet, raw, no_stream, no_wait, tensors, special, bos;
    bool save, all, saved;                  /* --save; of sessions */
    const char *system, *resume, *overflow; /* --resume: a token */
    uint64_t deadline_usec;                 /* MOE_FOREVER: none */
    uint64_t seed, count, streams;          /* top, bench: how often; at a time; 0: nothing said */
    const char *language, *svg;
    const char *mode, *digest, *license; /* import */
    const char *files[CTL_LIST_MAX], *stop[CTL_LIST_MAX], *choices[CTL_CHOICE_MAX];
    size_t n_files, n_stop, n_choices;
    struct moe_generate generate; /* as the options say */
    char **args;                  /* [n_args], after the verb */
    size_t n_args;

    bool out_tty, err_tty, colour;
    struct { /* of ctl_progress(): what began when, and where */
        bool shown;
        char stage[24];
        uint64_t began, from;
    } progress;
    struct moe *m;
};

/* Bytes that grow; always followed by a NUL once there are any. */
struct ctl_text {
    char *p;
    size_t n, size;
};

/* What an answer took; .model is "" when there was none. */
struct ctl_usage {
    uint64_t n_prompt, n_cached, n_generated, decode_usec;
    char model[64];
};

/* One answer on its way to the terminal; .c is to be set, .text.p to be freed. */
struct ctl_answer {
    struct ctl *c;
    struct ctl_text text; /* what was streamed; kept for the conversation */
    bool thinking;        /* the last piece was a thought */
    bool done;
    bool lost;          /* there is no such session; nobody was told */
    int code;           /* to exit with */
    char last;          /* byte of the output */
    uint64_t n_dropped; /* messages the session went without */
    struct ctl_usage usage;
};

/* Set by SIGINT, which is blocked outside of ctl_poll() and the *_wait() functions. */
extern volatile int ctl_interrupted;

typedef int ctl_verb(struct ctl *c); /* Return: an exit code */

/* moectl-options.c: the command line. Return: 0 with @ret_run; -1: all is done; EXIT_USAGE after a
 * complaint. */
int ctl_parse(struct ctl *c, int argc, char **argv, ctl_verb **ret_run);

/* moectl.c */
int ctl_complain(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int ctl_complain_error(const struct moe_error *e); /* also picks the exit code */
int ctl_complain_errno(struct ctl *c, int r); /* of a library call; -EREMOTEIO: the last error */
int ctl_connect(struct ctl *c);               /* 0, or an exit code after a complaint */
/* moe_call_wait(), which Ctrl-C ends with -EINTR. */
int ctl_try(struct ctl *c, const char *method, const struct moe_map *params, uint64_t usec,
            const struct moe_value **ret_result);
/* The same, and a complaint when it fails. Return: an exit code. */
int ctl_call(struct ctl *c, const char *method, const struct moe_map *params, uint64_t usec,
             const struct moe_value **ret_result);
/* The same with @params, which are freed; NULL: there was no memory for them. */
int ctl_call_with(struct ctl *c, const char *method, struct moe_map *params, uint64_t usec,
                  const struct moe_value **ret_result);
/* Connect, and call without params a method whose whole result is the output. Return: -1 when it is
 * still to be printed for people, or an exit code. */
int ctl_look(struct ctl *c, const char *method, uint64_t usec, const struct moe_value **ret_result);
/* Wait for the service, or for @fd (-1: none) to be readable, at most @usec. Return: 0, an event
 * was processed; 1: @fd is readable; 2: interrupted; 3: @usec passed; or -errno. */
int ctl_poll(struct ctl *c, int fd, uint64_t usec);

/* moectl-out.c */
/* A bar and, after a moment, the rate in @unit and the time that is left; on a terminal only. */
enum ctl_unit { CTL_BYTES, CTL_TOKENS, CTL_PARTS /* of which no rate is told */ };
void ctl_progress(struct ctl *c, const char *stage, enum ctl_unit unit, uint64_t done,
                  uint64_t total);
void ctl_progress_clear(struct ctl *c);
/* To a terminal control characters do not go: a model must not drive it. */
void ctl_put(FILE *file, bool tty, const char *s, size_t n);
void ctl_puts(const struct ctl *c, const char *s); /* the same, of a NUL-terminated one to stdout */
json_object *ctl_to_json(const struct moe_value *v);
void ctl_put_json(const struct ctl *c, const struct moe_value *v);
void ctl_put_object(const struct ctl *c, json_object *o); /* takes @o */
/* A member of a map; "" or 0 when it is not there. */
const char *ctl_str(const struct moe_value *map, const char *key);
uint64_t ctl_uint(const struct moe_value *map, const char *key);
/* "13.4 GiB", "3 min 20 s"; static storage, two calls' results at once. */
const char *ctl_bytes(uint64_t n);
const char *ctl_span(uint64_t usec);
/* Send stdout on its way. Return: 0, or the errno of the first failure; from then on the output is
 * lost, and whoever makes more of it may stop. */
int ctl_flush(void);

/* moectl-text.c: input */
int ctl_text_add(struct ctl_text *t, const char *s, size_t n); /* 0 or -errno; 16 MiB at most */
/* The arguments from @first on, as words, then each -f, then what is piped, joined by empty lines;
 * "-" is stdin alone. Return: 0, or an exit code after a complaint. */
int ctl_read_input(struct ctl *c, size_t first, struct ctl_text *ret);
int ctl_read_prompt(struct ctl *c, size_t first, struct ctl_text *ret); /* no NUL is in it */
/* moectl-show.c: show how far a job is until it has ended. @done: what the model then is, "loaded".
 * Return: an exit code, after a complaint when it failed. */
int ctl_wait_for_job(struct ctl *c, uint64_t job, const char *done);

int ctl_add_file(struct ctl_text *t, const char *path); /* what is in it, behind an empty line */
/* A line of stdin without its end, after @prompt when it is a terminal; answers the service
 * meanwhile. Return: 0; 1: the end; 2: interrupted; -errno. */
int ctl_read_typed(struct ctl *c, const char *prompt, struct ctl_text *ret);

/* moectl-run.c: ask what c->generate says, of a session or (NULL) of none, and show the answer as
 * it comes. Ctrl-C stops the answer. Return: an exit code. */
int ctl_ask(struct ctl_answer *a, const uint64_t *session);

ctl_verb verb_api_info, verb_ask, verb_bench, verb_call, verb_chat, verb_classify, verb_doctor,
    verb_forget, verb_import, verb_kill, verb_list, verb_load, verb_metrics, verb_monitor, verb_pin,
    verb_rephrase, verb_run, verb_score, verb_sessions, verb_show, verb_status, verb_summarize,
    verb_tokenize, verb_top, verb_topology, verb_translate, verb_unload, verb_unpin, verb_use_case,
    verb_verify, verb_wait;
