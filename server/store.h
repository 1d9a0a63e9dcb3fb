/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * store: the memory: opened or made, sized, reserved, sealed, flushed, left behind
 *
 * Owns the descriptors store, lock and disk of the ledger, what is known of the object's identity
 * and size, and the child that flushes it. Others pass the memory on, and close none of it.
 */
#ifndef SERVER_STORE_H
#define SERVER_STORE_H

#include "server/ledger.h"
#include "server/options.h"

#include <stdbool.h>
#include <stdint.h>

struct store {
	const struct options *opt;
	struct ledger *ledger;
	bool created;   /* by this start */
	uint64_t found; /* bytes that the object had before this start */
};

/* Whether this descriptor is the object that we serve; if not, errno is ENOENT, or says why nobody
 * knows. */
bool store_is(const struct ledger *l, int fd);

/* Opens or creates the object and sizes it; store_leave undoes what a failed start has done. */
bool store_open(struct store *s);

/*
 * Takes the steps of a start that cannot be undone, once nothing else can fail: takes huge pages,
 * and shrinks the object.
 */
bool store_settle(struct store *s);

/* Leaves the object behind, as it was found if it is not to be kept. */
void store_leave(const struct store *s, bool keep);

/* Whether the object has the size still that it had when it was opened, and says it if not. */
bool store_has_size(const struct store *s);

/* Whether the object of the ledger stands at the path in our options; if not, errno is ENOENT, or
 * says why nobody knows. */
bool object_stands(const struct store *s);

/* Says what has become of the object under the nodes: that it was resized, or is not at its path.
 */
void store_report(const struct store *s);

/* Makes complete what was taken over of the object, and says what of our options cannot hold while
 * nodes have it. Returns false, having said why, without its lock. */
bool store_inherit(struct store *s);

/* Has the object flushed once more after a while, for it may not have been. */
void flush_again(struct store *s);

/* The process before has ended, and nobody hears of its child that flushed the object: it is to be
 * flushed again. */
void flush_inherit(struct store *s);

/* Starts to flush the object to disk if that is due. While a child is at work, the next waits. */
void flush_start(struct store *s);

/* The child that flushed has ended, with this status of waitpid(2). */
void flush_ended(struct store *s, int status);

/* Flushes the object for the last time, in a child all the same: a disk may be dead. */
void flush_finish(struct store *s);

#endif
