/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "client/portal/input.h"

enum { DEPTH = 6 }; /* list, message, content, part; and one for what is left out */

static int bad(const char **ret_why, const char *text) {
    *ret_why = text;
    return INPUT_BAD;
}

static int unsupported(const char **ret_why, const char *text) {
    *ret_why = text;
    return INPUT_UNSUPPORTED;
}

/* The text of @key in @o, NULL when there is none. */
static const char *text_of(struct json_object *o, const char *key, size_t *ret_n) {
    struct json_object *v = json_object_object_get(o, key);

    if (!json_object_is_type(v, json_type_string))
        return NULL;
    *ret_n = (size_t)json_object_get_string_len(v);
    return json_object_get_string(v);
}

static int check_part(struct json_object *part, const char **ret_text, size_t *ret_n,
                      const char **ret_why) {
    const char *type;
    size_t n;

    if (!json_object_is_type(part, json_type_object))
        return bad(ret_why, "a content part is not an object");
    type = text_of(part, "type", &n);
    if (!type)
        return bad(ret_why, "a content part has no type");
    if (strcmp(type, "input_image") == 0 || strcmp(type, "input_audio") == 0)
        return unsupported(ret_why, "images and sounds are not supported");
    if (strcmp(type, "input_text") != 0 && strcmp(type, "output_text") != 0)
        return bad(ret_why, "a content part is of an unknown type");
    *ret_text = text_of(part, "text", ret_n);
    if (!*ret_text)
        return bad(ret_why, "a content part has no text");
    if (strlen(*ret_text) != *ret_n)
        return bad(ret_why, "a text has a NUL character");
    return 0;
}

/* All texts of @parts, as one. */
static int join(struct json_object *parts, char **ret, const char **ret_why) {
    size_t n_part = json_object_array_length(parts), size = 0, n = 0;
    const char *text = NULL;
    char *s;
    int r;

    if (!n_part)
        return bad(ret_why, "a message has no content");
    for (size_t i = 0; i < n_part; i++) {
        r = check_part(json_object_array_get_idx(parts, i), &text, &n, ret_why);
        if (r)
            return r;
        size += n + 1;
    }

    s = *ret = malloc(size);
    if (!s)
        return -ENOMEM;
    for (size_t i = 0; i < n_part; i++) {
        text = text_of(json_object_array_get_idx(parts, i), "text", &n);
        s = mempcpy(s, text, n);
        *s++ = i + 1 < n_part ? '\n' : '\0';
    }
    return 0;
}

static int read_message(struct json_object *o, struct moe_message *ret, const char **ret_why) {
    static const char *const roles[] = { "system", "user", "assistant" };
    struct json_object *content;
    char *text = NULL;
    const char *role;
    size_t n;
    int r;

    role = json_object_is_type(o, json_type_object) ? text_of(o, "role", &n) : NULL;
    if (!role)
        return bad(ret_why, "a message has no role");
    if (strcmp(role, "tool") == 0)
        return unsupported(ret_why, "tools are not supported");
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (strcmp(role, roles[i]) == 0)
            ret->role = roles[i];
    if (!ret->role)
        return bad(ret_why, "a message has an unknown role");
    content = json_object_object_get(o, "content");
    if (!json_object_is_type(content, json_type_array))
        return bad(ret_why, "a message has no content");

    r = join(content, &text, ret_why);
    ret->content = text;
    return r;
}

static int read_list(struct json_object *list, struct input *in, const char **ret_why) {
    struct json_object *first;
    size_t n = json_object_is_type(list, json_type_array) ? json_object_array_length(list) : 0;
    char *text = NULL;
    bool parts;
    int r = 0;

    if (!n)
        return bad(ret_why, "the input is not a list of messages or content parts");
    first = json_object_array_get_idx(list, 0);
    parts = json_object_is_type(first, json_type_object) && !json_object_object_get(first, "role");
    in->msg = calloc(parts ? 1 : n, sizeof *in->msg);
    if (!in->msg)
        return -ENOMEM;

    if (parts) {
        r = join(list, &text, ret_why);
        in->msg[in->n++] = (struct moe_message){ "user", text };
    }
    for (size_t i = 0; !parts && !r && i < n; i++)
        r = read_message(json_object_array_get_idx(list, i), &in->msg[in->n++], ret_why);
    return r;
}

int input_parse(const char *json, struct input *ret, const char **ret_why) {
    struct input in = { 0 };
    struct json_object *list;
    struct json_tokener *t;
    size_t n = strlen(json);
    int r;

    if (n > INPUT_MAX)
        return bad(ret_why, "the input is larger than 4 MiB");
    t = json_tokener_new_ex(DEPTH);
    if (!t)
        return -ENOMEM;
    json_tokener_set_flags(t, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
    list = json_tokener_parse_ex(t, json, (int)n + 1); /* with its NUL: it is all there is */
    if (json_tokener_get_error(t) == json_tokener_success)
        r = read_list(list, &in, ret_why);
    else
        r = bad(ret_why, "the input is not JSON");
    json_object_put(list);
    json_tokener_free(t);
    if (r) {
        input_deinit(&in);
        return r;
    }

    *ret = in;
    return 0;
}

void input_deinit(struct input *in) {
    for (size_t i = 0; i < in->n; i++)
        free((char *)in->msg[i].content);
    free(in->msg);
    *in = (struct input){ 0 };
}
