/* SPDX-License-Identifier: Apache-2.0 */

/* Runs a fuzzer's function once on every file of the folders named as arguments, in the order of
 * their names. Fails when a folder is empty: then nothing was tested. */

#include <dirent.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

static int is_file(const struct dirent *e) {
    return e->d_name[0] != '.';
}

/* Exactly as many bytes as the file has, so a sanitizer sees a read past the end. */
static int run_file(const char *path) {
    FILE *f = fopen(path, "re");
    uint8_t *data;
    long size;

    if (!f || fseek(f, 0, SEEK_END) < 0 || (size = ftell(f)) < 0) {
        perror(path);
        return -1;
    }
    rewind(f);
    data = malloc(size ? (size_t)size : 1);
    if (!data || fread(data, 1, (size_t)size, f) != (size_t)size) {
        perror(path);
        return -1;
    }
    (void)fclose(f);
    (void)LLVMFuzzerTestOneInput(data, (size_t)size);
    free(data);
    return 0;
}

static int run_folder(const char *folder) {
    struct dirent **names;
    int n = scandir(folder, &names, is_file, alphasort), bad = 0;

    if (n <= 0) {
        fprintf(stderr, "%s: no corpus\n", folder);
        return -1;
    }
    for (int i = 0; i < n; i++) {
        char path[4096];

        (void)snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
        printf("%s\n", path);
        (void)fflush(stdout); /* should this one crash, its name is the last line */
        bad += run_file(path) < 0;
        free(names[i]);
    }
    free(names);
    return bad ? -1 : 0;
}

int main(int argc, char **argv) {
    int bad = argc < 2;

    for (int i = 1; i < argc; i++)
        bad += run_folder(argv[i]) < 0;
    return bad ? EXIT_FAILURE : EXIT_SUCCESS;
}
