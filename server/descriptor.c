/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/descriptor.h"
#include "server/log.h"

#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

int spare_open(void)
{
	int fd;

	while ((fd = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0 && fd <= STDERR_FILENO)
		fcntl(fd, F_SETFD, 0);
	if (fd < 0)
		fail("cannot open /dev/null");
	return fd;
}

int descriptor_raise(int fd, int from)
{
	int high = fd < 0 || fd >= from ? fd : fcntl(fd, F_DUPFD_CLOEXEC, from);

	if (high < 0 || high == fd)
		return fd;
	close(fd);
	return high;
}

int descriptor_lower(int fd)
{
	int low = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	if (low < 0)
		return fd;
	close(fd);
	return low;
}

void spare_close(struct reserve *r)
{
	if (r->spare >= 0)
		close(r->spare);
	r->spare = -1;
}

void reserve_fill(struct reserve *r)
{
	if (r->null < 0)
		r->null = spare_open();
	if (r->spare < 0)
		r->spare = spare_open();
}

bool reserve_give(struct reserve *r)
{
	int *given = r->spare >= 0 ? &r->spare : &r->null;

	if (*given < 0)
		return false;
	close(*given);
	*given = -1;
	return true;
}

void descriptor_limit_raise(void)
{
	struct rlimit limit, most;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0) {
		fail("cannot read the limit of open descriptors");
		return;
	}
	/* Where the kernel's own limit is, only trying shows: fs.nr_open need not be readable. */
	for (rlim_t n = 1 << 30; n > limit.rlim_max; n /= 2) {
		most = (struct rlimit){n, n};
		if (setrlimit(RLIMIT_NOFILE, &most) == 0)
			return;
	}
	most = (struct rlimit){limit.rlim_max, limit.rlim_max};
	if (limit.rlim_cur < limit.rlim_max && setrlimit(RLIMIT_NOFILE, &most) < 0)
		fail("cannot raise the limit of open descriptors to %ju",
		     (uintmax_t)limit.rlim_max);
}

void socket_buffer_limit(int sock)
{
	struct rlimit limit;
	rlim_t messages;
	int bytes;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	messages = limit.rlim_cur / 64;
	if (messages >= 278)
		return;
	bytes = (int)messages * 768 / 2;
	if (setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)) < 0)
		fail("cannot limit the buffer of a socket");
}
