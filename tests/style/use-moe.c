/* SPDX-License-Identifier: Apache-2.0 */

/* Compiled as C99 and as C++, both pedantic: what a stranger's program may be. */
#include "client/moe-model.h"
#include "client/moe-session.h"
#include "client/moe.h"

int main(void) {
    struct moe_generate g = MOE_GENERATE_INIT;
    const struct moe_result *result;
    struct moe_session s = MOE_SESSION_INIT;
    struct moe_import i = MOE_IMPORT_INIT;
    uint64_t session;
    struct moe *m;

    g.prompt = "Once upon a time";
    if (moe_open(&m, NULL) < 0)
        return 1;
    if (moe_generate_wait(m, &g, &result) < 0)
        return moe_last_error(m) != NULL;

    s.instructions = "Be brief.";
    if (moe_session_open_wait(m, &s, &session) < 0)
        return 1;

    i.id = "mine";
    if (moe_model_import_wait(m, 0, &i, NULL) < 0)
        return 1;

    return moe_close(m) != NULL;
}
