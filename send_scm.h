/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Messages of the ivshmem protocol: an 8-byte integer with at most one descriptor (SCM_RIGHTS).
 * This is the only code that touches control messages.
 */
#ifndef SEND_SCM_H
#define SEND_SCM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

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
 *
 * headers is the caller's, one for each message. The kernel writes msg_len there as soon as that
 * message has gone out, and a process is not killed between the two: who has set them to zero
 * before, in memory that outlives him, has left behind how many have gone out.
 */
int scm_send(int sock, struct mmsghdr *headers, const struct scm_msg *messages, size_t n);

/*
 * Receives exactly one message, for clients and tests; *fd is -1 or a new close-on-exec descriptor
 * that the caller closes. Waits if the socket does, or once the first byte of a message is there.
 * Returns 1; 0 at the end of the stream; -1 with errno, EPROTO where the other side breaks the
 * protocol (a message cut short, or with more than one descriptor).
 */
int scm_recv(int sock, int64_t *value, int *fd);

/* Descriptors in one datagram, at most: what the kernel allows. */
#define SCM_DESCRIPTORS 253

/*
 * Sends one datagram of length bytes with n descriptors, at most SCM_DESCRIPTORS, to an address or,
 * where to is NULL, to the other end of a connected socket. Never waits and never raises SIGPIPE.
 * Returns false with errno; EAGAIN: there is no room.
 */
bool scm_pass(int sock, const struct sockaddr_un *to, socklen_t to_length, const char *text,
	      size_t length, const int *fds, size_t n);

/*
 * Opens the descriptors of the next datagram, and leaves that in the queue; "next" moves on by
 * SO_PEEK_OFF, which the caller sets. fds has room for SCM_DESCRIPTORS; they are close-on-exec, and
 * the caller closes them. Never waits. Returns how many there are, 0 at the end; -1 with errno.
 */
int scm_peek(int sock, int *fds);

#endif
