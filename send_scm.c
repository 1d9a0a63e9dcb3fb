/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "send_scm.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* Integers go out as they lie in memory: the classic stream wants the host's long, version 0 wants
 * little-endian; the two agree on the hosts that this was tested on, and on no other. */
_Static_assert(sizeof(long) == 8 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
	       "the ivshmem protocol needs a 64-bit little-endian host");

/* Larger batches make a message no cheaper. */
#define BATCH 64

/* The first ring: most queues never need another. */
#define CAP_MIN 64

/* An aligned control message with room for one descriptor. */
union control {
	struct cmsghdr header;
	char space[CMSG_SPACE(sizeof(int))];
};

static struct scm_msg *queue_place(const struct scm_queue *q, size_t i)
{
	return &q->ring[(q->head + i) & (q->cap - 1)];
}

/* Moves the messages to a ring of cap places. Returns 0, or -1 with errno ENOMEM. */
static int queue_resize(struct scm_queue *q, size_t cap)
{
	struct scm_msg *ring = reallocarray(NULL, cap, sizeof(*ring));

	if (!ring)
		return -1;
	for (size_t i = 0; i < q->len; i++)
		ring[i] = *queue_place(q, i);
	free(q->ring);
	*q = (struct scm_queue){.ring = ring, .len = q->len, .cap = cap};
	return 0;
}

int scm_reserve(struct scm_queue *q, size_t n)
{
	size_t cap = q->cap ? q->cap : CAP_MIN;

	while (cap - q->len < n)
		cap *= 2;
	return cap == q->cap ? 0 : queue_resize(q, cap);
}

int scm_push(struct scm_queue *q, int64_t value, int fd)
{
	if (scm_reserve(q, 1) < 0)
		return -1;
	*queue_place(q, q->len++) = (struct scm_msg){.value = value, .fd = fd};
	return 0;
}

const struct scm_msg *scm_at(const struct scm_queue *q, size_t i)
{
	assert(i < q->len);
	return queue_place(q, i);
}

int scm_cut(struct scm_queue *q, int64_t id, size_t vectors)
{
	size_t kept = 0, unsent;

	for (size_t i = 0; i < q->len; i++) {
		const struct scm_msg *m = queue_place(q, i);

		if (m->value != id || m->fd < 0)
			*queue_place(q, kept++) = *m;
	}
	unsent = q->len - kept;
	q->len = kept;
	assert(unsent <= vectors);
	return unsent < vectors ? scm_push(q, id, -1) : 0;
}

/* Describes one message to the kernel; iov and control must live as long as header. */
static void message_describe(const struct scm_msg *m, struct msghdr *header, struct iovec *iov,
			     union control *control)
{
	*iov = (struct iovec){.iov_base = (void *)&m->value, .iov_len = sizeof(m->value)};
	*header = (struct msghdr){.msg_iov = iov, .msg_iovlen = 1};
	if (m->fd < 0)
		return;
	control->header = (struct cmsghdr){
		.cmsg_level = SOL_SOCKET,
		.cmsg_type = SCM_RIGHTS,
		.cmsg_len = CMSG_LEN(sizeof(m->fd)),
	};
	memcpy(CMSG_DATA(&control->header), &m->fd, sizeof(m->fd));
	header->msg_control = control;
	header->msg_controllen = sizeof(*control);
}

/* What an errno of sendmmsg means for the peer. */
static enum scm_result send_failure(int error)
{
	switch (error) {
	case EAGAIN:
	case EINTR:
		return SCM_BLOCKED;
	case ETOOMANYREFS: /* unread descriptors, of all our sockets together */
	case ENOBUFS:
	case ENOMEM:
		return SCM_STARVED;
	default:
		return SCM_DEAD;
	}
}

enum scm_result scm_flush(struct scm_queue *q, int sock)
{
	struct mmsghdr batch[BATCH];
	struct iovec iov[BATCH];
	union control control[BATCH];

	while (q->len > 0) {
		size_t n = q->len < BATCH ? q->len : BATCH;
		int sent;

		for (size_t i = 0; i < n; i++)
			message_describe(queue_place(q, i), &batch[i].msg_hdr, &iov[i],
					 &control[i]);
		sent = sendmmsg(sock, batch, (unsigned int)n, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent < 0)
			return send_failure(errno);
		q->head = (q->head + (size_t)sent) & (q->cap - 1);
		q->len -= (size_t)sent;
		if ((size_t)sent < n)
			return SCM_BLOCKED;
	}
	if (q->cap > SCM_KEEP)
		queue_resize(q, SCM_KEEP); /* if that fails, the larger ring serves as well */
	return SCM_EMPTY;
}

void scm_free(struct scm_queue *q)
{
	free(q->ring);
	*q = (struct scm_queue){0};
}

/*
 * Takes the descriptors out of a control message: the first into *fd if that is still -1, any other
 * is closed. Returns whether there was none too many.
 */
static bool descriptors_take(struct msghdr *header, int *fd)
{
	bool fine = !(header->msg_flags & MSG_CTRUNC);

	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = 0; CMSG_LEN(at + sizeof(int)) <= c->cmsg_len; at += sizeof(int)) {
			int got;

			memcpy(&got, CMSG_DATA(c) + at, sizeof(got));
			if (*fd < 0) {
				*fd = got;
			} else {
				close(got);
				fine = false;
			}
		}
	}
	return fine;
}

int scm_recv(int sock, int64_t *value, int *fd)
{
	char *bytes = (char *)value;
	size_t have = 0;
	bool fine = true;

	*fd = -1;
	while (have < sizeof(*value)) {
		union control control;
		struct iovec iov = {.iov_base = bytes + have, .iov_len = sizeof(*value) - have};
		struct msghdr header = {.msg_iov = &iov,
					.msg_iovlen = 1,
					.msg_control = &control,
					.msg_controllen = sizeof(control)};
		ssize_t n = recvmsg(sock, &header, MSG_CMSG_CLOEXEC);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN && have > 0) {
			poll(&(struct pollfd){.fd = sock, .events = POLLIN}, 1, -1);
			continue;
		}
		if (n < 0 && have == 0)
			return -1;
		if (n == 0 && have == 0)
			return 0;
		if (n <= 0)
			break;
		fine = descriptors_take(&header, fd) && fine;
		have += (size_t)n;
	}
	if (have == sizeof(*value) && fine)
		return 1;
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
	errno = EPROTO;
	return -1;
}
