/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/keyvalq_struct.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "client/openai/bridge.h"

enum {
    BODY_MAX = 16 << 20, /* as a frame of the service's */
    HEAD_MAX = 64 << 10,
    OTHER_METHODS = EVHTTP_REQ_PUT | EVHTTP_REQ_DELETE | EVHTTP_REQ_OPTIONS | EVHTTP_REQ_PATCH,
};

#define REFUSE(f, status, code, ...)                                                               \
    fault_set(f, status, "invalid_request_error", code, NULL, __VA_ARGS__)

/* ---- sending ---- */

void http_set_limits(struct evhttp_request *req, int read_sec, int write_sec) {
    struct bufferevent *bev = evhttp_connection_get_bufferevent(evhttp_request_get_connection(req));
    struct timeval r = { .tv_sec = read_sec }, w = { .tv_sec = write_sec };

    (void)bufferevent_set_timeouts(bev, read_sec ? &r : NULL, write_sec ? &w : NULL);
}

static void send_bytes(struct evhttp_request *req, int status, const char *type, const void *p,
                       size_t n) {
    struct evkeyvalq *head = evhttp_request_get_output_headers(req);

    (void)evhttp_add_header(head, "Content-Type", type);
    (void)evhttp_add_header(head, "X-Content-Type-Options", "nosniff");
    (void)evbuffer_add(evhttp_request_get_output_buffer(req), p, n);
    evhttp_send_reply(req, status, NULL, NULL);
}

void http_send(struct evhttp_request *req, int status, json_object *o) {
    size_t n;
    const char *s = json_object_to_json_string_length(
        o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &n);

    send_bytes(req, status, "application/json", s ? s : "", s ? n : 0);
    (void)json_object_put(o);
}

void http_send_fault(struct evhttp_request *req, const struct fault *f) {
    char seconds[24];

    if (f->retry_after_ms) {
        (void)snprintf(seconds, sizeof seconds, "%jd", (intmax_t)(f->retry_after_ms + 999) / 1000);
        (void)evhttp_add_header(evhttp_request_get_output_headers(req), "Retry-After", seconds);
    }
    if (f->status == 401)
        (void)evhttp_add_header(evhttp_request_get_output_headers(req), "WWW-Authenticate",
                                "Bearer");
    http_send(req, f->status, reply_error(f));
}

/* ---- who may ask ---- */

/* Is @host, "NAME[:PORT]", a name of this machine? A page that had its name lead here has not. */
static bool is_local(const char *host) {
    static const char *const names[] = { "localhost", "127.0.0.1", "[::1]" };

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t n = strlen(names[i]);

        if (strncasecmp(host, names[i], n) == 0 && (!host[n] || host[n] == ':'))
            return true;
    }
    return false;
}

/* As long as @want is, whatever @s is. */
static bool is_same(const char *s, const char *want) {
    size_t n = strlen(s), n_want = strlen(want);
    unsigned char diff = n != n_want;

    for (size_t i = 0; i < n_want; i++)
        diff |= (unsigned char)((i < n ? s[i] : 0) ^ want[i]);
    return !diff;
}

/* Pages of other origins are kept out; so is who does not know the token. */
static int check_caller(const struct bridge *b, struct evhttp_request *req, bool open,
                        struct fault *f) {
    struct evkeyvalq *head = evhttp_request_get_input_headers(req);
    const char *host = evhttp_find_header(head, "Host"),
               *origin = evhttp_find_header(head, "Origin");
    const char *said = evhttp_find_header(head, "Authorization");

    if (!host || !is_local(host))
        return REFUSE(f, 403, "bad_host",
                      "the Host header is to be a name of this machine, as localhost");
    if (origin && (strncmp(origin, "http://", 7) != 0 || strcasecmp(origin + 7, host) != 0))
        return REFUSE(f, 403, "bad_origin", "pages of other origins may not ask");
    if (!b->token || open)
        return 0;
    if (!said || strncasecmp(said, "Bearer ", 7) != 0 || !is_same(said + 7, b->token))
        return fault_set(f, 401, "authentication_error", "invalid_api_key", NULL,
                         "the Authorization header is to be \"Bearer\" and this service's token");
    return 0;
}

/* ---- what is asked ---- */

static int read_body(struct evhttp_request *req, json_object **ret_body, struct fault *f) {
    struct evbuffer *in = evhttp_request_get_input_buffer(req);
    const char *type = evhttp_find_header(evhttp_request_get_input_headers(req), "Content-Type");
    size_t n = evbuffer_get_length(in);
    enum json_tokener_error e;
    json_tokener *t;
    json_object *o;
    size_t used;

    /* Any other type a page of another origin could send without being asked. */
    if (!type || strncasecmp(type, "application/json", 16) != 0 ||
        (type[16] && !strchr("; \t", type[16])))
        return REFUSE(f, 415, "bad_content_type",
                      "the Content-Type header is to be application/json");
    t = json_tokener_new();
    if (!t)
        return fault_set(f, 500, "server_error", NULL, NULL, "out of memory");
    json_tokener_set_flags(t, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    o = n ? json_tokener_parse_ex(t, (const char *)evbuffer_pullup(in, -1), (int)n) : NULL;
    e = json_tokener_get_error(t);
    used = json_tokener_get_parse_end(t);
    json_tokener_free(t);
    if (!n || e == json_tokener_continue)
        return REFUSE(f, 400, "bad_json", "the body is no whole JSON document");
    if (e != json_tokener_success)
        return REFUSE(f, 400, "bad_json", "the body is no JSON: byte %zu: %s", used,
                      json_tokener_error_desc(e));
    *ret_body = o;
    return 0;
}

static int answer(struct bridge *b, struct evhttp_request *req, bool chat, struct fault *f) {
    json_object *body = NULL;
    int r;

    r = read_body(req, &body, f);
    if (!r)
        r = ask_start(b, req, body, chat, f);
    (void)json_object_put(body);
    return r;
}

/* Each answers @req, now or later, and returns 0; or returns a status with @f. */
static int on_page(struct bridge *b, struct evhttp_request *req, const char *rest,
                   struct fault *f) {
    struct evkeyvalq *head = evhttp_request_get_output_headers(req);

    (void)evhttp_add_header(
        head, "Content-Security-Policy",
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "connect-src 'self'; form-action 'none'; frame-ancestors 'none'");
    (void)evhttp_add_header(head, "Referrer-Policy", "no-referrer");
    send_bytes(req, 200, "text/html; charset=utf-8", http_page, http_page_size);
    return 0;
}

static int on_health(struct bridge *b, struct evhttp_request *req, const char *rest,
                     struct fault *f) {
    return ask_call(b, req, "server.status", NULL, reply_health, f);
}

static int on_models(struct bridge *b, struct evhttp_request *req, const char *rest,
                     struct fault *f) {
    return ask_call(b, req, "model.list", NULL, reply_models, f);
}

static int on_model(struct bridge *b, struct evhttp_request *req, const char *rest,
                    struct fault *f) {
    return ask_call(b, req, "model.list", rest, reply_models, f);
}

static int on_chat(struct bridge *b, struct evhttp_request *req, const char *rest,
                   struct fault *f) {
    return answer(b, req, true, f);
}

static int on_completion(struct bridge *b, struct evhttp_request *req, const char *rest,
                         struct fault *f) {
    return answer(b, req, false, f);
}

static int on_embeddings(struct bridge *b, struct evhttp_request *req, const char *rest,
                         struct fault *f) {
    return fault_set(f, 501, "invalid_request_error", "unsupported", NULL,
                     "moed computes no embeddings");
}

static const struct route {
    const char *path; /* one that ends in '/' but is not "/" takes what follows, too */
    enum evhttp_cmd_type method;
    bool open; /* without the token */
    int (*run)(struct bridge *b, struct evhttp_request *req, const char *rest, struct fault *f);
} routes[] = {
    { "/", EVHTTP_REQ_GET, true, on_page },
    { "/health", EVHTTP_REQ_GET, true, on_health },
    { "/v1/models", EVHTTP_REQ_GET, false, on_models },
    { "/v1/models/", EVHTTP_REQ_GET, false, on_model },
    { "/v1/chat/completions", EVHTTP_REQ_POST, false, on_chat },
    { "/v1/completions", EVHTTP_REQ_POST, false, on_completion },
    { "/v1/embeddings", EVHTTP_REQ_POST, false, on_embeddings },
};

/* Return: what @path has after the route's, or NULL: it is another one. */
static const char *match(const struct route *r, const char *path) {
    size_t n = strlen(r->path);

    if (strcmp(path, r->path) == 0)
        return "";
    return n > 1 && r->path[n - 1] == '/' && strncmp(path, r->path, n) == 0 ? path + n : NULL;
}

static int route(struct bridge *b, struct evhttp_request *req, const char *path, struct fault *f) {
    enum evhttp_cmd_type method = evhttp_request_get_command(req);

    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        const struct route *r = &routes[i];
        const char *rest = match(r, path);

        if (!rest)
            continue;
        if (method == EVHTTP_REQ_HEAD && r->method == EVHTTP_REQ_GET)
            method = EVHTTP_REQ_GET;
        if (method != r->method) {
            bool post = r->method == EVHTTP_REQ_POST;

            (void)evhttp_add_header(evhttp_request_get_output_headers(req), "Allow",
                                    post ? "POST" : "GET, HEAD");
            return REFUSE(f, 405, "bad_method", "%.100s takes %s", path, post ? "POST" : "GET");
        }
        return check_caller(b, req, r->open, f) || r->run(b, req, rest, f) ? f->status : 0;
    }
    return REFUSE(f, 404, "not_found", "no such path: %.100s", path);
}

static void on_request(struct evhttp_request *req, void *userdata) {
    const struct evhttp_uri *uri = evhttp_request_get_evhttp_uri(req);
    const char *raw = uri ? evhttp_uri_get_path(uri) : NULL;
    char *path = raw ? evhttp_uridecode(raw, 0, NULL) : NULL;
    struct fault f = { 0 };

    if (!path)
        (void)REFUSE(&f, 400, "bad_path", "the path cannot be read");
    if (!path || route(userdata, req, *path ? path : "/", &f))
        http_send_fault(req, &f);
    free(path);
}

int http_init(struct bridge *b) {
    b->http = evhttp_new(b->base);
    if (!b->http)
        return -ENOMEM;
    evhttp_set_gencb(b->http, on_request, b);
    evhttp_set_allowed_methods(b->http,
                               EVHTTP_REQ_GET | EVHTTP_REQ_HEAD | EVHTTP_REQ_POST | OTHER_METHODS);
    evhttp_set_max_body_size(b->http, BODY_MAX);
    evhttp_set_max_headers_size(b->http, HEAD_MAX);
    evhttp_set_timeout(b->http, b->idle_sec);
    return 0;
}
