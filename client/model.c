/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>

#include "client/client.h"
#include "client/moe-model.h"

int moe_model_import(struct moe *m, int fd, const struct moe_import *i, moe_reply_fn reply,
                     void *userdata, uint32_t *ret_id) {
    struct moe_map *p;
    int r;

    if (i->size != sizeof *i || !i->id)
        return -EINVAL;
    p = moe_map_new();
    if (!p)
        return -ENOMEM;
    moe_map_str(p, "id", i->id);
    if (i->mode)
        moe_map_str(p, "mode", i->mode);
    if (i->digest)
        moe_map_str(p, "digest", i->digest);
    if (i->license)
        moe_map_str(p, "license", i->license);
    r = client_call_fd(m, "model.import", p, fd, reply, userdata, ret_id);
    moe_map_free(p);
    return r;
}

int moe_model_import_wait(struct moe *m, int fd, const struct moe_import *i, uint64_t *ret_job) {
    struct client_waiter w = { 0 };
    const struct moe_value *v;
    uint32_t id;
    int r;

    if (m->busy)
        return -EBUSY;
    m->kept.failed = false;
    r = moe_model_import(m, fd, i, client_waited, &w, &id);
    if (r >= 0)
        r = client_await(m, &w, id, MOE_FOREVER, &v);
    if (r >= 0 && ret_job)
        *ret_job = moe_uint(moe_get(v, "job"));
    return r;
}

int moe_model_verify_wait(struct moe *m, const char *id, uint64_t *ret_job) {
    struct moe_map *p = moe_map_new();
    const struct moe_value *v;
    int r;

    moe_map_str(p, "id", id);
    r = p ? moe_call_wait(m, "model.verify", p, MOE_FOREVER, &v) : -ENOMEM;
    moe_map_free(p);
    if (r >= 0 && ret_job)
        *ret_job = moe_uint(moe_get(v, "job"));
    return r;
}
