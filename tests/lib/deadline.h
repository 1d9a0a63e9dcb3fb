/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Time limits for waiting: none of them is a measurement, each is far more than is ever needed. */
#ifndef DEADLINE_H
#define DEADLINE_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* Seconds after which a test no longer expects what it waits for. */
#ifndef PATIENCE
#define PATIENCE 120
#endif

/* Milliseconds on a clock that nobody sets. */
static inline int64_t clock_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* The moment, on that clock, that lies so many seconds ahead. */
static inline int64_t deadline_in(int seconds)
{
	return clock_ms() + (int64_t)seconds * 1000;
}

/* Sleeps a moment, between two looks at something. Returns whether the deadline is still ahead. */
static inline bool deadline_ahead(int64_t deadline)
{
	nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL);
	return clock_ms() < deadline;
}

#endif
