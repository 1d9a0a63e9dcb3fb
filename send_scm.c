/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "send_scm.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* Integers go out as they lie in memory: the classic stream wants the host's long, version 0 wants
 * little-endian; the two agree on the hosts that this was tested on, and on no other. */
_Static_assert(sizeof(long) == 8 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
	       "the ivshmem protocol needs a 64-bit little-endian host");

/* An aligned control message with room for one descriptor. */
union control {
	struct cmsghdr header;
	char space[CMSG_SPACE(sizeof(int))];
};

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

int scm_send(int sock, struct mmsghdr *headers, const struct scm_msg *messages, size_t n)
{
	struct iovec iov[SCM_BATCH];
	union control control[SCM_BATCH];

	assert(n <= SCM_BATCH);
	for (size_t i = 0; i < n; i++)
		message_describe(&messages[i], &headers[i].msg_hdr, &iov[i], &control[i]);
	return sendmmsg(sock, headers, (unsigned int)n, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/*
 * Takes the descriptors out of a control message, to those that are in fds already; for what there
 * is no room, it is closed. Returns whether there was none too many.
 */
static bool descriptors_take(struct msghdr *header, int *fds, size_t *n, size_t room)
{
	bool fine = !(header->msg_flags & MSG_CTRUNC);

	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = 0; CMSG_LEN(at + sizeof(int)) <= c->cmsg_len; at += sizeof(int)) {
			int got;

			memcpy(&got, CMSG_DATA(c) + at, sizeof(got));
			if (*n < room) {
				fds[(*n)++] = got;
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
	size_t have = 0, descriptors = 0;
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
		fine = descriptors_take(&header, fd, &descriptors, 1) && fine;
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

/* The same as union control, with room for as many descriptors as the kernel takes. */
union large_control {
	struct cmsghdr header;
	char space[CMSG_SPACE(SCM_DESCRIPTORS * sizeof(int))];
};

bool scm_pass(int sock, const struct sockaddr_un *to, socklen_t to_length, const char *text,
	      size_t length, const int *fds, size_t n)
{
	union large_control control = {0};
	struct iovec iov = {.iov_base = (void *)text, .iov_len = length};
	struct msghdr header = {
		.msg_name = (void *)to, .msg_namelen = to_length, .msg_iov = &iov, .msg_iovlen = 1};

	assert(n <= SCM_DESCRIPTORS);
	if (n > 0) {
		control.header = (struct cmsghdr){
			.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS,
			.cmsg_len = CMSG_LEN(n * sizeof(*fds)),
		};
		memcpy(CMSG_DATA(&control.header), fds, n * sizeof(*fds));
		header.msg_control = &control;
		header.msg_controllen = CMSG_SPACE(n * sizeof(*fds));
	}
	return sendmsg(sock, &header, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)length;
}

int scm_peek(int sock, int *fds)
{
	union large_control control;
	char text[64];
	struct iovec iov = {.iov_base = text, .iov_len = sizeof(text)};
	struct msghdr header = {.msg_iov = &iov,
				.msg_iovlen = 1,
				.msg_control = &control,
				.msg_controllen = sizeof(control)};
	size_t n = 0;

	if (recvmsg(sock, &header, MSG_DONTWAIT | MSG_PEEK | MSG_CMSG_CLOEXEC) < 0)
		return -1;
	if (descriptors_take(&header, fds, &n, SCM_DESCRIPTORS))
		return (int)n;
	while (n > 0)
		close(fds[--n]);
	errno = EPROTO;
	return -1;
}
