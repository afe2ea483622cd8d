/* SPDX-License-Identifier: Apache-2.0 */

/*
 * moectl-call - api-info and call: every method of the service
 */

#include <stdlib.h>
#include <string.h>

#include "client/moectl.h"

enum { ANSWER_USEC = 10000000, PARAMS_DEPTH = 14 /* of the 16 that a frame may have */ };

static void put_list(const struct ctl *c, const char *label, const struct moe_value *names) {
    for (size_t i = 0; i < moe_size(names); i++) {
        if (i)
            (void)fputs(", ", stdout);
        else
            (void)printf("    %s: ", label);
        ctl_puts(c, moe_str(moe_at(names, i)) ? moe_str(moe_at(names, i)) : "");
    }
    if (moe_size(names))
        (void)putchar('\n');
}

static void put_method(const struct ctl *c, const struct moe_value *m) {
    const struct moe_value *params = moe_get(m, "params");

    (void)putchar('\n');
    ctl_puts(c, ctl_str(m, "name"));
    (void)fputs(" {", stdout);
    for (size_t k = 0; k < moe_size(params); k++) {
        const struct moe_value *p = moe_at(params, k);

        (void)fputs(k ? ", " : "", stdout);
        ctl_puts(c, ctl_str(p, "name"));
        (void)fputs(": ", stdout);
        ctl_puts(c, ctl_str(p, "type"));
        (void)fputs(moe_bool(moe_get(p, "required")) ? "" : "?", stdout);
    }
    (void)fputs("}\n    -> ", stdout);
    ctl_puts(c, ctl_str(m, "result"));
    (void)putchar('\n');
    put_list(c, "errors", moe_get(m, "errors"));
    put_list(c, "notifies", moe_get(m, "notifies"));
}

int verb_api_info(struct ctl *c) {
    const struct moe_value *v, *version, *methods;
    int r;

    r = ctl_look(c, "server.info", ANSWER_USEC, &v);
    if (r >= 0)
        return r;

    version = moe_get(v, "version");
    methods = moe_get(v, "methods");
    (void)printf("moed %ju.%ju.%ju, API level %ju, compatible from %ju\n",
                 (uintmax_t)ctl_uint(version, "major"), (uintmax_t)ctl_uint(version, "minor"),
                 (uintmax_t)ctl_uint(version, "patch"), (uintmax_t)ctl_uint(version, "api_level"),
                 (uintmax_t)ctl_uint(version, "api_compatible"));
    for (size_t i = 0; i < moe_size(methods); i++)
        put_method(c, moe_at(methods, i));
    return EXIT_OK;
}

/* ---- call ---- */

static void add_value(struct moe_map *to, const char *key, json_object *v);

static void add_members(struct moe_map *to, json_object *map) {
    json_object_object_foreach(map, name, member) {
        add_value(to, name, member);
    }
}

/* What JSON can say; of null there is nothing to be written, and so it is absent. */
static void add_value(struct moe_map *to, const char *key, json_object *v) {
    switch (json_object_get_type(v)) {
    case json_type_boolean:
        moe_map_bool(to, key, json_object_get_boolean(v));
        break;
    case json_type_double:
        moe_map_float(to, key, json_object_get_double(v));
        break;
    case json_type_int:
        if (json_object_get_int64(v) < 0)
            moe_map_int(to, key, json_object_get_int64(v));
        else
            moe_map_uint(to, key, json_object_get_uint64(v));
        break;
    case json_type_string:
        moe_map_str_n(to, key, json_object_get_string(v), (size_t)json_object_get_string_len(v));
        break;
    case json_type_array:
        moe_map_open_array(to, key);
        for (size_t i = 0; i < json_object_array_length(v); i++)
            add_value(to, NULL, json_object_array_get_idx(v, i));
        moe_map_end(to);
        break;
    case json_type_object:
        moe_map_open_map(to, key);
        add_members(to, v);
        moe_map_end(to);
        break;
    default:
        break;
    }
}

/* The object that @s is, and nothing else; NULL: it is none. */
static json_object *parse_object(const char *s) {
    struct json_tokener *tokener = json_tokener_new_ex(PARAMS_DEPTH);
    json_object *o = tokener ? json_tokener_parse_ex(tokener, s, (int)strlen(s) + 1) : NULL;
    size_t end = tokener ? json_tokener_get_parse_end(tokener) : 0;

    if (tokener)
        json_tokener_free(tokener);
    if (json_object_is_type(o, json_type_object) && !s[end + strspn(s + end, " \t\r\n")])
        return o;

    json_object_put(o);
    return NULL;
}

/* The second argument, "-": stdin. Return: 0 with @ret_params (NULL: none), or an exit code. */
static int read_params(struct ctl *c, struct moe_map **ret_params) {
    struct ctl_text text = { 0 };
    json_object *o = NULL;
    int r = 0;

    if (c->n_args > 1)
        r = ctl_read_prompt(c, 1, &text);
    if (!r && text.n)
        o = parse_object(text.p);
    if (!r && text.n && !o)
        r = ctl_complain(EXIT_USAGE, "the parameters are no JSON object such as '{\"id\": 5}'");
    if (!r && o) {
        *ret_params = moe_map_new();
        add_members(*ret_params, o);
    }
    json_object_put(o);
    free(text.p);

    return r;
}

struct call {
    struct ctl *c;
    bool done;
    int code;
};

static void put_note(const struct ctl *c, const char *method, const struct moe_value *params) {
    json_object *o = json_object_new_object();

    (void)json_object_object_add(o, method, ctl_to_json(params));
    ctl_put_object(c, o);
    (void)ctl_flush();
}

static void on_note(struct moe *m, const char *method, const struct moe_value *params,
                    void *userdata) {
    const struct call *call = userdata;

    (void)m;
    put_note(call->c, method, params);
}

static void on_reply(struct moe *m, uint32_t id, const struct moe_value *result,
                     const struct moe_error *error, void *userdata) {
    struct call *call = userdata;

    (void)m;
    (void)id;
    call->done = true;
    if (error)
        call->code = ctl_complain_error(error);
    else
        ctl_put_json(call->c, result);
}

int verb_call(struct ctl *c) {
    struct call call = { .c = c };
    struct moe_map *params = NULL;
    uint32_t id;
    int r;

    if (!c->n_args)
        return ctl_complain(EXIT_USAGE, "call: want the name of a method, see moectl api-info");
    if (!c->json)
        c->json = JSON_SHORT;
    r = read_params(c, &params);
    if (!r)
        r = ctl_connect(c);
    if (!r) {
        moe_set_notify(c->m, on_note, &call);
        r = moe_call(c->m, c->args[0], params, on_reply, on_note, &call, &id);
        r = r < 0 ? ctl_complain_errno(c, r) : 0;
    }
    moe_map_free(params);
    while (!r && !call.done) {
        r = ctl_poll(c, -1, MOE_FOREVER);
        if (r == 2)
            r = EXIT_INTERRUPTED;
        else if (r < 0 && !call.done)
            r = ctl_complain_errno(c, r);
        else
            r = 0;
    }
    c->m = moe_close(c->m); /* @call goes */

    return call.done ? call.code : r;
}
