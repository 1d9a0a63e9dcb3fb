/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * standby: a process that goes on where the server has died
 *
 * In the background the server has a child that is a copy of it and shares its table of
 * descriptors, so that no death closes any of them, or gives up a lock. It sleeps until the server
 * has died, and goes on with the ledger. Whatever must really end or close ends the standby first.
 *
 * Of several, the one that the ledger names goes on. When the server executes another program, its
 * table of descriptors becomes another, and the standby has the one before; that is as good until
 * the program has a standby of its own, and closes nothing before.
 * Owns these processes; the program lets one take the server's place.
 */
#ifndef SERVER_STANDBY_H
#define SERVER_STANDBY_H

#include "server/ledger.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct standby {
	struct ledger *ledger;
	char *title;  /* what ps shows of a process: its arguments, and what it may use behind them
		       */
	size_t room;  /* bytes of that */
	pid_t before; /* the standby in whose place another has been started; else 0 */
	pid_t server; /* in a standby: the process that has died */
	int64_t died_ms; /* and when, on the clock of now_ms */
};

/* Finds where the title is, before anybody moves argv. */
void standby_title(struct standby *b, char **argv);

/* Whether there is to be a standby at all. */
void standby_allow(struct standby *b, bool allow);

/* There is to be a standby from now on, if that is allowed; one that is there gives way to it. */
void standby_want(struct standby *b);

/*
 * Starts the standby when it is wanted. Returns false to the server. In the standby it returns once
 * the server has died, and then true: memory is as it was here, descriptors and ledger are as that
 * one has left them.
 */
bool standby_start(struct standby *b);

/*
 * Ends the standby that was there before the one that has been started. Returns whether there was
 * one: then what it had open has been closed, which gives up the locks that belong to a table of
 * descriptors, those of fcntl(2).
 */
bool standby_retire(struct standby *b);

/* Ends the standby, if there is one; it has ended when this returns. */
void standby_end(struct standby *b);

/* It has ended by itself, with this status of waitpid(2): has another started. */
void standby_ended(struct standby *b, int status);

/* Notes in the standby that the server has died. Returns whether it dies so often that it must be
 * given up, having said so. */
bool standby_despairs(struct standby *b);

#endif
