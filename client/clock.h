/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Time, and waiting. All times are milliseconds; this room owns nothing.
 */
#ifndef CLIENT_CLOCK_H
#define CLIENT_CLOCK_H

#include <poll.h>
#include <stddef.h>
#include <stdint.h>

#define FOREVER (INT64_MAX / 2) /* as long as a wait can be: a moment may be added to it */

/* Now, on a clock that nobody sets. */
int64_t clock_now(void);

/*
 * Waits for one of n descriptors, at most ms, which is not negative. All revents are 0 before; it
 * may end early, and leave them so. Where the kernel refuses, the program ends.
 */
void polls_wait(struct pollfd *polls, size_t n, int64_t ms);

#endif
