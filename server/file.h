/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * file: files that are held: locked, given to a group, removed only if they are still ours
 *
 * The object is such a file, and so is the pidfile, which lives here as a whole.
 */
#ifndef SERVER_FILE_H
#define SERVER_FILE_H

#include "server/ledger.h"
#include "server/log.h"
#include "server/options.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

struct pidfile {
	const struct options *opt;
	struct ledger *ledger;
	bool created;   /* by this start */
	bool written;   /* and what it had may no longer stand there */
	char found[32]; /* what stood there before */
};

/*
 * Finds the group of -g, a name or number, or the default. Without -g, or where nobody knows, only
 * our own user may connect. This may ask a network, but not for what /etc/group has. A group that
 * does not exist ends the program, as a mistake. Returns false, having said why, where -g cannot be
 * looked up.
 */
bool group_find(const struct options *o, gid_t *gid);

/* Whether this very file stands at the path; if not, errno is ENOENT, or says why nobody knows. */
bool file_stands_at(int fd, const char *path);

/*
 * Removes what stands at a path if it is this very file; if not, errno is ENOENT, or says why
 * nobody knows. It looks and removes in one folder, wherever the path may lead in between; where no
 * descriptor is left for that, by the path.
 */
bool path_remove(const char *path, uint64_t dev, uint64_t ino);

/* Removes the path of a file of ours, if that still stands there. */
void file_remove(int fd, const char *path);

/* The path by which the file that a descriptor holds is reached, and no other, whatever has become
 * of its own path. */
struct text descriptor_path(int fd);

/* Says what cannot be done with a path and, where that is for want of permission, what helps. */
bool path_fail(const char *what, const char *path);

/*
 * Opens a regular file, or creates it with the mode (then *created), and locks it until *fd is
 * closed. Returns false, having said why; but if somebody else has the lock, *taken, for the caller
 * to say it, with file_holder(*fd).
 */
bool file_claim(const char *path, int flags, mode_t mode, int32_t *fd, bool *created, bool *taken);

/* Leaves the group out where what we have made cannot be reached but by its path, at which somebody
 * may have put something else. Returns whether that will do. */
bool group_leave_out(const struct options *o, const char *path);

/*
 * Lets the group in: to the file that a descriptor holds, wherever its path leads by now. Until
 * then only the server's own user can open it. The default group is left out where we may not
 * assign it. NOBODY: nobody is to be let in.
 */
bool group_admit(const struct options *o, gid_t group, int fd, const char *path);

/* What a process is called, fit for a line of the log between parentheses; empty where nobody
 * knows. */
struct text process_name(int pid);

/*
 * By whom a file is locked, where it is not by us: "served by another server, process N", with the
 * word that is given; "locked by another program, process N (name)"; or less, as far as we may know
 * it. Servers take both kinds of lock, one after the other.
 */
struct text file_holder(int fd, const char *held);

/*
 * Takes over the lock of a file from a process that has died and shared its descriptors, so that
 * the kernel names us to those who ask for the holder; it has never been free. -1: no file.
 */
void file_inherit(int fd, const char *path);

/* Opens and locks the pidfile; a file that holds anything but a number is left alone. */
bool pidfile_claim(struct pidfile *p);

/* Writes our process ID into the pidfile, which it claims first where that has not been done.
 * Returns false, having said why. */
bool pidfile_write(struct pidfile *p);

/* Writes the pidfile once more, where the process that did so has died. */
void pidfile_inherit(struct pidfile *p);

/* Removes the pidfile; one that a start that fails has found is left as it was. */
void pidfile_remove(const struct pidfile *p, bool keep);

/* Goes on without a pidfile that failed, if nobody has asked for it. */
bool pidfile_forgo(struct pidfile *p);

#endif
