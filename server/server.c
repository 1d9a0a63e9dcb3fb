/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/server.h"

void server_connect(struct server *s)
{
	s->pidfile.opt = s->store.opt = s->mesh.opt = s->clients.opt = &s->opt;
	s->listener.opt = &s->opt;
	s->supervisor.opt = &s->opt;
	s->status.opt = &s->opt;
	s->mesh.supervisor = s->restart.supervisor = &s->supervisor;
	s->clients.reserve = s->status.reserve = &s->reserve;
	s->clients.store = &s->store;
	s->clients.listener = &s->listener;
	s->clients.mesh = s->restart.mesh = s->status.mesh = &s->mesh;
	s->clients.status = &s->status;
}

void server_use(struct server *s, struct ledger *l)
{
	s->ledger = s->pidfile.ledger = s->store.ledger = s->listener.ledger = l;
	s->supervisor.ledger = s->mesh.ledger = s->clients.ledger = s->restart.ledger = l;
	s->standby.ledger = s->status.ledger = l;
}
