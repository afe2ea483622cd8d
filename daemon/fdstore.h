/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * fdstore - a memory file with weights, which the service manager keeps while we are away
 *
 * It comes back at the next start, under the name it was given; a name tells what it is and in
 * which version, and whatever has another one is given up. The memory is the service manager's as
 * much as ours: it is free only when both have let go. So it is given up whenever its weights are
 * not wanted any more, and, since an end for want of memory gives nothing back by itself, after
 * that as well (fdstore_after_stop()).
 *
 * Without a service manager nothing is kept.
 *
 * Owner:  the daemon thread.
 * Source: sd_pid_notify_with_fds(3) and FileDescriptorStoreMax= in systemd.service(5).
 */

#define FDSTORE_NAME "weights-1" /* the number is that of what we take it for */

/* Zero-initialised there is none. */
struct fdstore {
    int fd; /* 0: none */
};

/* Take @fd, which came under @name at start, or give it up. */
void fdstore_take(struct fdstore *s, const char *name, int fd);
/* From now on keep a copy of @fd, instead of what there is. */
void fdstore_put(struct fdstore *s, int fd);
/* Give up what there is. */
void fdstore_drop(struct fdstore *s);
/* Close our descriptor, and leave the service manager's. */
void fdstore_deinit(struct fdstore *s);

/* Called by a process that the service manager starts when the service has ended, with
 * $SERVICE_RESULT in its environment: give up what is kept if memory was short. */
void fdstore_after_stop(void);
