/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A crowd: all the strict clients of one server, in the order in which they connected. They come
 * and go, and have to know exactly who is there. What goes wrong fails the test that runs.
 *
 *	crowd_at(server.socket, server.log);
 *	...
 *	somebody_joins((struct client_options){.vectors = 2, .keep = true});
 *	somebody_connects((struct client_options){.vectors = 2, .keep = true});
 *	everybody_agrees();
 *	somebody_goes(0);
 *	everybody_agrees();
 *	everybody_goes();
 */
#ifndef CROWD_H
#define CROWD_H

#include "tests/lib/testing.h"

#include <stdbool.h>
#include <stddef.h>

#define CLIENTS_MAX 1100

/* Those who are there, also who has been greeted by nobody yet; the places behind them are zero. */
extern struct client clients[CLIENTS_MAX];
extern size_t count;

/*
 * Says where they connect, and what file has the log, whose end is shown when something goes wrong;
 * NULL: none has it. Both are read when they are needed, and may change until then.
 */
void crowd_at(const char *socket, const char *log);

/* Somebody connects, and reads nothing yet. Returns him, who stands in the last place. */
struct client *somebody_connects(struct client_options options);

/* The same, and he is greeted; the others read nothing. */
struct client *somebody_is_greeted(struct client_options options);

/* The same, and all the others have been told. Without vectors, nobody is told anything. */
struct client *somebody_joins(struct client_options options);

/* The one in that place closes the connection, and those behind him move up. */
void somebody_goes(size_t i);

/* All close their connections. */
void everybody_goes(void);

/* The server closes all connections, and those who had them go. */
void everybody_is_let_go(void);

/* Lets n of them read, from that place on, until the condition holds for each (clients_drive). */
void some_drive(size_t from, size_t n, client_condition *done, const void *argument);

/* The same for all. */
void everybody(client_condition *done, const void *argument);

/* A condition: one of them knows exactly the others, each with all its vectors. Without vectors,
 * there is nothing to know. */
bool client_agrees(const struct client *c, const void *unused);

/*
 * All agree, which they are driven to, and have one memory. Each rings each vector of each, himself
 * included: it is heard there, and nowhere else. All must keep their descriptors, and no bell may
 * be pending.
 */
void everybody_agrees(void);

#endif
