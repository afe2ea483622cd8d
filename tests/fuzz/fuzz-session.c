/* SPDX-License-Identifier: Apache-2.0 */

/* Any bytes as a saved session, and any bytes behind a head that fits them. What is taken is
 * written as a file that is taken again, and then written the same. */

#include <endian.h>
#include <string.h>

#include "daemon/rpc.h"
#include "daemon/session.h"
#include "engine/base/sum.h"
#include "tests/fuzz/fuzz.h"

enum { HEAD = 32 };

static struct session_blob with_head(const uint8_t *data, size_t n) {
    struct session_blob blob = { malloc(HEAD + n), HEAD + n };
    uint64_t size = htole64(n), sum = htole64(sum_bytes(0, data, n));

    FUZZ_CHECK(blob.p != NULL);
    memcpy(blob.p, "moedsess\1\0\0\0\0\0\0", 16);
    memcpy(blob.p + 16, &size, 8);
    memcpy(blob.p + 24, &sum, 8);
    if (n)
        memcpy(blob.p + HEAD, data, n);
    return blob;
}

/* Return: was it taken? Then it is in @ret. */
static bool unpack(const void *p, size_t n, struct session_state *ret) {
    struct why why = { 0 };
    int r = session_unpack(p, n, ret, &why);

    FUZZ_CHECK(r == 0 || (r == RPC_CORRUPT && strncmp(why.text, "the s", 5) == 0));
    return r == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    struct session_blob blob, first, second;
    struct session_state state, again;

    if (unpack(data, n, &state))
        session_state_deinit(&state);
    blob = with_head(data, n);
    if (unpack(blob.p, blob.n, &state)) {
        FUZZ_CHECK(state.n_msg <= SESSION_MESSAGES_MAX && state.n_byte <= ENGINE_TEXT_MAX);
        FUZZ_CHECK(session_pack(&state, &first) == 0);
        FUZZ_CHECK(unpack(first.p, first.n, &again));
        FUZZ_CHECK(session_pack(&again, &second) == 0);
        FUZZ_CHECK(first.n == second.n && memcmp(first.p, second.p, first.n) == 0);
        free(first.p);
        free(second.p);
        session_state_deinit(&again);
        session_state_deinit(&state);
    }
    free(blob.p);
    return 0;
}
