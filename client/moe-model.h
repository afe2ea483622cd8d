/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOE_MODEL_H
#define MOE_MODEL_H

/*
 * moe-model - give the service a model, and have it check one
 *
 *   struct moe_import i = MOE_IMPORT_INIT;
 *   i.id = "mine";
 *   r = moe_model_import_wait(m, fd, &i, &job);      ... then the method job.wait
 *
 * What is given is an open file, so the service need not be able to enter the folder it is in. Both
 * take as long as reading the file does: they are jobs, which go on when the connection is closed.
 * The method job.wait {id} tells how far one is, and how it ends; job.cancel {id} ends it.
 *
 * Return:  as moe_call_wait() unless said otherwise; -EREMOTEIO: see moe_last_error(), whose code
 *          is MOE_ACCESS_DENIED for who may not, MOE_INVALID_ARGS for what cannot be an id, is one
 *          already, or a descriptor that is of no readable file, MOE_BUSY while others are read.
 * Memory:  everything passed is borrowed for the call.
 */

#include "moe.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What is given: MOE_IMPORT_INIT, and an id. */
struct moe_import {
    size_t size;
    const char *id;      /* that the model is to have */
    const char *mode;    /* "reference", "reflink", "copy"; NULL: reflink if it can be, else copy */
    const char *digest;  /* SHA-256 in hexadecimal that the file must have; or NULL */
    const char *license; /* a line that is kept with it; or NULL */
};

/* clang-format off */
#define MOE_IMPORT_INIT { sizeof(struct moe_import), NULL, NULL, NULL, NULL }
/* clang-format on */

/** moe_model_import() - the file @fd becomes a model
 * @fd:    open for reading; it is copied, so the caller may close its own at once
 * @reply: its result has the key "job"
 * Return: as moe_call(); or why @fd could not be copied. */
MOE_API int moe_model_import(struct moe *m, int fd, const struct moe_import *i, moe_reply_fn reply,
                             void *userdata, uint32_t *ret_id);
/* The same, waited for until it has begun. @ret_job: may be NULL */
MOE_API int moe_model_import_wait(struct moe *m, int fd, const struct moe_import *i,
                                  uint64_t *ret_job);

/* Have the file of the model @id read and compared with its digest, likewise. */
MOE_API int moe_model_verify_wait(struct moe *m, const char *id, uint64_t *ret_job);

#ifdef __cplusplus
}
#endif
#endif
