/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The command status: what a server serves, and who is there, asked without being a node. The
 * server's answer is JSON, ivshmem_protocol(7), "STATUS"; people get a table of it. This room owns
 * nothing.
 */
#ifndef CLIENT_STATUS_H
#define CLIENT_STATUS_H

#include <stdbool.h>
#include <stdint.h>

#define SIZE_TEXT 32 /* bytes that a size in words needs */

/* A size as people read it, like the server's log: in the largest unit of which it is a multiple.
 * Returns text. */
const char *size_text(uint64_t bytes, char *text);

/* What of the server's answer is shown, and how often. */
struct look {
	const char *path; /* of the server's socket */
	bool verbose;     /* its message is reported */
	bool json;        /* as it comes, for programs */
	int64_t every_ms; /* 0: once */
};

/*
 * Asks, and shows the answer; again and again, if so, until the program is ended, also while there
 * is no server. Returns the status to end with. Where there is no server from the beginning, or one
 * that cannot tell, the client ends.
 */
int status(const struct look *l);

#endif
