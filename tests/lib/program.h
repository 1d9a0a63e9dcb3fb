/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The program on the disk from which servers are started, which a test replaces under them. What
 * goes wrong fails the test that runs.
 *
 *	if (!program_begin("tm_ivshmem_server"))
 *		return 1;
 *	...
 *	program_put(tested);
 *	server_start(&server, args);
 *	program_put("/bin/false");
 */
#ifndef PROGRAM_H
#define PROGRAM_H

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

extern char program[PATH_MAX]; /* the path from which servers are started */
extern char tested[PATH_MAX];  /* the server under test: $SERVER as it was */

/*
 * Has servers started from this name in the test's folder, where nothing is put yet. Returns false
 * with a message on stderr.
 */
bool program_begin(const char *name);

/*
 * What a test begins with whose servers go to the background, where they become its children: its
 * seed, as many descriptors as there may be, and lines that come out one by one. Returns false with
 * a message on stderr.
 */
bool daemons_begin(unsigned int *seed);

/* Puts a copy of a file there, as a package manager would: who executes the old one goes on. */
void program_put(const char *from);

/* Whether the process runs the file that stands there now. */
bool program_runs(pid_t pid);

#endif
