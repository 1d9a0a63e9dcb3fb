/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * memory: how much of it there is
 *
 * Owns nothing: it reads what the kernel says of the machine and of the cgroups that we are in.
 */
#ifndef SERVER_MEMORY_H
#define SERVER_MEMORY_H

#include <limits.h>
#include <stdint.h>

/*
 * Bytes of memory that we can still get before the kernel kills processes for more, of the machine
 * and in each cgroup in which we are. *of gets what it is that has no more: "this machine", or the
 * folder of a cgroup.
 */
uint64_t memory_left(char of[PATH_MAX]);

#endif
