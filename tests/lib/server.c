/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server.h"

#include "deadline.h"
#include "supervisor.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARGS_MAX 64

/* What the server says last before it serves. */
#define READY "connect a node:"

/* Notes what failed and why. Returns false, for its caller to return. */
__attribute__((format(printf, 2, 3))) static bool failed(struct server *s, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(s->error, sizeof(s->error), format, args);
	va_end(args);
	return false;
}

/*
 * The user to run the server as. A user of its own is one that not even a test that runs beside
 * this one has, since the kernel counts the descriptors in flight for each user; its number is in
 * the range that a container has, too.
 */
static uid_t user_choose(const struct server *s)
{
	return s->unprivileged && geteuid() == 0 ? 20000 + (uid_t)getpid() % 40000 : geteuid();
}

/* Makes the folder, and lets the server's user into it. */
static bool folder_make(struct server *s)
{
	const char *parent = getenv("TEST_DIR");

	s->user = user_choose(s);
	if (parent && s->user != geteuid() && chmod(parent, 0711) < 0)
		return failed(s, "cannot open %s to others: %s", parent, strerror(errno));
	snprintf(s->folder, sizeof(s->folder), "%s/server.XXXXXX", parent ? parent : "/tmp");
	if (!mkdtemp(s->folder) || chown(s->folder, s->user, (gid_t)-1) < 0)
		return failed(s, "cannot make %s: %s", s->folder, strerror(errno));
	snprintf(s->log, sizeof(s->log), "%s/log", s->folder);
	if (snprintf(s->socket, sizeof(s->socket), "%s/socket", s->folder) >=
	    (int)sizeof(s->socket))
		return failed(s, "%s is too long for the path of a socket", s->folder);
	return true;
}

/* Has what goes into the descriptor returned written to the log by a process of its own; or -1. */
static int log_pipe(const struct server *s, int log)
{
	int ends[2];
	pid_t reader;

	if (pipe2(ends, O_CLOEXEC) < 0 || fchown(ends[1], s->user, (gid_t)-1) < 0)
		return -1;
	reader = fork();
	if (reader == 0) {
		if (dup2(ends[0], STDIN_FILENO) >= 0 && dup2(log, STDOUT_FILENO) >= 0)
			execlp("cat", "cat", NULL);
		_exit(127);
	}
	close(ends[0]);
	return reader < 0 ? -1 : ends[1];
}

/*
 * Becomes the server, in the child. Returns only where something failed, with errno. The test may
 * have threads: nothing here takes a lock.
 */
static void server_exec(const struct server *s, const char *path, char *const *argv,
			struct supervised *given)
{
	const struct itimerval alarm = {.it_value = {s->alarm_us / 1000000, s->alarm_us % 1000000}};
	int log = open(s->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	int program = open(path, O_RDONLY | O_CLOEXEC);
	pid_t parent = getppid();

	if (log >= 0 && s->piped)
		log = log_pipe(s, log);
	if (log < 0 || program < 0 || dup2(log, STDOUT_FILENO) < 0 || dup2(log, STDERR_FILENO) < 0)
		return;
	/* Out of the way of those that are given. */
	program = fcntl(program, F_DUPFD_CLOEXEC, STDERR_FILENO + 1 + (int)given->n);
	if (program < 0 || !supervised_enter(given))
		return;
	if (s->descriptors.rlim_max && setrlimit(RLIMIT_NOFILE, &s->descriptors) < 0)
		return;
	if (s->unraised && prctl(PR_CAPBSET_DROP, CAP_SYS_RESOURCE) < 0)
		return;
	if (s->user != geteuid() &&
	    (setgroups(0, NULL) < 0 || setgid(s->user) < 0 || setuid(s->user) < 0))
		return;
	/* Where only a parent may trace a process, let strace do so as well. */
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
	if (chdir(s->folder) < 0 || prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)
		return;
	/* The kernel keeps the timer for the program. */
	setitimer(ITIMER_REAL, &alarm, NULL);
	if (s->held)
		kill(getpid(), SIGSTOP);
	execve(path, argv, given->environment);
	/* Another user may be unable to get at the program by its path. */
	if (errno == EACCES)
		fexecve(program, argv, given->environment);
}

/* What a process has ended with: its exit status, or the negative number of a signal. */
static int status_of(int status)
{
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

bool server_spawn(struct server *s, const char *const *args)
{
	const char *program = getenv("SERVER");
	char path[PATH_MAX], *argv[ARGS_MAX] = {path, "-p", s->socket};
	struct supervised given;
	size_t n = 3;

	s->error[0] = '\0';
	if (!realpath(program ? program : "./tm_ivshmem_server", path))
		return failed(s, "no server to test, %s: %s", program ? program : path,
			      strerror(errno));
	if (!s->folder[0] && !folder_make(s))
		return false;
	while (*args && n < ARGS_MAX - 1)
		argv[n++] = (char *)*args++;
	if (!supervised_prepare(&given, s->supervisor)) {
		supervised_free(&given);
		return failed(s, "no memory for an environment");
	}
	s->pid = fork();
	if (s->pid == 0) {
		server_exec(s, path, argv, &given);
		fprintf(stderr, "cannot run %s: %s\n", path, strerror(errno));
		_exit(127);
	}
	supervised_free(&given);
	if (s->pid < 0)
		return failed(s, "cannot fork: %s", strerror(errno));
	if (s->held)
		waitpid(s->pid, NULL, WUNTRACED);
	return true;
}

bool server_start(struct server *s, const char *const *args)
{
	int64_t deadline = deadline_in(PATIENCE);
	char *log = server_log(s), *ready = NULL;
	size_t logged = log ? strlen(log) : 0;
	int status;

	free(log);
	if (!server_spawn(s, args))
		return false;
	do {
		bool over = waitpid(s->pid, &status, WNOHANG) != 0;

		log = server_log(s);
		ready = log ? strstr(log + logged, READY) : NULL;
		if (over) {
			s->pid = 0;
			s->status = status_of(status);
			failed(s, "it ended at its start: %s", log ? log + logged : "");
			free(log);
			return false;
		}
		free(log);
	} while (!ready && deadline_ahead(deadline));
	s->idle = ready ? server_idle(s) : -1;
	if (ready)
		return true;
	server_signal(s, SIGKILL);
	server_wait(s, PATIENCE);
	return failed(s, "it did not get ready in %d s, see %s", PATIENCE, s->log);
}

void server_signal(const struct server *s, int signal)
{
	if (s->pid > 0)
		kill(s->pid, signal);
}

int server_wait(struct server *s, int seconds)
{
	int64_t deadline = deadline_in(seconds);
	int status;
	pid_t pid;

	if (s->pid <= 0)
		return -SIGKILL;
	while ((pid = waitpid(s->pid, &status, WNOHANG)) == 0 && deadline_ahead(deadline))
		;
	if (pid == 0) {
		server_signal(s, SIGKILL);
		waitpid(s->pid, &status, 0);
	}
	s->pid = 0;
	return status_of(status);
}

int server_stop(struct server *s)
{
	server_signal(s, SIGTERM);
	return server_wait(s, PATIENCE);
}

static int entry_remove(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)st, (void)type, (void)at;
	return remove(path);
}

void server_remove(struct server *s)
{
	pid_t group = s->pid > 0 ? getpgid(s->pid) : -1;

	if (group > 0 && group != getpgrp())
		kill(-group, SIGKILL); /* in the background, where it has a standby */
	server_signal(s, SIGKILL);
	server_wait(s, PATIENCE);
	if (s->folder[0])
		nftw(s->folder, entry_remove, 16, FTW_DEPTH | FTW_PHYS);
	s->folder[0] = '\0';
}

char *file_text(const char *path)
{
	FILE *f = fopen(path, "re");
	char *text = NULL;
	size_t room = 0;

	if (!f)
		return NULL;
	if (getdelim(&text, &room, '\0', f) < 0) {
		free(text);
		text = feof(f) ? strdup("") : NULL;
	}
	fclose(f);
	return text;
}

const char *file_end(const char *path)
{
	static char end[600];
	char *text = file_text(path);
	size_t length = text ? strlen(text) : 0;

	snprintf(end, sizeof(end), "%s",
		 text ? text + (length < sizeof(end) ? 0 : length - sizeof(end) + 1) : "");
	free(text);
	return end;
}

char *process_text(pid_t pid, const char *file)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
	return file_text(path);
}

pid_t server_pidfile(const struct server *s)
{
	char path[128], *text;
	pid_t pid;

	snprintf(path, sizeof(path), "%s/pid", s->folder);
	text = file_text(path);
	pid = text ? atoi(text) : 0;
	free(text);
	return pid;
}

int server_ledger(const struct server *s)
{
	static const char name[] = "/memfd:tm_ivshmem_server";
	char path[64], target[64];
	ssize_t n;

	for (int number = 3; number < 64; number++) {
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)s->pid, number);
		n = readlink(path, target, sizeof(target) - 1);
		if (n >= (ssize_t)strlen(name) && !strncmp(target, name, strlen(name)))
			return open(path, O_RDWR | O_CLOEXEC);
	}
	return -1;
}

char *server_log(const struct server *s)
{
	return file_text(s->log);
}

bool server_logged(const struct server *s, const char *text)
{
	char *log = server_log(s);
	bool found = log && strstr(log, text);

	free(log);
	return found;
}

bool server_log_wait(const struct server *s, const char *text, int seconds)
{
	int64_t deadline = deadline_in(seconds);
	bool found;

	while (!(found = server_logged(s, text)) && deadline_ahead(deadline))
		;
	return found;
}

int descriptors_count(pid_t pid)
{
	char path[32];
	DIR *folder;
	int n = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid ? pid : getpid());
	folder = opendir(path);
	if (!folder)
		return -1;
	for (struct dirent *d; (d = readdir(folder));)
		n += d->d_name[0] != '.';
	closedir(folder);
	return pid ? n : n - 1; /* ours shows the folder itself, too */
}

int server_descriptors(const struct server *s)
{
	return s->pid > 0 ? descriptors_count(s->pid) : -1;
}

#define STATUS_ROOM 4096

/* What the kernel says of its process, and how often that went to sleep; empty: there is none. */
static void status_read(const struct server *s, char *text)
{
	char path[32];
	size_t n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", s->pid);
	f = fopen(path, "re");
	if (f) {
		n = fread(text, 1, STATUS_ROOM - 1, f);
		fclose(f);
	}
	text[n] = '\0';
}

int server_idle(const struct server *s)
{
	int64_t deadline = deadline_in(PATIENCE);
	char before[STATUS_ROOM], after[STATUS_ROOM];
	int n;

	do {
		status_read(s, before);
		n = server_descriptors(s);
		status_read(s, after);
		if (strstr(after, "\nState:\tS") && !strcmp(before, after))
			return n;
	} while (after[0] && !strstr(after, "\nState:\tZ") && deadline_ahead(deadline));
	return -1;
}

bool server_descriptors_wait(const struct server *s, int descriptors, int seconds)
{
	int64_t deadline = deadline_in(seconds);
	bool equal;

	while (!(equal = server_descriptors(s) == descriptors) && deadline_ahead(deadline))
		;
	return equal;
}

long server_memory(const struct server *s)
{
	char *text = process_text(s->pid, "smaps_rollup");
	const char *at = text ? strstr(text, "\nAnonymous:") : NULL;
	long kib = -1;

	if (at && sscanf(at, "\nAnonymous: %ld kB", &kib) != 1)
		kib = -1;
	free(text);
	return kib < 0 ? -1 : kib * 1024;
}

rlim_t descriptors_allow(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return 0;
	limit.rlim_cur = limit.rlim_max;
	return setrlimit(RLIMIT_NOFILE, &limit) < 0 ? 0 : limit.rlim_max;
}
