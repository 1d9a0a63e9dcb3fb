/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The connection to the server's socket; this room owns nothing.
 */
#ifndef CLIENT_CONNECT_H
#define CLIENT_CONNECT_H

#include <stdint.h>

/*
 * Connects to the socket at a path, which fits into a sun_path; where as many wait to be accepted
 * as may, for patience ms at most. purpose: what the own end is bound to, an abstract address that
 * begins with it; NULL: it has none, as a node's. Returns a socket that does not block; -1 with
 * why, WHY_SIZE bytes, and errno.
 */
int server_connect(const char *path, const char *purpose, int64_t patience, char *why);

#endif
