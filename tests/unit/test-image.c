/* SPDX-License-Identifier: Apache-2.0 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/sum.h"
#include "engine/model/image-file.h"
#include "engine/model/weights.h"

#include "test-pack.h"

/* Weights of a small model, packed, kept, and mapped again: the same bytes. Whatever is wrong with
 * the image, or with the model it was made of: it is not used, and the weights are packed again. */

static const char *source;                        /* argv[1], a model */
static char dir[] = "/var/tmp/test-image-XXXXXX"; /* on a disk: pages can be dropped */
static char model[64], cache[64];
static struct kern rows;
static struct topo *topo;
static struct pool *pool;
static struct plan *plan; /* one shard */

struct run {
    struct gguf *gguf;
    struct weights w;
};

/* As a start does. */
static void start_at(struct run *run, const struct kern_pack *pack, uint64_t max,
                     struct weights_memory *memory) {
    static const struct weights_load whole;
    struct why why = { "" };

    assert_int_equal(gguf_open(&run->gguf, model, &why), 0);
    assert_int_equal(weights_init(&run->w, run->gguf, plan), 0);
    for (uint32_t i = 0; i < gguf_n_tensor(run->gguf); i++) {
        const struct tensor *t = gguf_tensor_at(run->gguf, i);

        if (t->fmt == QUANT_Q8_0 && t->n_dim > 1)
            assert_int_equal(weights_plan(&run->w, t,
                                          &(struct weights_cut){
                                              .n_out = (uint32_t)t->ne[1], .unit = 16, .alike = 1 },
                                          pack),
                             0);
    }
    assert_int_equal(weights_map(&run->w, max, cache, memory), 0);
    if (weights_load(&run->w, pool, &whole, &why) != 0)
        fail_msg("%s", why.text);
}

static void start_with(struct run *run, const struct kern_pack *pack, uint64_t max) {
    start_at(run, pack, max, NULL);
}

static void start(struct run *run) {
    start_with(run, &rows.pack[QUANT_Q8_0], UINT64_MAX);
}

static void end(struct run *run) {
    weights_deinit(&run->w);
    gguf_free(run->gguf);
}

static uint64_t sum_of(const struct run *run) {
    return sum_bytes(0, run->w.base, run->w.size);
}

static uint32_t n_files(void) {
    DIR *d = opendir(cache);
    struct dirent *e;
    uint32_t n = 0;

    assert_non_null(d);
    while ((e = readdir(d)))
        n += e->d_name[0] != '.';
    (void)closedir(d);
    return n;
}

/* One start that leaves an image. Return: what the weights sum up to. */
static uint64_t make_image(char *ret_path, size_t n) {
    struct run run;
    uint64_t sum;

    start(&run);
    assert_false(run.w.mapped);
    sum = sum_of(&run);
    weights_keep(&run.w, pool);
    weights_keep_wait(&run.w);
    assert_true(sum_of(&run) == sum); /* the file is in their place now */
    (void)snprintf(ret_path, n, "%s/%s", cache, run.w.image->name);
    end(&run);
    assert_int_equal(n_files(), 1);
    assert_int_equal(access(ret_path, R_OK), 0);
    return sum;
}

static void copy_model(void) {
    char cmd[4600];

    (void)snprintf(cmd, sizeof cmd, "cp '%s' '%s'", source, model);
    assert_int_equal(system(cmd), 0);
}

static void test_second_start_maps(void **state) {
    char path[128];
    uint64_t sum = make_image(path, sizeof path);
    struct run run;

    (void)state;
    start(&run);
    assert_true(run.w.mapped);
    assert_true(sum_of(&run) == sum);
    weights_keep(&run.w, pool); /* has nothing to do */
    assert_false(run.w.keeper.started);
    end(&run);

    /* even where memory is too short to pack */
    start_with(&run, &rows.pack[QUANT_Q8_0], 1);
    assert_true(run.w.mapped);
    end(&run);
}

/* ---- in memory ---- */

/* A start that leaves its weights in a memory file. Return: that. */
static int make_memory(uint64_t *ret_sum) {
    struct weights_memory memory = { 0 };
    struct run run;
    int fd;

    start_at(&run, &rows.pack[QUANT_Q8_0], UINT64_MAX, &memory);
    assert_false(run.w.mapped);
    assert_int_equal(weights_fd(&run.w), -1); /* not before it is sealed */
    *ret_sum = sum_of(&run);
    weights_keep(&run.w, pool);
    assert_true(sum_of(&run) == *ret_sum);
    fd = dup(weights_fd(&run.w));
    assert_true(fd >= 0);
    end(&run);
    return fd;
}

/* It is the same memory that the next start has, and the one after that. */
static void test_memory(void **state) {
    struct weights_memory memory = { 0 };
    struct stat before, after;
    struct run run;
    uint64_t sum;

    memory.fd = make_memory(&sum);
    assert_int_equal(fstat(memory.fd, &before), 0);
    for (int i = 0; i < 2; i++) {
        start_at(&run, &rows.pack[QUANT_Q8_0], 1, &memory); /* also where there is no more memory */
        assert_true(run.w.mapped);
        assert_false(atomic_load(&memory.refused));
        assert_true(sum_of(&run) == sum);
        weights_keep(&run.w, pool);
        assert_int_equal(fstat(weights_fd(&run.w), &after), 0);
        assert_int_equal(after.st_ino, before.st_ino);
        end(&run);
    }
    assert_int_equal(n_files(), 0); /* and nothing on disk */
    (void)close(memory.fd);
}

/* Nobody can change it, by whatever descriptor. */
static void test_memory_is_sealed(void **state) {
    uint64_t sum;
    int fd = make_memory(&sum), again;
    char path[32];

    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    again = open(path, O_RDWR | O_CLOEXEC);
    assert_true(again >= 0);
    assert_int_equal(pwrite(again, "x", 1, 0), -1);
    assert_int_equal(ftruncate(again, 0), -1);
    assert_ptr_equal(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0), MAP_FAILED);
    assert_int_equal(fcntl(again, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), -1);
    (void)close(again);
    (void)close(fd);
}

static void refuses(int fd, const struct kern_pack *pack, uint64_t sum) {
    struct weights_memory memory = { .fd = fd };
    struct run run;

    start_at(&run, pack, UINT64_MAX, &memory);
    assert_false(run.w.mapped);
    assert_true(atomic_load(&memory.refused));
    if (sum)
        assert_true(sum_of(&run) == sum);
    weights_keep(&run.w, pool);
    assert_true(weights_fd(&run.w) >= 0); /* a new one */
    end(&run);
}

/* What is not sealed, of another model or layout, or no such file at all is not looked at twice. */
static void test_memory_refused(void **state) {
    struct kern_pack other = rows.pack[QUANT_Q8_0];
    uint64_t sum;
    int fd = make_memory(&sum), copy = memfd_create("copy", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    struct stat st;

    assert_int_equal(fstat(fd, &st), 0);
    assert_true(copy >= 0);
    assert_int_equal(sendfile(copy, fd, &(off_t){ 0 }, (size_t)st.st_size), st.st_size);
    refuses(copy, &rows.pack[QUANT_Q8_0], sum); /* may still change */
    assert_int_equal(ftruncate(copy, st.st_size + 1), 0);
    assert_int_equal(
        fcntl(copy, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    refuses(copy, &rows.pack[QUANT_Q8_0], sum); /* too long */
    other.layout = "other";
    refuses(fd, &other, 0);
    refuses(STDERR_FILENO, &rows.pack[QUANT_Q8_0], sum);
    copy_model(); /* its times change, and so does its source */
    refuses(fd, &rows.pack[QUANT_Q8_0], sum);
    (void)close(copy);
    (void)close(fd);
}

/* Change the file by @change, but not its time; the next start must do without and remove it. */
static void spoil(const char *what, const char *path, uint64_t sum,
                  void (*change)(int fd, uint64_t arg), uint64_t arg) {
    int fd = open(path, O_RDWR);
    struct timespec time[2] = { { .tv_nsec = UTIME_OMIT } };
    struct stat st;
    struct run run;

    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    change(fd, arg);
    time[1] = st.st_mtim;
    assert_int_equal(futimens(fd, time), 0);
    assert_int_equal(close(fd), 0);

    start(&run);
    if (run.w.mapped)
        fail_msg("%s %ju: mapped", what, (uintmax_t)arg);
    assert_true(sum_of(&run) == sum);
    end(&run);
    if (n_files() != 0)
        fail_msg("%s %ju: left there", what, (uintmax_t)arg);
}

static void flip(int fd, uint64_t at) {
    uint8_t c;

    assert_int_equal(pread(fd, &c, 1, (off_t)at), 1);
    c ^= 1;
    assert_int_equal(pwrite(fd, &c, 1, (off_t)at), 1);
}

/* The same, and make the head's own sum right again. */
static void forge(int fd, uint64_t at) {
    static uint64_t buf[1 << 16];
    struct image_head *h = (void *)buf;
    size_t n;

    flip(fd, at);
    assert_true(pread(fd, buf, sizeof buf, 0) > (ssize_t)sizeof *h);
    n = sizeof *h + h->n_tensor * sizeof(struct image_tensor) +
        (h->data_size + IMAGE_SLAB - 1) / IMAGE_SLAB * 8;
    if (n > sizeof buf)
        return;
    h->sum = image_head_sum(h, n);
    assert_int_equal(pwrite(fd, h, sizeof *h, 0), sizeof *h);
}

static void cut(int fd, uint64_t n) {
    assert_int_equal(ftruncate(fd, (off_t)n), 0);
}

static void lend(int fd, uint64_t mode) {
    assert_int_equal(fchmod(fd, (mode_t)mode), 0);
}

static void test_damaged_head(void **state) {
#define FIELD(name_) offsetof(struct image_head, name_)
    static const size_t field[] = { FIELD(magic),  FIELD(version), FIELD(n_tensor),  FIELD(sum),
                                    FIELD(source), FIELD(data_at), FIELD(data_size), FIELD(sec),
                                    FIELD(nsec),   FIELD(path) };
    const size_t table = sizeof(struct image_head), entry = sizeof(struct image_tensor);
    char path[128];

    (void)state;
    for (size_t i = 0; i < sizeof field / sizeof *field; i++)
        spoil("head", path, make_image(path, sizeof path), flip, field[i]);
    spoil("table", path, make_image(path, sizeof path), flip, table + 3 * entry);
    /* with the sum made right: all that must be as it is planned; not path, which is not */
    for (size_t i = 0; i + 1 < sizeof field / sizeof *field; i++)
        if (field[i] != FIELD(sum))
            spoil("forged head", path, make_image(path, sizeof path), forge, field[i]);
    for (size_t at = 0; at < entry; at += 4)
        spoil("forged table", path, make_image(path, sizeof path), forge, table + entry + at);
}

static void test_damaged_file(void **state) {
    char path[128];
    struct stat st;

    (void)state;
    (void)make_image(path, sizeof path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(unlink(path), 0);
    spoil("cut", path, make_image(path, sizeof path), cut, (uint64_t)st.st_size - 1);
    spoil("cut", path, make_image(path, sizeof path), cut, (uint64_t)st.st_size + 1);
    spoil("cut", path, make_image(path, sizeof path), cut, 4096);
    spoil("cut", path, make_image(path, sizeof path), cut, 0);
    spoil("mode", path, make_image(path, sizeof path), lend, 0620);
}

/* Weights that come from the disk are checked. */
static void test_damaged_weights(void **state) {
    char path[128];
    struct run run;
    struct stat st;
    uint64_t sum = make_image(path, sizeof path);
    struct timespec time[2] = { { .tv_nsec = UTIME_OMIT } };
    int fd = open(path, O_RDWR);
    unsigned char there = 1;
    void *p;

    (void)state;
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    flip(fd, (uint64_t)st.st_size - 1000);
    time[1] = st.st_mtim;
    assert_int_equal(futimens(fd, time), 0);
    assert_int_equal(fsync(fd), 0);
    assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, (st.st_size - 1000) / 4096 * 4096);
    assert_true(p != MAP_FAILED && mincore(p, 4096, &there) == 0);
    (void)munmap(p, 4096);
    (void)close(fd);
    if (there & 1) {
        (void)unlink(path);
        skip(); /* this file system keeps its files in memory */
    }

    start(&run);
    assert_false(run.w.mapped);
    assert_true(sum_of(&run) == sum);
    end(&run);
    assert_int_equal(n_files(), 0);

    sum = make_image(path, sizeof path); /* and a good one is taken from the disk too */
    fd = open(path, O_RDONLY);
    assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
    (void)close(fd);
    start(&run);
    assert_true(run.w.mapped && sum_of(&run) == sum);
    end(&run);
}

/* The image of a file is not used for what that file has become. */
static void test_changed_model(void **state) {
    struct timespec time[2] = { { 0 }, { 0 } };
    char path[128];
    struct run run;
    struct stat st;
    uint64_t sum = make_image(path, sizeof path);
    int fd = open(model, O_RDWR);

    (void)state;
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    flip(fd, (uint64_t)st.st_size - 1); /* between the pieces that are summed */
    time[0] = st.st_atim;
    time[1] = st.st_mtim;
    assert_int_equal(futimens(fd, time), 0);
    (void)close(fd);
    start(&run);
    assert_false(run.w.mapped);
    end(&run);

    copy_model(); /* the same bytes as before, but another time */
    assert_true(make_image(path, sizeof path) == sum);
    assert_int_equal(unlink(model), 0);
    copy_model(); /* another file of the same name */
    start(&run);
    assert_false(run.w.mapped);
    end(&run);
}

static void test_other_layout(void **state) {
    struct kern_pack other = rows.pack[QUANT_Q8_0];
    char path[128];
    struct run run;

    (void)state;
    (void)make_image(path, sizeof path);
    other.layout = "other.r8";
    start_with(&run, &other, UINT64_MAX);
    assert_false(run.w.mapped);
    weights_keep(&run.w, pool);
    weights_keep_wait(&run.w);
    end(&run);
    assert_int_equal(n_files(), 1);
    start_with(&run, &other, UINT64_MAX);
    assert_true(run.w.mapped);
    end(&run);
    start(&run);
    assert_false(run.w.mapped);
    end(&run);
}

static void test_no_directory(void **state) {
    char gone[64];
    struct run run;

    (void)state;
    (void)snprintf(gone, sizeof gone, "%s/gone", dir);
    assert_int_equal(rename(cache, gone), 0);
    start(&run);
    assert_null(run.w.image);
    weights_keep(&run.w, pool);
    assert_false(run.w.keeper.started);
    end(&run);
    assert_int_equal(rename(gone, cache), 0);
}

/* A stop, or a process that writes the same image: nothing is left that another would take. */
static void test_not_written(void **state) {
    static const atomic_bool stop = true;
    static const atomic_bool go = false;
    struct why why = { "" };
    char path[160];
    struct run run;
    int fd;

    (void)state;
    start(&run);
    assert_int_equal(image_write(run.w.image, run.w.base, NULL, NULL, &stop, &why), IMAGE_LEFT);
    assert_int_equal(n_files(), 0);

    (void)snprintf(path, sizeof path, "%s/%s.new", cache, run.w.image->name);
    fd = open(path, O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0 && flock(fd, LOCK_EX) == 0);
    assert_int_equal(image_write(run.w.image, run.w.base, NULL, NULL, &go, &why), IMAGE_LEFT);
    assert_int_equal(access(path, F_OK), 0); /* it is the other's */
    (void)close(fd);
    assert_int_equal(image_write(run.w.image, run.w.base, NULL, NULL, &go, &why),
                     0); /* which has died */
    assert_int_equal(n_files(), 1);
    end(&run);
}

/* An image whose model is gone goes when the next is written; other files stay. */
static void test_orphans(void **state) {
    char gone[128], path[128], note[128];
    struct run run;
    int fd;

    (void)state;
    (void)make_image(gone, sizeof gone);
    assert_int_equal(unlink(model), 0);
    (void)snprintf(note, sizeof note, "%s/note.weights", cache);
    fd = open(note, O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0 && close(fd) == 0);

    model[strlen(model) - 1] = '2';
    copy_model();
    start(&run);
    weights_keep(&run.w, pool);
    weights_keep_wait(&run.w);
    (void)snprintf(path, sizeof path, "%s/%s", cache, run.w.image->name);
    end(&run);
    assert_int_equal(access(gone, F_OK), -1);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(access(note, F_OK), 0);
    assert_int_equal(unlink(note), 0);
}

static int set_up(void **state) {
    (void)state;
    if (!mkdtemp(dir))
        return -1;
    (void)snprintf(model, sizeof model, "%s/model1", dir);
    (void)snprintf(cache, sizeof cache, "%s/cache", dir);
    copy_model();
    kern_bind(&rows, 0);
    test_pack_use(&rows);
    if (topo_new(&topo) < 0 || pool_new(&pool, topo, 2) < 0)
        return -1;
    if (plan_new(&plan, &(struct topo_cpu){ 0 }, 1, 0) < 0)
        return -1;
    return mkdir(cache, 0700);
}

static int tear_down(void **state) {
    char cmd[64];

    (void)state;
    plan_free(plan);
    pool_free(pool);
    topo_free(topo);
    (void)snprintf(cmd, sizeof cmd, "rm -r %s", dir);
    return system(cmd);
}

/* Each test begins with no image. */
static int clear(void **state) {
    char cmd[96];

    (void)state;
    (void)snprintf(cmd, sizeof cmd, "rm -f %s/*", cache);
    return system(cmd);
}

/* Weights cut for two nodes are another image than those of one. */
static void test_nodes(void **state) {
    struct plan *one = plan, *two;
    struct topo *machine;
    struct topo_cpu cpu[2];
    char path[128];
    struct run run;
    uint64_t sum;

    (void)state;
    if (topo_new_from(&machine, "numa:2 core:1 pu:1", 0) == TOPO_UNSUPPORTED)
        skip();
    plan_place(machine, 2, cpu);
    assert_int_equal(plan_new(&two, cpu, 2, 0), 0);
    assert_int_equal(two->n_shard, 2);

    plan = two;
    sum = make_image(path, sizeof path);
    start(&run);
    assert_true(run.w.mapped);
    assert_true(sum_of(&run) == sum);
    assert_true(run.w.shard[0].size > 0 && run.w.shard[1].size > 0);
    end(&run);

    plan = one;
    start(&run);
    assert_false(run.w.mapped);
    end(&run);
    assert_int_equal(n_files(), 0);
    plan_free(two);
    topo_free(machine);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_second_start_maps, clear),
        cmocka_unit_test_setup(test_memory, clear),
        cmocka_unit_test_setup(test_memory_is_sealed, clear),
        cmocka_unit_test_setup(test_memory_refused, clear),
        cmocka_unit_test_setup(test_damaged_head, clear),
        cmocka_unit_test_setup(test_damaged_file, clear),
        cmocka_unit_test_setup(test_damaged_weights, clear),
        cmocka_unit_test_setup(test_changed_model, clear),
        cmocka_unit_test_setup(test_other_layout, clear),
        cmocka_unit_test_setup(test_nodes, clear),
        cmocka_unit_test_setup(test_no_directory, clear),
        cmocka_unit_test_setup(test_not_written, clear),
        cmocka_unit_test_setup(test_orphans, clear),
    };

    if (argc != 2)
        return 2;
    source = argv[1];
    return cmocka_run_group_tests_name("image", tests, set_up, tear_down);
}
