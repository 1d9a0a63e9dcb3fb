/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/store.h"
#include "server/child.h"
#include "server/file.h"
#include "server/ledger.h"
#include "server/log.h"
#include "server/memory.h"
#include "server/options.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

bool store_is(const struct ledger *l, int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return false;
	errno = ENOENT;
	return st.st_dev == l->object_dev && st.st_ino == l->object_ino;
}

/* What the object and its file system are like. */
struct examination {
	struct stat st;
	struct statfs fs;
};

/* Says who has locked what we wanted to serve. Returns false. */
static bool store_taken(const struct store *s)
{
	const char *path = s->opt->object;

	if (file_stands_at(s->ledger->pidfile, path))
		return complain("%s is the pidfile, too: choose another path with -%c", path,
				typed('i'));
	return complain("%s is %s: stop that process, or choose another object with %s", path,
			file_holder(s->ledger->lock, "served").text,
			as_qemu() ? "-M or -m" : "-f or -s");
}

/*
 * Opens the object three times: first for the lock, which dies with the server though nodes keep
 * the memory open, then for the nodes, and a file for flushing. Examines it for all who ask later.
 */
static bool store_claim(struct store *s, struct examination *e)
{
	struct ledger *l = s->ledger;
	const char *name = s->opt->object;
	int flags = (s->opt->shm ? O_NOFOLLOW : 0) | O_RDWR | O_CLOEXEC | O_NOCTTY;
	bool taken = false;

	if (!file_claim(name, flags, 0600, &l->lock, &s->created, &taken))
		return taken && store_taken(s);
	l->store = open(name, flags);
	if (l->store < 0 || (!s->opt->shm && (l->disk = open(name, flags)) < 0))
		return fail("cannot open %s", name);
	if (fstat(l->lock, &e->st) < 0)
		return fail("cannot examine %s", name);
	if (fstatfs(l->lock, &e->fs) < 0)
		return fail("cannot examine the file system of %s", name);
	l->object_dev = e->st.st_dev;
	l->object_ino = e->st.st_ino;
	s->found = l->size = (uint64_t)e->st.st_size;
	if (store_is(l, l->store) && (l->disk < 0 || store_is(l, l->disk)))
		return true;
	if (errno == ENOENT)
		return complain("%s was replaced while it was being opened: try again", name);
	return fail("cannot examine %s", name);
}

/*
 * Opens a new file without a name: one that has lost its name, where the file system makes no
 * other. Returns it, or -1 with errno.
 */
static int unnamed_open(const char *folder)
{
	int fd = open(folder, O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
	struct stat st;
	char *path;

	if (fd >= 0 || errno != EOPNOTSUPP || asprintf(&path, "%s/ivshmem.XXXXXX", folder) < 0)
		return fd;
	fd = mkostemp(path, O_CLOEXEC);
	if (fd >= 0 && (fstat(fd, &st) < 0 || !path_remove(path, st.st_dev, st.st_ino))) {
		close(fd);
		fd = -1;
	}
	free(path);
	return fd;
}

/* Makes memory without a name. There is no lock, since nobody else can open it. */
static bool store_make(struct store *s, struct examination *e)
{
	struct ledger *l = s->ledger;
	const char *name = s->opt->object;

	l->store = s->opt->folder ? unnamed_open(s->opt->folder)
				  : memfd_create("ivshmem", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (l->store < 0)
		return fail("cannot create %s%s", name,
			    as_qemu() ? ", for which -m names a folder (an object's name goes with "
					"-M)"
				      : "");
	if (fstat(l->store, &e->st) < 0 || fstatfs(l->store, &e->fs) < 0)
		return fail("cannot examine %s", name);
	l->object_dev = e->st.st_dev;
	l->object_ino = e->st.st_ino;
	return true;
}

/* Sees to it that no node can cut the memory under the others; a file's cannot be kept from that.
 */
static bool store_seal(const struct store *s)
{
	if (!s->opt->anonymous || s->opt->folder ||
	    fcntl(s->ledger->store, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
		return true;
	return fail("cannot seal %s", s->opt->object);
}

/* Warns of an object that others can cut, which kills all nodes that touch what is gone. */
static void store_warn_foreign(const struct store *s, const struct examination *e)
{
	const struct stat *st = &e->st;
	bool foreign = st->st_uid != geteuid() && st->st_uid != 0;
	bool open = st->st_mode & S_IWOTH ||
		    (st->st_mode & S_IWGRP && st->st_gid != s->ledger->group && st->st_gid != 0);

	if (!s->created && !s->opt->anonymous && (foreign || open))
		warn("warning: %s belongs to uid %u, gid %u and has mode %04o: others can truncate "
		     "it, which crashes the nodes; chown %u and chmod 0600 make it the server's own",
		     s->opt->object, st->st_uid, st->st_gid, st->st_mode & 07777, geteuid());
}

/*
 * Whether nobody has ever written to the object, as far as its file system can tell: one that knows
 * no holes takes all for data.
 */
static bool store_is_blank(const struct store *s)
{
	return lseek(s->ledger->lock, 0, SEEK_DATA) < 0 && errno == ENXIO;
}

/* Decides which size is served: that of the object, or the one that it is to get. */
static bool store_size_choose(struct store *s)
{
	const struct options *o = s->opt;
	const char *name = o->object;
	uint64_t found = s->found, wanted = found;
	bool grows = o->sized && !o->truncate && found && o->size > found;
	char *why;

	if (found == 0) {
		wanted = o->sized ? o->size : DEFAULT_SIZE;
	} else if (o->truncate || (grows && (o->grow || store_is_blank(s)))) {
		wanted = o->size;
	} else if (grows) {
		return complain("%s has %s, less than -m %s: leave out -m to serve it as it is, or "
				"add -t to enlarge it",
				name, SIZE(found), SIZE(o->size));
	}
	if (size_fits(o, wanted, &why)) {
		s->ledger->size = wanted;
		if (o->sized && wanted > o->size)
			say("%s has %s, more than -%c %s: all of it is served", name, SIZE(found),
			    typed('m'), SIZE(o->size));
		if (grows)
			say("%s has %s, less than -%c %s%s: it is enlarged", name, SIZE(found),
			    typed('m'), SIZE(wanted), o->grow ? "" : ", and nothing in it");
		return true;
	}
	complain("cannot serve %s, which has %s: %s (%s-t with -m resizes it)", name, SIZE(found),
		 why, own_name());
	free(why);
	return false;
}

/* Whether the file system can hold the size. */
static bool store_size_check(const struct store *s, const struct examination *e)
{
	const char *name = s->opt->object;
	uint64_t size = s->ledger->size, block = (uint64_t)e->fs.f_bsize;
	uint64_t most = (uint64_t)e->fs.f_blocks * block;

	if (e->fs.f_type == HUGETLBFS_MAGIC && size % block)
		return complain(
			"cannot serve %s with %s: its file system allocates whole huge pages; "
			"give a multiple of %s with -%c",
			name, SIZE(size), SIZE(block), typed('m'));
	if (e->fs.f_type == TMPFS_MAGIC && most && size > most)
		return complain(
			"cannot serve %s with %s: its tmpfs holds %s; enlarge the tmpfs with "
			"mount -o remount,size=, or give less with -%c",
			name, SIZE(size), SIZE(most), typed('m'));
	return true;
}

/* Whether the user wants the start to end. */
static bool signals_pending(void)
{
	sigset_t set;

	return sigpending(&set) == 0 && (sigismember(&set, SIGTERM) || sigismember(&set, SIGINT) ||
					 sigismember(&set, SIGQUIT) || sigismember(&set, SIGUSR2));
}

/*
 * Whether there is as much memory as the object lacks, where that is memory: what has been asked
 * for beyond that, the kernel takes from whom it likes, such as a virtual machine.
 */
static bool store_memory_check(const struct store *s, const struct examination *e)
{
	uint64_t size = s->ledger->size, there = (uint64_t)e->st.st_blocks * 512, left;
	char of[PATH_MAX];

	if (e->fs.f_type != TMPFS_MAGIC && e->fs.f_type != RAMFS_MAGIC)
		return true;
	left = memory_left(of);
	return there >= size || size - there <= left ||
	       complain("cannot reserve %s for %s: %s has only %s of memory left, beyond which the "
			"kernel would kill a process; give less with -%c, or %s",
			SIZE(size - there), s->opt->object, of, SIZE(left >> 20 << 20), typed('m'),
			*of == '/' ? "raise the limit of that cgroup" : "add memory");
}

/* Reserves every block, in steps, so that it can be seen and ended. */
static bool store_allocate(const struct store *s, const struct examination *e)
{
	static const char failed[] =
		"cannot reserve %s for %s (without -a, each block is allocated when it is first written)";
	const uint64_t size = s->ledger->size, step = UINT64_C(64) << 20;
	bool tell = isatty(STDERR_FILENO);
	uint64_t left = geteuid() == 0 ? e->fs.f_bfree : e->fs.f_bavail; /* some are root's alone */

	/* A file system without a limit, such as a hugetlbfs, says that it has 0 blocks. */
	if (e->fs.f_blocks &&
	    size > left * (uint64_t)e->fs.f_bsize + (uint64_t)e->st.st_blocks * 512) {
		errno = ENOSPC; /* seen before the disk is full */
		return fail(failed, SIZE(size), s->opt->object);
	}
	for (uint64_t at = 0; at < size; at += step) {
		off_t length = (off_t)(size - at < step ? size - at : step);
		int error = signals_pending() ? EINTR : 0;

		while (!error && fallocate(s->ledger->store, 0, (off_t)at, length) < 0)
			if (errno != EINTR || signals_pending())
				error = errno; /* else it was only stopped for a while */
		if (tell)
			log_progress("\r%s: reserving %.1000s: %3d %%%s",
				     program_invocation_short_name, s->opt->object,
				     (int)(100 * (at / step + 1) / ((size + step - 1) / step)),
				     error || at + step >= size ? "\n" : "");
		errno = error;
		if (error)
			return fail(failed, SIZE(size), s->opt->object);
	}
	return true;
}

/* A node that writes to a hole on a full file system is killed: warn of that. */
static void store_warn_sparse(const struct store *s, const struct examination *e)
{
	uint64_t left = (uint64_t)e->fs.f_bavail * (uint64_t)e->fs.f_bsize;
	uint64_t size = s->ledger->size, blocks = (uint64_t)e->st.st_blocks * 512;

	if (e->fs.f_blocks && e->fs.f_type != HUGETLBFS_MAGIC && blocks < size &&
	    size - blocks > left)
		warn("warning: %s lacks %s of its blocks and only %s are free: a node that writes "
		     "when no block is free is killed; %s-a reserves all blocks now",
		     s->opt->object, SIZE(size - blocks), SIZE(left >> 20 << 20), own_name());
}

/*
 * Maps as QEMU will, to learn now whether the file system can: all, where that takes huge pages,
 * which then stay the file's.
 */
static bool store_map_try(const struct store *s)
{
	size_t bytes = (size_t)getpagesize();
	struct statfs fs;
	void *memory;

	if (s->ledger->store < 0)
		return true;
	if (fstatfs(s->ledger->store, &fs) < 0)
		return fail("cannot examine the file system of %s", s->opt->object);
	if (fs.f_type == HUGETLBFS_MAGIC)
		bytes = s->ledger->size;
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->ledger->store, 0);
	if (memory == MAP_FAILED)
		return fail("cannot map %s of %s: choose a file system that can share memory and "
			    "has enough of it",
			    SIZE(bytes), s->opt->object);
	munmap(memory, bytes);
	return true;
}

bool store_open(struct store *s)
{
	const struct ledger *l = s->ledger;
	struct examination e = {0};

	if (memoryless(s->opt))
		return true;
	if (!(s->opt->anonymous ? store_make : store_claim)(s, &e) || !store_size_choose(s) ||
	    !store_size_check(s, &e))
		return false;
	if (l->size > s->found && ftruncate(l->store, (off_t)l->size) < 0)
		return fail("cannot give %s a size of %s", s->opt->object, SIZE(l->size));
	if (s->opt->allocate && !(store_memory_check(s, &e) && store_allocate(s, &e)))
		return false;
	if (!s->opt->allocate)
		store_warn_sparse(s, &e);
	store_warn_foreign(s, &e);
	return store_seal(s) &&
	       (!s->created || group_admit(s->opt, l->group, l->store, s->opt->object));
}

bool store_settle(struct store *s)
{
	uint64_t size = s->ledger->size;

	if (!store_map_try(s))
		return false;
	if (size >= s->found)
		return true;
	if (ftruncate(s->ledger->store, (off_t)size) < 0)
		return fail("cannot shrink %s to %s", s->opt->object, SIZE(size));
	say("%s shrank from %s to %s", s->opt->object, SIZE(s->found), SIZE(size));
	return true;
}

void store_leave(const struct store *s, bool keep)
{
	const struct ledger *l = s->ledger;
	const char *name = s->opt->object;

	if (!keep && s->created)
		file_remove(l->lock, name);
	else if (!keep && l->lock >= 0 && l->size > s->found &&
		 ftruncate(l->lock, (off_t)s->found) < 0)
		fail("cannot restore the size of %s", name);
	if (l->lock < 0)
		return;
	/* Before the pidfile goes, after which somebody may start anew: who has the descriptor as
	 * well, such as a supervisor, has the lock otherwise. */
	if (flock(l->lock, LOCK_UN) < 0)
		fail("cannot unlock %s", name);
	close(l->lock);
}

bool store_has_size(const struct store *s)
{
	const struct ledger *l = s->ledger;
	struct statx st;

	if (l->store < 0)
		return true;
	/* As the kernel knows it: a file server that does not answer is not waited for. */
	if (statx(l->store, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_SIZE, &st) < 0)
		return fail("cannot examine %s", s->opt->object);
	return st.stx_size == l->size ||
	       complain("%s was %s and has been resized to %s, on which QEMU would crash: restore "
			"its size with truncate -s %ju, or end the nodes and restart the server",
			s->opt->object, SIZE(l->size), SIZE(st.stx_size), (uintmax_t)l->size);
}

bool object_stands(const struct store *s)
{
	const struct ledger *l = s->ledger;
	struct stat st;

	if (stat(s->opt->object, &st) < 0)
		return false;
	errno = ENOENT;
	return st.st_dev == l->object_dev && st.st_ino == l->object_ino;
}

void store_report(const struct store *s)
{
	if (store_has_size(s) && s->ledger->store >= 0 && !s->opt->anonymous &&
	    !file_stands_at(s->ledger->store, s->opt->object))
		fail("the memory that the nodes share is no longer at %s", s->opt->object);
}

/* Opens the object once more, wherever it stands by now. Returns the descriptor or -1, having said
 * why. */
static int store_reopen(const struct store *s)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", s->ledger->store);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		fail("cannot open %s again", s->opt->object);
	return fd;
}

/* Warns of what the nodes share where it is not what stands at the path of the object. */
static void store_warn_gone(const struct store *s)
{
	const char *name = s->opt->object;

	if (s->opt->anonymous || object_stands(s))
		return;
	if (errno != ENOENT)
		fail("cannot examine %s", name);
	else
		warn("warning: the nodes use a file that is no longer at %s, and their data is "
		     "lost with the last node: cp /proc/%d/fd/%d saves the data; end the nodes and "
		     "restart the server to serve the file that is at the path now",
		     name, (int)getpid(), s->ledger->store);
}

/* Says which options of the object cannot hold while nodes have it. */
static void store_warn_options(const struct store *s)
{
	const struct options *o = s->opt;
	uint64_t size = s->ledger->size, wanted = size, blocks;
	struct statfs fs;
	struct stat st;

	if (o->sized || o->anonymous)
		wanted = o->sized ? o->size : DEFAULT_SIZE;
	if (wanted < size && !o->truncate && !o->anonymous)
		say("%s has %s, more than -%c %s: all of it is served", o->object, SIZE(size),
		    typed('m'), SIZE(wanted));
	else if (wanted != size)
		warn("%s keeps its size of %s while nodes use it, whatever %s-%c says", o->object,
		     SIZE(size), o->truncate ? "-t with " : "", typed('m'));
	if (!o->allocate || fstat(s->ledger->store, &st) < 0 ||
	    fstatfs(s->ledger->store, &fs) < 0 || fs.f_type == HUGETLBFS_MAGIC)
		return;
	blocks = (uint64_t)st.st_blocks * 512;
	if (blocks < size)
		warn("%s lacks %s of its blocks, which -a does not reserve while nodes use it",
		     o->object, SIZE(size - blocks));
}

/*
 * Takes both locks of the object again. The one lasts as long as somebody has the descriptor, such
 * as a child that the server before has just made: that is waited for, half a second at most. The
 * other has gone with the process.
 */
static void store_lock(const struct store *s)
{
	int fd = s->ledger->lock, tries = 50, done;

	while ((done = flock(fd, LOCK_EX | LOCK_NB)) < 0 &&
	       (errno == EWOULDBLOCK || errno == EINTR) && tries-- > 0)
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	if (done < 0)
		fail("cannot lock %s", s->opt->object);
	if (fcntl(fd, F_SETLK, &(struct flock){.l_type = F_WRLCK}) < 0)
		fail("cannot lock %s", s->opt->object);
}

bool store_inherit(struct store *s)
{
	const struct options *o = s->opt;
	struct ledger *l = s->ledger;

	if (l->store < 0)
		return true;
	if (!o->shm && (l->disk = store_reopen(s)) < 0)
		l->disk = l->store; /* nodes may have it, too, and be told of an error instead */
	if (!o->anonymous) {
		if (l->lock < 0 && (l->lock = store_reopen(s)) < 0)
			return false;
		store_lock(s);
	}
	store_warn_gone(s);
	store_warn_options(s);
	return true;
}

#define FLUSH_RETRY_MS 1000 /* and a flush that was not made */

/* Starts a child that flushes the object, and ends with the errno of that. Returns false, having
 * said so, if there is none; or to do what the purpose says instead. */
static bool flush_child(struct store *s, const char *purpose)
{
	int fd = s->ledger->disk;
	pid_t child = child_start(purpose);

	if (child == 0) {
		/* Nothing else of ours may outlive us in here, above all not the locks. */
		close_range(0, (unsigned int)fd - 1, 0);
		close_range((unsigned int)fd + 1, UINT_MAX, 0);
		_exit(fdatasync(fd) < 0 ? errno : 0);
	}
	if (child > 0)
		s->ledger->flusher = child;
	return child > 0;
}

void flush_again(struct store *s)
{
	s->ledger->flush_due = true;
	timer_start(s->ledger, TIMER_FLUSH, FLUSH_RETRY_MS);
}

void flush_inherit(struct store *s)
{
	s->ledger->flush_due |= s->ledger->flusher != 0;
	s->ledger->flusher = 0;
}

void flush_start(struct store *s)
{
	struct ledger *l = s->ledger;

	if (s->opt->sync) {
		l->flush_due |= timer_ended(s->ledger, TIMER_SYNC);
		timer_start(s->ledger, TIMER_SYNC, (int64_t)s->opt->sync * 1000);
	}
	timer_ended(s->ledger, TIMER_FLUSH);
	if (!l->flush_due || l->flusher || l->timers[TIMER_FLUSH])
		return;
	l->flush_due = false;
	if (l->disk >= 0 && !flush_child(s, "flush the object to disk"))
		flush_again(s);
}

void flush_ended(struct store *s, int status)
{
	s->ledger->flusher = 0;
	errno = WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
	if (errno)
		fail("cannot flush %s to disk", s->opt->object);
	if (errno == EINTR)
		flush_again(s);
}

/* Waits for the flush under way, if there is one: the kernel tells of an error but once. */
static bool flush_wait(struct store *s)
{
	int status;

	if (!s->ledger->flusher)
		return true;
	if (!child_wait(s->ledger->flusher, s->ledger->signals, &status))
		return complain(
			"ending before %s is on disk, while the flush still goes on: a power cut "
			"could lose what nodes have written",
			s->opt->object);
	flush_ended(s, status);
	return true;
}

void flush_finish(struct store *s)
{
	struct ledger *l = s->ledger;

	if (!flush_wait(s) || l->disk < 0)
		return;
	if (flush_child(s, "flush the object to disk, flushing it in this process instead"))
		flush_wait(s);
	else if (fdatasync(l->disk) < 0)
		fail("cannot flush %s to disk", s->opt->object);
}
