/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * server: all rooms together
 *
 * Only the program and what puts a whole server together again (takeover) know all of it. A room
 * gets its own structure, in which it finds those of the rooms below that it uses.
 */
#ifndef SERVER_SERVER_H
#define SERVER_SERVER_H

#include "server/client.h"
#include "server/descriptor.h"
#include "server/file.h"
#include "server/ledger.h"
#include "server/listener.h"
#include "server/mesh.h"
#include "server/options.h"
#include "server/restart.h"
#include "server/standby.h"
#include "server/status.h"
#include "server/store.h"
#include "server/supervisor.h"

struct server {
	struct options opt;
	struct ledger *ledger;
	struct reserve reserve;
	struct pidfile pidfile;
	struct store store;
	struct listener listener;
	struct supervisor supervisor;
	struct mesh mesh;
	struct status status;
	struct clients clients;
	struct standby standby;
	struct restart restart;
	int parent;         /* the pipe to a parent that waits until we are ready; else -1 */
	int64_t stop_at;    /* when to end at the latest; 0: not ending */
	bool handover;      /* and a successor is to take over */
	bool leave_waiting; /* who waits to be accepted then is not ours to serve */
};

/* Connects the rooms with each other. */
void server_connect(struct server *s);

/* Has all rooms work with this ledger. */
void server_use(struct server *s, struct ledger *l);

#endif
