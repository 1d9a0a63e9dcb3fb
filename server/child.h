/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * child: processes of our own, which do what the loop would have to wait for
 *
 * Whoever starts one keeps its number, and hears from the program when it has ended
 * (children_reap). A child has a group of its own, with all that it starts.
 */
#ifndef SERVER_CHILD_H
#define SERVER_CHILD_H

#include <stdbool.h>
#include <sys/types.h>

/*
 * Starts a child. Returns 0 in the child, which must end by _exit or exec; its number to us; or -1,
 * having logged that no process could be started for this purpose.
 */
pid_t child_start(const char *purpose);

/*
 * Waits for a child when the server ends, with the signalfd signals; whoever sends another signal
 * to end it has waited long enough. Returns whether the child has ended, and *status then.
 */
bool child_wait(pid_t child, int signals, int *status);

#endif
