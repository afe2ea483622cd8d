/* SPDX-License-Identifier: Apache-2.0 */

/* Any bytes as the file of a use case, and behind a form feed those of what was set for it. What is
 * refused is refused with a sentence that names the file; what is taken is UTF-8, and renders to a
 * prompt in which each placeholder is replaced once, whatever stands for it. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/usecase.h"
#include "engine/base/utf8.h"
#include "tests/fuzz/fuzz.h"

#define ID "language.fuzz"

static char root[] = "/tmp/moed-fuzz-XXXXXX";
static int files[2]; /* the use case's, what was set */

static void clean_up(void) {
    char command[64];

    (void)snprintf(command, sizeof command, "rm -r %s", root);
    FUZZ_CHECK(system(command) == 0);
}

/* Links to memory below @root, so that nothing is written to a disk. */
static void set_up(void) {
    static const char *const folders[] = { "etc", "etc/moed", "etc/moed/use-cases.d" };
    static const char *const names[] = { "etc/moed/use-cases.d/" ID ".conf", "use-case-" ID };
    char path[128], to[64];

    FUZZ_CHECK(mkdtemp(root) && atexit(clean_up) == 0 && setenv("STATE_DIRECTORY", root, 1) == 0);
    for (size_t i = 0; i < 3; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", root, folders[i]);
        FUZZ_CHECK(mkdir(path, 0700) == 0);
    }
    for (size_t i = 0; i < 2; i++) {
        files[i] = memfd_create("usecase", MFD_CLOEXEC);
        (void)snprintf(to, sizeof to, "/proc/self/fd/%d", files[i]);
        (void)snprintf(path, sizeof path, "%s/%s", root, names[i]);
        FUZZ_CHECK(files[i] >= 0 && symlink(to, path) == 0);
    }
}

static void fill(int fd, const void *data, size_t n) {
    FUZZ_CHECK(ftruncate(fd, 0) == 0 && pwrite(fd, data, n, 0) == (ssize_t)n);
}

static size_t count(const char *s, const char *what) {
    size_t n = 0;

    for (; (s = strstr(s, what)); s += strlen(what))
        n++;
    return n;
}

static void check_text(const char *s) {
    FUZZ_CHECK(!s || (*s && utf8_valid(s, strlen(s))));
}

static void check(const struct usecase *u) {
    const struct usecase_words words = { "{labels}{text}", "{text}", "a, {language}" };
    const char *prompt = u->prompt ?: "{text}";
    size_t n = strlen(prompt), n_text = count(prompt, "{text}");
    char *said;

    check_text(u->model);
    check_text(u->instructions);
    check_text(u->prompt);
    check_text(u->language);
    FUZZ_CHECK(n_text > 0);
    n += n_text * (strlen(words.text) - strlen("{text}"));
    n += count(prompt, "{labels}") * (strlen(words.labels) - strlen("{labels}"));
    n -= count(prompt, "{language}") * (strlen("{language}") - strlen(words.language));
    said = usecase_render(u, &words);
    FUZZ_CHECK(said && strlen(said) == n && utf8_valid(said, n));
    free(said);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    const uint8_t *cut = n ? memchr(data, '\f', n) : NULL;
    size_t first = cut ? (size_t)(cut - data) : n;
    struct usecase_list l = { 0 };
    struct why why = { 0 };
    int r;

    if (!files[0])
        set_up();
    fill(files[0], data, first);
    fill(files[1], data + first + (cut != NULL), cut ? n - first - 1 : 0);
    r = usecase_load(&l, root, &why);
    FUZZ_CHECK(r == 0 || (r == USECASE_BAD && strncmp(why.text, root, strlen(root)) == 0 && !l.n));
    FUZZ_CHECK(l.n <= 1 && (l.n == 1) == (usecase_find(&l, ID) != NULL));
    if (l.n)
        check(&l.at[0]);
    usecase_deinit(&l);
    return 0;
}
