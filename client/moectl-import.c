/* SPDX-License-Identifier: Apache-2.0 */

/*
 * moectl-import - give the service a model's file, and have a model checked
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/moe-model.h"
#include "client/moectl.h"

enum { SOON_USEC = 10000000, ID_SIZE = 256 };

/* What a model of this file is called: its name without ".gguf" and the number of its part. */
static void id_of(const char *path, char *ret) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    unsigned part, parts;
    int n = 0;
    char *end;

    (void)snprintf(ret, ID_SIZE, "%s", name);
    end = strstr(ret, ".gguf");
    if (end && !end[strlen(".gguf")])
        *end = 0;
    end = strlen(ret) > strlen("-00001-of-00001") ? ret + strlen(ret) - strlen("-00001-of-00001")
                                                  : NULL;
    if (end && sscanf(end, "-%5u-of-%5u%n", &part, &parts, &n) == 2 && !end[n])
        *end = 0;
}

/* Wait for a job; Ctrl-C ends it, too. Return: an exit code. */
static int follow(struct ctl *c, uint64_t job, const char *done) {
    struct moe_map *p;
    int r;

    if (c->no_wait) {
        if (c->json)
            (void)printf("{\"job\":%ju}\n", (uintmax_t)job);
        return EXIT_OK;
    }
    r = ctl_wait_for_job(c, job, done);
    if (r != EXIT_INTERRUPTED)
        return r;

    ctl_interrupted = 0;
    p = moe_map_new();
    moe_map_uint(p, "id", job);
    (void)ctl_try(c, "job.cancel", p, SOON_USEC, NULL);
    moe_map_free(p);
    return r;
}

int verb_import(struct ctl *c) {
    struct moe_import i = MOE_IMPORT_INIT;
    char id[ID_SIZE];
    uint64_t job;
    int fd, r;

    if (!c->n_args)
        return ctl_complain(EXIT_USAGE, "import: want a file");
    id_of(c->args[0], id);
    i.id = c->n_args > 1 ? c->args[1] : id;
    i.mode = c->mode;
    i.digest = c->digest;
    i.license = c->license;
    fd = open(c->args[0], O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return ctl_complain(EXIT_FAILED, "%s: cannot open: %s", c->args[0], strerror(errno));
    r = ctl_connect(c);
    if (!r) {
        r = moe_model_import_wait(c->m, fd, &i, &job);
        r = r < 0 ? ctl_complain_errno(c, r) : EXIT_OK;
    }
    (void)close(fd);
    if (!r)
        r = follow(c, job, "imported");
    if (!r && !c->quiet && !c->no_wait)
        (void)fprintf(stderr, "(there is a model %s now)\n", i.id);

    return r;
}

int verb_verify(struct ctl *c) {
    uint64_t job;
    int r;

    if (!c->n_args)
        return ctl_complain(EXIT_USAGE, "verify: want a model, as moectl list shows them");
    r = ctl_connect(c);
    if (r)
        return r;
    r = moe_model_verify_wait(c->m, c->args[0], &job);
    if (r < 0)
        return ctl_complain_errno(c, r);

    r = follow(c, job, "found whole");
    if (!r && !c->quiet && !c->no_wait)
        (void)fprintf(stderr, "(%s is whole)\n", c->args[0]);
    return r;
}
