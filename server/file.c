/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/file.h"
#include "server/ledger.h"
#include "server/log.h"
#include "server/options.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <sys/xattr.h>
#include <unistd.h>

bool group_find(const struct options *o, gid_t *gid)
{
	const char *name = o->group ? o->group : DEFAULT_GROUP;
	struct group *group;
	uint64_t number;
	int error, file;
	char *end;

	do {
		errno = 0;
		group = getgrnam(name);
		error = errno;
	} while (!group && error == EINTR);
	if (!group && (file = open("/etc/group", O_RDONLY | O_CLOEXEC)) >= 0)
		close(file);
	else if (!group && errno != ENOENT)
		error = errno; /* which another source of groups may have hidden */
	*gid = group ? group->gr_gid : NOBODY;
	if (group)
		return true;
	if (o->group && digits_parse(name, &number, &end) && !*end && number < NOBODY) {
		*gid = (gid_t)number;
		return true;
	}
	/* This is what getgrnam(3) may say of a group that does not exist. */
	if (error == 0 || error == ENOENT || error == ESRCH || error == EBADF || error == EPERM) {
		if (o->group)
			usage("%s " VALUE ": there is no such group", option_name('g'), name);
		return true;
	}
	errno = error;
	if (o->group)
		return fail("cannot look up the group %s: give its number with -g", name);
	fail("cannot look up the group %s, so only the server's own user may connect (%s-g names "
	     "another group)",
	     name, own_name());
	return true;
}

bool file_stands_at(int fd, const char *path)
{
	struct stat ours, theirs;

	if (fstat(fd, &ours) < 0 || stat(path, &theirs) < 0)
		return false;
	errno = ENOENT;
	return ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
}

bool path_remove(const char *path, uint64_t dev, uint64_t ino)
{
	const char *name = strrchr(path, '/') + 1;
	char *copy = strndup(path, (size_t)(name - path));
	int folder = copy ? open(copy, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
	int at = folder < 0 ? AT_FDCWD : folder, error;
	struct stat st;

	if (folder < 0)
		name = path;
	errno = 0;
	if (fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) == 0) {
		if (st.st_dev != dev || st.st_ino != ino)
			errno = ENOENT;
		else if (unlinkat(at, name, 0) == 0)
			errno = 0;
	}
	error = errno;
	free(copy);
	if (folder >= 0)
		close(folder);
	errno = error;
	return error == 0;
}

void file_remove(int fd, const char *path)
{
	struct stat st;

	if (fstat(fd, &st) < 0 || (!path_remove(path, st.st_dev, st.st_ino) && errno != ENOENT))
		fail("cannot remove %s", path);
}

struct text descriptor_path(int fd)
{
	struct text path;

	snprintf(path.text, sizeof(path.text), "/proc/self/fd/%d", fd);
	return path;
}

bool path_fail(const char *what, const char *path)
{
	int error = errno;
	struct stat st;
	bool there = lstat(path, &st) == 0;

	errno = error;
	if (error != EACCES && error != EPERM)
		return fail("%s %s", what, path);
	if (there)
		return fail("%s %s, which belongs to uid %u: start the server as that user, or "
			    "choose another path",
			    what, path, st.st_uid);
	return fail("%s %s: choose a folder that uid %u may use", what, path, geteuid());
}

bool file_claim(const char *path, int flags, mode_t mode, int32_t *fd, bool *created, bool *taken)
{
	struct stat st;

	/* To open a device or a FIFO may do something: look first. */
	if (fstatat(AT_FDCWD, path, &st, flags & O_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0) == 0 &&
	    !S_ISREG(st.st_mode))
		return complain("cannot use %s: it is not a regular file; choose another path",
				path);
	flags |= O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	*fd = open(path, flags);
	if (*fd < 0 && errno == ENOENT) {
		*fd = open(path, flags | O_CREAT | O_EXCL, mode);
		*created = *fd >= 0;
		if (*fd < 0 && errno == EEXIST) /* somebody was quicker, or a link leads nowhere */
			*fd = open(path, flags);
		if (*fd < 0 && errno == ENOENT && lstat(path, &st) == 0)
			return complain("cannot use %s: it is a link to a file that does not "
					"exist; create that file, or remove the link",
					path);
	}
	if (*fd < 0)
		return path_fail("cannot open", path);
	if (flock(*fd, LOCK_EX | LOCK_NB) == 0 && file_stands_at(*fd, path)) {
		/* This kind of lock is that of QEMU's server, and tells others who has the file. */
		if (fcntl(*fd, F_SETLK, &(struct flock){.l_type = F_WRLCK}) == 0 ||
		    (errno != EAGAIN && errno != EACCES))
			return true;
		errno = EWOULDBLOCK;
	}
	*taken = errno == EWOULDBLOCK; /* even if we created it, it is theirs now */
	if (errno == ENOENT) {
		complain("%s was replaced while it was being opened: try again", path);
	} else if (!*taken) {
		fail("cannot lock %s", path);
		if (*created)
			file_remove(*fd, path);
	}
	*created = false;
	return false;
}

/* Whether an errno of chown says that this user, or this file system, cannot do it at all. */
static bool group_unassignable(int error)
{
	return error == EPERM || error == EACCES || error == EINVAL /* unknown to a container */ ||
	       error == ENOSYS || error == EOPNOTSUPP;
}

bool group_leave_out(const struct options *o, const char *path)
{
	complain(
		"%s is for uid %u alone: without /proc no group can be given access safely; mount /proc",
		path, geteuid());
	return !o->group;
}

bool group_admit(const struct options *o, gid_t group, int fd, const char *path)
{
	struct text held = descriptor_path(fd);

	if (group == NOBODY)
		return true;
	/* What a default ACL of the folder says of others would come true with the mode. */
	if (removexattr(held.text, "system.posix_acl_access") < 0 && errno != ENODATA &&
	    errno != EOPNOTSUPP)
		return errno == ENOENT
			       ? group_leave_out(o, path)
			       : fail("cannot remove from %s the ACL that its folder has given it",
				      path);
	if (chown(held.text, -1, group) < 0)
		return (!o->group && group_unassignable(errno)) ||
		       fail("cannot give %s to group %u, of which the server must be a member",
			    path, group);
	if (chmod(held.text, 0660) < 0)
		return fail("cannot give %s mode 0660", path);
	return true;
}

/*
 * The process that has locked a file with flock, from the kernel's table; 0 where that does not
 * say it.
 */
static int flock_holder(int fd)
{
	FILE *table = fopen("/proc/locks", "re");
	unsigned int major, minor;
	unsigned long inode;
	struct stat st;
	char line[128];
	int pid, found = 0;

	while (table && fstat(fd, &st) == 0 && !found && fgets(line, sizeof(line), table))
		if (sscanf(line, "%*d: FLOCK %*s %*s %d %x:%x:%lu", &pid, &major, &minor, &inode) ==
			    4 &&
		    major == major(st.st_dev) && minor == minor(st.st_dev) && inode == st.st_ino)
			found = pid;
	if (table)
		fclose(table);
	return found > 0 ? found : 0;
}

struct text process_name(int pid)
{
	struct text path, name = {""};
	ssize_t n = -1;
	int fd;

	snprintf(path.text, sizeof(path.text), "/proc/%d/comm", pid);
	fd = open(path.text, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = read(fd, name.text, 32);
		close(fd);
	}
	name.text[n > 0 ? n - 1 : 0] = '\0';  /* without the newline */
	for (char *at = name.text; *at; at++) /* whatever it calls itself, the line is ours */
		if (*at < ' ' || *at > '~' || *at == '(' || *at == ')')
			*at = '?';
	return name;
}

struct text file_holder(int fd, const char *held)
{
	struct flock lock = {.l_type = F_WRLCK};
	bool posix = fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
	int pid = posix && lock.l_pid > 0 ? lock.l_pid : flock_holder(fd);
	struct text name = process_name(pid), who;
	bool server = !*name.text ? posix
				  : !strncmp(name.text, "tm_ivshmem_server", 15) ||
					    !strcmp(name.text, QEMU_NAME) ||
					    !strcmp(name.text, process_name(getpid()).text);
	int n = snprintf(who.text, sizeof(who.text), "%s by another %s", server ? held : "locked",
			 server ? "server" : "program");

	if (!posix && !*name.text) /* a server that runs has the other kind, too */
		snprintf(who.text, sizeof(who.text), "%s",
			 "locked for a server that has ended, or by an unknown program");
	else if (server && pid > 0)
		snprintf(who.text + n, sizeof(who.text) - (size_t)n, ", process %d", pid);
	else if (*name.text)
		snprintf(who.text + n, sizeof(who.text) - (size_t)n, ", process %d (%.20s)", pid,
			 name.text);
	return who;
}

void file_inherit(int fd, const char *path)
{
	static const short kinds[] = {F_RDLCK,
				      F_WRLCK}; /* what is held already is not taken anew */

	for (size_t i = 0; fd >= 0 && i < 2; i++)
		if (fcntl(fd, F_SETLK, &(struct flock){.l_type = kinds[i]}) < 0)
			fail("cannot lock %s again", path);
}

bool pidfile_claim(struct pidfile *p)
{
	const char *path = p->opt->pidfile;
	char *text = p->found;
	bool taken = false;
	ssize_t n, digits;

	if (!path)
		return true;
	if (!file_claim(path, O_NOFOLLOW, 0644, &p->ledger->pidfile, &p->created, &taken))
		return taken &&
		       complain("pidfile %s is %s: stop that process, or choose another path "
				"with -%c",
				path, file_holder(p->ledger->pidfile, "held").text, typed('i'));
	n = pread(p->ledger->pidfile, text, sizeof(p->found) - 1, 0);
	if (n < 0)
		return fail("cannot read %s", path);
	/* More than one end of line is what a server left that died while it wrote (pidfile_put).
	 */
	digits = (ssize_t)strspn(text, "0123456789");
	if (n > 0 &&
	    (digits == 0 || digits == n || digits + (ssize_t)strspn(text + digits, "\n") != n ||
	     n == sizeof(p->found) - 1))
		return complain("%s exists and is not a pidfile: choose another path with -%c",
				path, typed('i'));
	return true;
}

/*
 * Puts a line, or nothing, into the pidfile, over another: in one write, and cut only behind it.
 * So what stood there stays where there is no room, and at no moment half of it follows ours.
 */
static bool pidfile_put(const struct pidfile *p, const char *line, const char *over)
{
	char text[sizeof(p->found)];
	size_t n = strlen(line), all = strlen(over) > n ? strlen(over) : n;

	memset(text, '\n', all);
	for (size_t i = 0; i < n; i++)
		text[i] = line[i];
	return (n == 0 || pwrite(p->ledger->pidfile, text, all, 0) == (ssize_t)all) &&
	       (all == n || ftruncate(p->ledger->pidfile, (off_t)n) == 0);
}

/* Our process ID, as it stands in the pidfile. */
static struct text pidfile_line(void)
{
	struct text line;

	snprintf(line.text, sizeof(line.text), "%d\n", (int)getpid());
	return line;
}

bool pidfile_write(struct pidfile *p)
{
	if (!p->opt->pidfile)
		return true;
	if (p->ledger->pidfile < 0 && !pidfile_claim(p))
		return false;
	p->written = true;
	return pidfile_put(p, pidfile_line().text, p->found) ||
	       fail("cannot write pidfile %s", p->opt->pidfile);
}

void pidfile_inherit(struct pidfile *p)
{
	ssize_t n;

	if (p->ledger->pidfile < 0)
		return;
	n = pread(p->ledger->pidfile, p->found, sizeof(p->found) - 1, 0);
	p->found[n > 0 ? n : 0] = '\0';
	pidfile_write(p);
}

void pidfile_remove(const struct pidfile *p, bool keep)
{
	int fd = p->ledger->pidfile;

	if (fd < 0)
		return;
	if (keep || p->created)
		file_remove(fd, p->opt->pidfile);
	else if (p->written && !pidfile_put(p, p->found, pidfile_line().text))
		fail("cannot restore what pidfile %s contained", p->opt->pidfile);
}

bool pidfile_forgo(struct pidfile *p)
{
	if (!p->opt->pidfile_optional)
		return false;
	say("going on without a pidfile: choose another path with -%c", typed('i'));
	pidfile_remove(p, false);
	if (p->ledger->pidfile >= 0)
		close(p->ledger->pidfile);
	p->ledger->pidfile = -1;
	return true;
}
