/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * takeover: another process
 *
 * What the supervisor has kept are the ledger and the descriptors; the numbers that these had are
 * in the ledger. A peer's socket gets its number again, since that is where the peer stands, and
 * all else makes room for it. What fits is only looked at, not taken out of what the supervisor
 * keeps, so the next process finds the same if this one dies as well.
 */
#ifndef SERVER_TAKEOVER_H
#define SERVER_TAKEOVER_H

#include "server/passed.h"
#include "server/server.h"

#include <stdbool.h>
#include <string.h>

/*
 * Logs the nodes that are disconnected, once it is certain that they are: they stand in the old
 * ledger, and the supervisor is to drop all that it has stored of them.
 */
void nodes_let_go(const struct passed *in);

/*
 * Takes over what has been passed, where a node is connected and our options fit the nodes; else
 * makes a ledger for a start.
 */
bool server_inherit(struct server *s, struct passed *in);

/* Opens the object that our options name, though the server before may have had it: the supervisor
 * has that one's lock still. */
bool store_open_anew(struct server *s, const struct passed *in);

#endif
