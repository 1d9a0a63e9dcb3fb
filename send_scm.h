/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Messages of the ivshmem protocol: an 8-byte integer with at most one descriptor (SCM_RIGHTS),
 * queued for one peer each and sent without ever waiting. This is the only code that touches
 * control messages.
 */
#ifndef SEND_SCM_H
#define SEND_SCM_H

#include <stddef.h>
#include <stdint.h>

/* The queue borrows fd: it must stay open until the message is sent or cut. -1: no descriptor. */
struct scm_msg {
	int64_t value;
	int fd;
};

/* Messages not yet sent, oldest first, in a ring of cap places, a power of two. All zero: empty. */
struct scm_queue {
	struct scm_msg *ring;
	size_t head, len, cap;
};

/* A queue that runs empty gives its memory back, but keeps room for this many messages. */
#define SCM_KEEP 1024

/* What a flush ended with. */
enum scm_result {
	SCM_EMPTY,   /* everything has been sent */
	SCM_BLOCKED, /* the socket is full: go on when select reports it writable */
	SCM_STARVED, /* the kernel lacks memory or descriptors in flight: go on after a while,
			select would report the socket writable all the time */
	SCM_DEAD,    /* the peer is gone: errno says why */
};

/*
 * Makes room for n messages more, so that the next n calls of scm_push cannot fail.
 * Returns 0, or -1 with errno ENOMEM and the queue as it was.
 */
int scm_reserve(struct scm_queue *q, size_t n);

/* Appends one message. Returns 0, or -1 with errno ENOMEM and the queue as it was. */
int scm_push(struct scm_queue *q, int64_t value, int fd);

/* The i-th unsent message, 0 being the oldest; i must be less than q->len. */
const struct scm_msg *scm_at(const struct scm_queue *q, size_t i);

/*
 * The peer with this id has left, who had the given number of vectors and whose join was queued
 * here in full. Removes those of its eventfds that are not sent yet; if any had been sent, appends
 * the one message that says it left (PROTOCOL.md, hazards 1 and 2: never a leave without a join).
 * Returns 0, or -1 with errno ENOMEM when that message found no room: scm_reserve it beforehand.
 */
int scm_cut(struct scm_queue *q, int64_t id, size_t vectors);

/*
 * Sends what the socket takes, oldest first, in batches, never waiting and never raising SIGPIPE.
 * Each message goes out whole with its own descriptor (ivshmem-spec, "Client-Server protocol").
 */
enum scm_result scm_flush(struct scm_queue *q, int sock);

/* Forgets all messages and frees the memory. */
void scm_free(struct scm_queue *q);

/*
 * Receives exactly one message, for clients and tests; *fd is -1 or a new close-on-exec descriptor
 * that the caller closes. Waits if the socket does, or once the first byte of a message is there.
 * Returns 1; 0 at the end of the stream; -1 with errno, EPROTO where the other side breaks the
 * protocol (a message cut short, or with more than one descriptor).
 */
int scm_recv(int sock, int64_t *value, int *fd);

#endif
