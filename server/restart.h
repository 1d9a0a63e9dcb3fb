/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * restart: the same process, another program
 *
 * Upon HUP the process executes the program that is now on disk, which takes over all that is open,
 * and the ledger. First a child tries whether that program can be executed, takes our options and
 * knows our ledger: exec cannot be undone, and a program that fails then would take the nodes'
 * server with it.
 */
#ifndef SERVER_RESTART_H
#define SERVER_RESTART_H

#include "server/ledger.h"
#include "server/mesh.h"
#include "server/supervisor.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/select.h>
#include <sys/stat.h>

struct restart {
	struct ledger *ledger;
	struct supervisor *supervisor;
	struct mesh *mesh;
	char **argv;
	const char *program; /* absolute path of what HUP executes */
	int32_t trial;       /* the child that tries the program on disk; 0: none */
	struct stat tried;   /* that program, as it was before; zeroes: there was none */
};

#define LEDGER_VARIABLE "TM_IVSHMEM_SERVER_STATE" /* from one image of the program to the next */
#define TRIAL_MS        10000 /* that a program gets to say that it can take over */

/* The status with which a program says that it can take over; no other program is likely to. */
#define CAN_TAKE_OVER 86

/*
 * The absolute path of this program, as it was started: that is where an upgrade puts the next one.
 * A program that was started by a descriptor is found by the kernel's word for it. NULL with errno;
 * stays allocated.
 */
char *program_path(void);

/* Lets everything that is served survive an exec, or not. Returns false if any is not open. */
bool descriptors_keep(struct restart *r, bool keep);

/* Closes all but what is served, these sockets, and stdin, stdout and stderr: the process that had
 * the rest has died. */
void descriptors_sweep(const struct restart *r, const fd_set *more);

/* Kills the program that is being tried, if there is one, with all that it has started. */
void trial_kill(struct restart *r);

/* Whether the program on disk is the one that runs. */
bool program_runs(const struct restart *r);

/* Tries whether the program on disk can take over. */
void trial_start(struct restart *r);

/*
 * The trial has ended, with this status of waitpid(2): executes the program if it can take over,
 * and that is wanted still. Returns only if not, having said why; or if another program stands on
 * disk by now, having that tried.
 */
void trial_ended(struct restart *r, int status, bool wanted);

#endif
