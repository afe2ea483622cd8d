/* SPDX-License-Identifier: Apache-2.0 */

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "engine/moe/fetch-how.h"

/* Reads go round: begun ones are taken by any thread, and those that are over handed out in the
 * order in which they ended. Both rings hold all there can be. */
struct ring {
    uint32_t *at; /* [depth] */
    uint32_t first, n;
};

struct threads {
    struct fetch *f;
    pthread_mutex_t lock;
    pthread_cond_t begun, over;
    struct ring todo, done;
    int64_t *result; /* [depth] of reads */
    bool stop;
    uint32_t n_thread;
    pthread_t *thread; /* [depth] */
};

static void push(struct ring *r, uint32_t depth, uint32_t value) {
    r->at[(r->first + r->n++) % depth] = value;
}

static uint32_t pop(struct ring *r, uint32_t depth) {
    uint32_t value = r->at[r->first];

    r->first = (r->first + 1) % depth;
    r->n--;
    return value;
}

static void *thread_main(void *arg) {
    struct threads *t = arg;
    struct fetch *f = t->f;

    if (f->pool)
        pool_float(f->pool);
    pthread_mutex_lock(&t->lock);
    for (;;) {
        const struct fetch_read *read;
        uint32_t i;
        ssize_t n;

        while (t->todo.n == 0 && !t->stop)
            pthread_cond_wait(&t->begun, &t->lock);
        if (t->todo.n == 0)
            break;
        i = pop(&t->todo, f->depth);
        read = &f->read[i];
        pthread_mutex_unlock(&t->lock);
        n = pread(f->fd, read->to, read->size, (off_t)read->at);
        if (n < 0)
            n = -errno;
        pthread_mutex_lock(&t->lock);
        t->result[i] = n;
        push(&t->done, f->depth, i);
        pthread_cond_signal(&t->over);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

static void threads_free(struct threads *t) {
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_broadcast(&t->begun);
    pthread_mutex_unlock(&t->lock);
    while (t->n_thread > 0)
        (void)pthread_join(t->thread[--t->n_thread], NULL);
    pthread_cond_destroy(&t->begun);
    pthread_cond_destroy(&t->over);
    pthread_mutex_destroy(&t->lock);
    free(t->thread);
    free(t->result);
    free(t->todo.at);
    free(t->done.at);
    free(t);
}

static void init_lock(struct threads *t) {
    pthread_condattr_t attr;

    pthread_mutex_init(&t->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&t->begun, &attr);
    pthread_cond_init(&t->over, &attr);
    pthread_condattr_destroy(&attr);
}

/* As many as there may be reads; fewer when the system has no more. */
static int start(struct threads *t, uint32_t depth) {
    sigset_t all, old;
    int r = 0;

    sigfillset(&all); /* signals are for the threads that expect them */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (t->n_thread < depth && r == 0) {
        r = pthread_create(&t->thread[t->n_thread], NULL, thread_main, t);
        if (r == 0)
            (void)pthread_setname_np(t->thread[t->n_thread++], "fetch");
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return t->n_thread > 0 ? 0 : err_new(-r);
}

static int init(struct fetch *f) {
    struct threads *t = calloc(1, sizeof *t);
    int r = 0;

    if (!t)
        return err_new(-ENOMEM);
    t->f = f;
    init_lock(t);
    t->thread = calloc(f->depth, sizeof *t->thread);
    t->result = calloc(f->depth, sizeof *t->result);
    t->todo.at = calloc(f->depth, sizeof *t->todo.at);
    t->done.at = calloc(f->depth, sizeof *t->done.at);
    if (!t->thread || !t->result || !t->todo.at || !t->done.at)
        r = err_new(-ENOMEM);
    if (r == 0)
        r = start(t, f->depth);
    if (r < 0) {
        threads_free(t);
        return err_up(r);
    }
    f->state = t;
    return 0;
}

static void deinit(struct fetch *f) {
    threads_free(f->state);
}

static void begin(struct fetch *f, uint32_t read) {
    struct threads *t = f->state;

    pthread_mutex_lock(&t->lock);
    push(&t->todo, f->depth, read);
    pthread_cond_signal(&t->begun);
    pthread_mutex_unlock(&t->lock);
}

static bool next(struct fetch *f, uint32_t wait_msec, uint32_t *ret_read, int64_t *ret_n) {
    struct threads *t = f->state;
    struct timespec until;
    bool there;

    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)(wait_msec % 1000) * 1000000;
    until.tv_sec += (time_t)(wait_msec / 1000) + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&t->lock);
    while (t->done.n == 0 && wait_msec > 0)
        if (pthread_cond_timedwait(&t->over, &t->lock, &until) != 0)
            break;
    there = t->done.n > 0;
    if (there) {
        *ret_read = pop(&t->done, f->depth);
        *ret_n = t->result[*ret_read];
    }
    pthread_mutex_unlock(&t->lock);
    return there;
}

const struct fetch_way fetch_thread = { "threads", init, deinit, begin, next };
