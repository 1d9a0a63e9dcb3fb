/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who asks a server for its status, as any program can: ivshmem_protocol(7), "STATUS". */
#ifndef LOOK_H
#define LOOK_H

#include <stddef.h>

/* Connects from an address that says what for, and reads nothing. Returns the socket, or -1 with
 * errno. */
int look_ask(const char *path);

/*
 * Waits for the answer, and closes the socket. Returns the text, which the caller frees; NULL with
 * errno: 0 where the server closed the connection without an answer, ETIME where it said nothing or
 * did not close it, EPROTO where it sent anything else, or more.
 */
char *look_take(int sock);

/* Both. */
char *look(const char *path);

/* What the text says by that name, where that is a number and stands outside of the nodes; -1: it
 * does not. */
long look_number(const char *text, const char *name);

/* How many nodes it lists. */
size_t look_nodes(const char *text);

#endif
