/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "client/clock.h"
#include "client/report.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <time.h>

int64_t clock_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void polls_wait(struct pollfd *polls, size_t n, int64_t ms)
{
	if (poll(polls, n, ms > INT_MAX ? INT_MAX : (int)ms) < 0 && errno != EINTR)
		quit(1, "cannot wait: %s", strerror(errno));
}
