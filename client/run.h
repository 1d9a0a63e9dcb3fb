/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The command run: another program is a peer.
 *
 * It is a child, which gets the memory as a descriptor and two pipes of text lines: one tells it
 * what happens in the mesh, the other takes what it wants rung; ivshmem_client(1), "RUNNING A
 * PROGRAM", has the words. It must be able to read late or never, without memory growing here or
 * the server's stream standing still. So nothing is queued: a line is only made when the pipe has
 * room, from what then is true. Rings add up in the counter of the eventfd, which is not read
 * before; joins and leaves are the difference between who is there and of whom has been told
 * (news_next).
 *
 * This room owns the child, its pipes, and the signals that are passed on to it: they stay blocked.
 */
#ifndef CLIENT_RUN_H
#define CLIENT_RUN_H

#include <sys/resource.h>

struct mesh;

/*
 * Runs a program, arguments and NULL behind its name, with that limit of descriptors, until it
 * ends. The mesh has been joined, and nothing been asked of its news. Returns the status to end
 * with: the program's, or 128 and the number of the signal that ended it; 126 or 127 where it
 * cannot be executed. Where it cannot even be started, the client ends.
 */
int run(struct mesh *m, char **program, const struct rlimit *descriptors);

#endif
