/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/listener.h"
#include "server/child.h"
#include "server/file.h"
#include "server/ledger.h"
#include "server/log.h"
#include "server/options.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <libgen.h>
#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct ucred client_process(int sock)
{
	struct ucred who = {.pid = 0, .uid = (uid_t)-1};
	socklen_t length = sizeof(who);

	getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &who, &length);
	return who;
}

struct sockaddr_un socket_address(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	assert(strlen(path) < sizeof(address.sun_path));
	strcpy(address.sun_path, path);
	return address;
}

/*
 * The inode of the socket that listens on a path, from the kernel's table; 0 if it is not there, or
 * not alone: others keep the path though their file has been removed.
 */
static unsigned long socket_inode(const char *path)
{
	FILE *table = fopen("/proc/net/unix", "re");
	char line[512], at[256];
	unsigned long inode, found = 0;
	unsigned int flags, count = 0;

	while (table && fgets(line, sizeof(line), table))
		if (sscanf(line, "%*s %*s %*s %x %*s %*s %lu %255[^\n]", &flags, &inode, at) == 3 &&
		    flags & 0x10000 /* it listens */ && !strcmp(at, path) && inode != found) {
			found = inode;
			count++;
		}
	if (table)
		fclose(table);
	return count == 1 ? found : 0;
}

/* The parent of a process; 0: there is no such process. */
static int process_parent(int pid)
{
	char path[32];
	int parent = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	f = fopen(path, "re");
	if (f && fscanf(f, "%*d (%*[^)]) %*c %d", &parent) != 1)
		parent = 0;
	if (f)
		fclose(f);
	return parent;
}

/*
 * The process that listens on a path, found without connecting to it: ", process N", or nothing
 * where we may not know. Its children, such as its standby, have the socket as well, and glob puts
 * processes into no order.
 */
static void socket_owner(const char *path, char *who, size_t room)
{
	unsigned long inode = 0;
	char wanted[64], link[64];
	glob_t fds = {0};
	int owner = 0;

	*who = '\0';
	for (int i = 0; i < 5 && !inode; i++) /* who comes and goes can hide it from a reader */
		inode = socket_inode(path);
	snprintf(wanted, sizeof(wanted), "socket:[%lu]", inode);
	if (!inode || glob("/proc/[0-9]*/fd/*", GLOB_NOSORT, NULL, &fds) != 0)
		return;
	for (size_t i = 0; i < fds.gl_pathc; i++) {
		ssize_t n = readlink(fds.gl_pathv[i], link, sizeof(link) - 1);
		int pid = atoi(fds.gl_pathv[i] + strlen("/proc/"));

		link[n < 0 ? 0 : n] = '\0';
		if (!strcmp(link, wanted) && (!owner || process_parent(owner) == pid))
			owner = pid;
	}
	globfree(&fds);
	if (owner)
		snprintf(who, room, ", process %d", owner);
}

/*
 * Finds out whether somebody has the socket at a path, by connecting a datagram socket, which no
 * server notices. Returns the errno: EPROTOTYPE where it lives, ECONNREFUSED where it is stale.
 */
static int socket_probe(const char *path)
{
	struct sockaddr_un address = socket_address(path);
	int probe = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), error = 0;

	if (probe < 0 || connect(probe, (struct sockaddr *)&address, sizeof(address)) < 0)
		error = errno;
	if (probe >= 0)
		close(probe);
	return error;
}

/*
 * Moves a stale socket out of the way, until it is known whether ours takes its place: to a name
 * that is free, or it is removed where there is none.
 */
static bool stale_set_aside(struct listener *n)
{
	const char *path = n->opt->socket;
	int error = EEXIST;

	for (int i = 0; i < 10 && error == EEXIST; i++) {
		if (asprintf(&n->stale, "%s.%d", path, (int)getpid() + i) < 0) {
			n->stale = NULL;
			break;
		}
		if (renameat2(AT_FDCWD, path, AT_FDCWD, n->stale, RENAME_NOREPLACE) == 0)
			return true;
		error = errno;
		free(n->stale);
		n->stale = NULL;
	}
	if ((error == EEXIST || error == EINVAL /* unknown to this file system */) &&
	    unlink(path) == 0)
		return true;
	errno = error;
	return path_fail("cannot replace the stale socket", path);
}

void stale_leave(struct listener *n, bool replaced)
{
	if (!n->stale)
		return;
	if (!replaced &&
	    renameat2(AT_FDCWD, n->stale, AT_FDCWD, n->opt->socket, RENAME_NOREPLACE) < 0) {
		replaced = true;
		if (errno != EEXIST)
			fail("cannot put back the stale socket %s", n->opt->socket);
	}
	if (replaced && unlink(n->stale) < 0)
		fail("cannot remove the stale socket %s", n->stale);
	free(n->stale);
	n->stale = NULL;
}

/* Makes the path free for our socket: sets a stale one aside, refuses everything else. */
static bool socket_path_free(struct listener *n)
{
	const char *path = n->opt->socket;
	struct stat st;
	int error;
	char who[32];

	if (lstat(path, &st) < 0)
		return errno == ENOENT || path_fail("cannot examine", path);
	if (!S_ISSOCK(st.st_mode))
		return complain("%s exists and is not a socket: choose another path with -%c", path,
				typed('p'));
	errno = error = socket_probe(path);
	if (error == 0 || error == EPROTOTYPE) {
		socket_owner(path, who, sizeof(who));
		return complain(
			"%s belongs to a server that is running%s: stop that server, or choose "
			"another path with -%c",
			path, who, typed('p'));
	}
	if (error != ECONNREFUSED && error != ENOENT)
		return path_fail("cannot find out whether a server listens on", path);
	return error == ENOENT || stale_set_aside(n);
}

/*
 * Locks the folder of the socket, so that two servers that start at the same moment do not take
 * each other's socket for a stale one; waits for others, a second at most. Returns a descriptor to
 * close, or -1: it goes without as well, where the folder cannot be read.
 */
static int socket_folder_lock(const char *path, bool wait)
{
	char *copy = strdup(path);
	int folder = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	int tries = wait ? 100 : 0, done = 0;

	while (folder >= 0 && (done = flock(folder, LOCK_EX | LOCK_NB)) < 0 &&
	       (errno == EINTR || (errno == EWOULDBLOCK && tries-- > 0)))
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	if (done < 0)
		fail("cannot lock the folder of %s, going on without that lock", path);
	free(copy);
	return folder;
}

bool socket_watch(struct listener *n)
{
	char *copy = strdup(n->opt->socket);
	bool done;
	int fd;

	if (n->ledger->watch < 0)
		n->ledger->watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	fd = n->ledger->watch;
	done = copy && fd >= 0 &&
	       inotify_add_watch(fd, n->opt->socket, IN_ATTRIB | IN_MOVE_SELF | IN_DONT_FOLLOW) >=
		       0;

	if (done) /* that of the folder is a help only: we may have no right to read it */
		inotify_add_watch(fd, dirname(copy), IN_MOVE_SELF | IN_ONLYDIR);
	free(copy);
	return done || fail("cannot watch %s: send HUP if somebody removes it", n->opt->socket);
}

/*
 * Whether a descriptor holds the file of a socket on which this process listens: whoever connects
 * there then sees that. If not, errno says why; ENOENT: there is no /proc. Our look waits to be
 * accepted then, for client_accept to pass over.
 */
static bool socket_is_ours(int held)
{
	struct sockaddr_un address = socket_address(descriptor_path(held).text);
	int look = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), error = 0;

	if (look < 0 || connect(look, (struct sockaddr *)&address, sizeof(address)) < 0)
		error = errno;
	else if (client_process(look).pid != getpid())
		error = ECONNREFUSED;
	if (look >= 0)
		close(look);
	errno = error;
	return error == 0;
}

/*
 * Lets the group connect, to our own socket alone: whoever may write to its folder can have put
 * something else there. *foreign: so it is.
 */
static bool socket_admit(const struct listener *n, int held, bool *foreign)
{
	const char *path = n->opt->socket;

	if (n->ledger->group == NOBODY)
		return true;
	if (socket_is_ours(held))
		return group_admit(n->opt, n->ledger->group, held, path);
	if (errno == ENOENT)
		return group_leave_out(n->opt, path);
	*foreign = errno == ECONNREFUSED || errno == EPROTOTYPE;
	if (!*foreign)
		return fail("cannot find out whether %s is ours", path);
	return complain("%s was replaced while it was being made: choose a folder that only uid %u "
			"may write to",
			path, geteuid());
}

/* Creates the socket and listens: first only for ourselves, whatever the umask. */
static bool socket_bind(struct listener *n, int listener)
{
	const char *path = n->opt->socket;
	struct sockaddr_un address = socket_address(path);
	mode_t mask = umask(0177);
	int error = bind(listener, (struct sockaddr *)&address, sizeof(address)), held;
	struct stat st;
	bool known, done, foreign = false;

	umask(mask);
	if (error < 0)
		return path_fail("cannot create socket", path);
	held = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	known = held >= 0 ? fstat(held, &st) == 0 : lstat(path, &st) == 0;
	done = ((held >= 0 && known) || fail("cannot examine %s", path)) &&
	       (listen(listener, SOMAXCONN) == 0 || fail("cannot listen on %s", path)) &&
	       socket_admit(n, held, &foreign);
	if (held >= 0)
		close(held);
	if (done) {
		n->ledger->socket_dev = st.st_dev;
		n->ledger->socket_ino = st.st_ino;
	} else if (known && !foreign) {
		path_remove(path, st.st_dev, st.st_ino);
	}
	return done;
}

bool socket_make(struct listener *n, int32_t *fd)
{
	int folder = socket_folder_lock(n->opt->socket, n->ledger->listener < 0);
	bool done;

	*fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	done = (*fd >= 0 || fail("cannot create a socket")) && socket_path_free(n) &&
	       socket_bind(n, *fd);
	if (!done)
		stale_leave(n, false);
	if (folder >= 0)
		close(folder);
	return done;
}

bool socket_stands(const struct listener *n)
{
	struct stat st;

	if (!n->ledger->socket_ino)
		return true;
	if (lstat(n->opt->socket, &st) < 0)
		return false;
	errno = ENOENT;
	return st.st_dev == n->ledger->socket_dev && st.st_ino == n->ledger->socket_ino;
}

void socket_remove(struct listener *n)
{
	if (!n->ledger->socket_ino)
		return;
	if (!path_remove(n->opt->socket, n->ledger->socket_dev, n->ledger->socket_ino) &&
	    errno != ENOENT)
		fail("cannot remove socket %s", n->opt->socket);
	n->ledger->socket_ino = 0;
	shutdown(n->ledger->listener, SHUT_RDWR);
}

/* The path of a listening socket, "@name" where it is no file; the caller frees it. NULL with
 * errno. */
static char *listener_path(int fd)
{
	struct sockaddr_un address = {0};
	socklen_t length = sizeof(address) - 1; /* a 0 stays behind it */

	if (getsockname(fd, (struct sockaddr *)&address, &length) < 0)
		return NULL;
	if (!address.sun_path[0])
		address.sun_path[0] = '@';
	return strdup(address.sun_path);
}

void look_start(struct listener *n)
{
	pid_t child;

	if (n->looker || !n->ledger->socket_ino)
		return;
	child = child_start("look after the socket");
	if (child == 0) {
		close_range(0, UINT_MAX, 0); /* what is ours must not stay open here */
		_exit(socket_stands(n) ? EXIT_SUCCESS : EXIT_FAILURE);
	}
	n->looker = child > 0 ? child : 0;
}

void look_ended(struct listener *n, int status)
{
	n->looker = 0;
	n->doubted |= WIFEXITED(status) && WEXITSTATUS(status) == EXIT_FAILURE;
	if (n->doubted)
		timer_start(n->ledger, TIMER_SOCKET, 0);
}

bool is_listener(int fd)
{
	static const int options[] = {SO_DOMAIN, SO_TYPE, SO_ACCEPTCONN};
	static const int wanted[] = {AF_UNIX, SOCK_STREAM, 1};
	socklen_t length = sizeof(int);
	int value;

	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		if (getsockopt(fd, SOL_SOCKET, options[i], &value, &length) < 0 ||
		    value != wanted[i])
			return false;
	return true;
}

void listener_identify(struct listener *n)
{
	struct ledger *l = n->ledger;
	char *path = listener_path(l->listener);
	struct stat ours, file;

	l->socket_ino = SOCKET_NOWHERE;
	if (path && fstat(l->listener, &ours) == 0 && socket_inode(path) == ours.st_ino &&
	    lstat(path, &file) == 0 && S_ISSOCK(file.st_mode)) {
		l->socket_dev = file.st_dev;
		l->socket_ino = file.st_ino;
		l->group = file.st_mode & S_IWGRP ? file.st_gid : NOBODY;
	}
	free(path);
}

void socket_name(struct listener *n)
{
	const char **named = &n->opt->socket;
	char *path = listener_path(n->ledger->listener);

	if (path && strcmp(path, *named) != 0) {
		say("listening on %s, which the supervisor has passed, and not on %s", path,
		    *named);
		*named = path;
	} else {
		free(path);
	}
}

void listener_forsake(struct listener *n)
{
	const char *wanted = n->opt->socket;
	char *path = listener_path(n->ledger->listener);

	if (path)
		n->opt->socket = path;
	socket_remove(n);
	n->opt->socket = wanted;
	n->ledger->socket_ino = SOCKET_NOWHERE;
	free(path);
}

bool listener_fits(const struct listener *n, uint32_t group)
{
	char *path = listener_path(n->ledger->listener);
	struct pollfd ended = {.fd = n->ledger->listener};
	bool fits = path && !strcmp(path, n->opt->socket) && n->ledger->group == group &&
		    socket_stands(n) && socket_probe(path) == EPROTOTYPE && poll(&ended, 1, 0) == 0;

	free(path);
	return fits;
}
