/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Messages of the ivshmem protocol: an 8-byte integer with at most one descriptor (SCM_RIGHTS).
 * This is the only code that touches control messages.
 */
#ifndef SEND_SCM_H
#define SEND_SCM_H

#include <stddef.h>
#include <stdint.h>

/* fd is borrowed: it must be open while the message is sent. -1: no descriptor. */
struct scm_msg {
	int64_t value;
	int fd;
};

/* Messages that go out in one call, at most; more would make a message no cheaper. */
#define SCM_BATCH 64

/*
 * Sends up to SCM_BATCH messages, never waiting and never raising SIGPIPE. Each goes out whole,
 * with its own descriptor (ivshmem-spec, "Client-Server protocol"). Returns how many of the n were
 * taken, less than n where the socket, or the kernel, had no room for more: the next call says
 * which; or -1 with errno if not even the first was taken.
 */
int scm_send(int sock, const struct scm_msg *messages, size_t n);

/*
 * Receives exactly one message, for clients and tests; *fd is -1 or a new close-on-exec descriptor
 * that the caller closes. Waits if the socket does, or once the first byte of a message is there.
 * Returns 1; 0 at the end of the stream; -1 with errno, EPROTO where the other side breaks the
 * protocol (a message cut short, or with more than one descriptor).
 */
int scm_recv(int sock, int64_t *value, int *fd);

#endif
