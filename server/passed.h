/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * passed: what a supervisor passes to a process that it starts (sd_listen_fds(3))
 *
 * Owns what has been passed until takeover has put it in its place: sorts it, and finds out whose
 * parcels these are.
 */
#ifndef SERVER_PASSED_H
#define SERVER_PASSED_H

#include "server/ledger.h"

#include <stdbool.h>
#include <stdint.h>

/* The parcel of a peer, which may have left, or may not have become one. */
struct parcel {
	uint64_t serial;
	int fd;      /* -1: done with */
	int sock;    /* where the peer stands; -1: nowhere */
	bool second; /* it has the second of its names */
	bool both;   /* and there is one by the other name, too */
};

/* What a supervisor passes to us; -1: nothing. */
struct passed {
	int own[OWNS];
	int listener; /* of a socket unit */
	size_t count;
	struct parcel *parcels;
	const struct parcel *ungreeted; /* that of a client still to be welcomed, or NULL */
	int waiting;                    /* his socket, for a start to welcome him */
	bool regained;                  /* the object was not passed, and has been opened again */
	bool nodes;                     /* somebody is there still */
	bool fits;                      /* and is taken over, since our options fit the nodes */
	const char *why;                /* if not: why nodes are disconnected */
	const struct ledger *old;       /* in which they stand then, or NULL */
};

/* How many descriptors have been passed to this very process, from 3 on (sd_listen_fds(3)). */
unsigned int passed_count(void);

/* Sorts what has been passed, so many descriptors. Returns false, having said why, where there is
 * something that cannot be used. The caller frees in->parcels. */
bool passed_sort(struct passed *in, unsigned int count);

/* Closes a parcel that is done with: the supervisor has it still. */
void parcel_close(struct parcel *parcel);

/* Finds out whose the parcels are, and whether any of these peers is there still. */
void parcels_find(const struct ledger *l, struct passed *in);

#endif
