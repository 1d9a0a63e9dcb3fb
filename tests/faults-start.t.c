/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Every system call of a start fails once. The start must then be refused: a line that says what
 * failed, status 1, and nothing left behind or changed; or, where the rules below say so and why,
 * the server serves all the same.
 *
 * FULL=1 lets every call fail with every errno that the table in lib/faults.c gives it; without,
 * some of them do. Failures in the dynamic loader and in libc's start, before main, are not ours
 * and not tried.
 */
#define _GNU_SOURCE
#include "tests/lib/client.h"
#include "tests/lib/deadline.h"
#include "tests/lib/faults.h"
#include "tests/lib/server.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* Words of a command line. */
#define WORDS 32

#define MEMORY (1 << 20)

/* Everything lies in $TEST_DIR; the server's working directory, and ours, is a folder in there. */
#define FOLDER     "folder"
#define PROGRAM    "./tm_ivshmem_server" /* a link: a relative path makes it use getcwd */
#define SOCKET     "socket"
#define PIDFILE    "pidfile"
#define LOG        "../log"
#define STRACE_LOG "../strace"

/*
 * What must come of a fault. A start is "asked" for a group with -g, or takes the "default"; it
 * "creates" files, or finds them.
 */
static const struct rule rules[] = {
	{.calls = "openat",
	 .text = "/dev/null",
	 .after = "listen",
	 .before = "setsid",
	 .outcome = SERVES,
	 .why = "the spare descriptor is opened again when somebody comes"},
	{.text = "/dev/null",
	 .before = "socket",
	 .why = "without a spare descriptor nobody can be refused"},
	{.calls = "socket connect close",
	 .before = "signalfd4",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "libc looks up a group, and goes on without nscd"},
	{.calls = "poll",
	 .text = "POLLOUT",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "whether the supervisor has room shows when it is told something"},
	{.text = "/etc/localtime",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "the log has the time of UTC"},
	{.calls = "openat",
	 .text = LOG "\"",
	 .outcome = REFUSES,
	 .why = "a log that was asked for and is not there would be missed too late"},
	{.calls = "fcntl",
	 .text = "/log>, F_DUPFD_CLOEXEC",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "the log file takes the place of a socket"},
	{.calls = "write",
	 .text = "/log>, \"20",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "that it lacks a line, the log says later"},
	{.calls = "socket connect",
	 .after = "listen",
	 .before = "setsid",
	 .errors = "EAGAIN",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "syslog is there, and busy"},
	{.calls = "openat newfstatat fstat read lseek",
	 .before = "signalfd4",
	 .phase = "asked",
	 .outcome = EITHER,
	 .quiet = true,
	 .why = "libc looks up the group; it may have another source for it"},
	{.calls = "openat newfstatat fstat read lseek",
	 .before = "signalfd4",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "the group kvm is a default where it is known"},
	{.text = "/proc/sys/fs/nr_open",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "the limit of descriptors stays the hard one"},
	{.calls = "prlimit64",
	 .text = "RLIMIT_NOFILE, {",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "the limit of descriptors stays the hard one"},
	{.calls = "prlimit64", .outcome = SERVES, .why = "the limit of descriptors stays as it is"},
	{.calls = "capget",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "what is in flight counts as limited"},
	{.calls = "newfstatat stat",
	 .text = "/proc/self/ns/user",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "what is in flight counts as limited"},
	{.calls = "connect",
	 .text = "/notify\"",
	 .errors = "EAGAIN",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "it is tried again at once"},
	{.calls = "connect",
	 .text = "/notify\"",
	 .outcome = SERVES,
	 .why = "the supervisor is told a second later"},
	{.calls = "connect removexattr",
	 .text = "/proc/self/fd/",
	 .errors = "ENOENT",
	 .phase = "default",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "without /proc the default group is left out"},
	{.calls = "connect removexattr",
	 .text = "/proc/self/fd/",
	 .errors = "ENOENT",
	 .quiet = true,
	 .why = "without /proc no group can be let in safely"},
	{.calls = "getsockopt",
	 .text = "SO_PEERCRED",
	 .outcome = NEVER,
	 .why = "the kernel knows who listens on a UNIX socket"},
	{.text = "/proc/meminfo",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "how much memory there is, is not known then, and nothing limits it"},
	{.text = "/proc/self/cgroup",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "which limits there are, is not known then, and nothing limits it"},
	{.text = "/sys/fs/cgroup",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "this limit is not known then"},
	{.calls = "lseek",
	 .text = "SEEK_DATA",
	 .quiet = true,
	 .why = "whether anybody has written is not known then, and it is not enlarged"},
	{.calls = "unlink",
	 .text = "/socket.",
	 .outcome = SERVES,
	 .why = "the stale socket stays beside ours"},
	{.calls = "chown fchown lchown",
	 .errors = "EPERM EINVAL EACCES",
	 .phase = "default",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "the group kvm is a default where we may assign it"},
	{.calls = "fcntl",
	 .text = "F_SETLK",
	 .errors = "EAGAIN",
	 .phase = "creates",
	 .outcome = NEVER,
	 .why = "what another program has locked stays, for it is that one's even if we made it"},
	{.calls = "fcntl",
	 .text = "F_SETLK",
	 .errors = "EAGAIN",
	 .quiet = true,
	 .why = "that means that another program has the file"},
	{.calls = "fcntl",
	 .text = "F_SETLK",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "it only tells others who has the file"},
	{.calls = "inotify_add_watch",
	 .text = "IN_ONLYDIR",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "it may be forbidden to read the folder; that of the socket's file is watched"},
	{.calls = "inotify_init1 inotify_add_watch",
	 .outcome = SERVES,
	 .why = "the socket is looked at upon HUP and USR1 all the same"},
	{.calls = "fallocate",
	 .errors = "EINTR",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "it is tried again, unless a signal wants to end it"},
	{.calls = "openat",
	 .text = "O_DIRECTORY",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "it may be forbidden to read the folder; others that start are not waited for then"},
	{.calls = "flock",
	 .text = "folder>",
	 .errors = "EINTR EAGAIN",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "it is tried again, for a second at most"},
	{.calls = "flock", .text = "folder>", .outcome = SERVES, .why = "it does without"},
	{.phase = "creates",
	 .calls = "flock",
	 .errors = "EAGAIN",
	 .outcome = NEVER,
	 .why = "what was created a moment ago is locked by nobody, or else it is theirs"},
	{.calls = "flock",
	 .errors = "EAGAIN",
	 .quiet = true,
	 .why = "that means that another server has the lock"},
	{.calls = "newfstatat stat lstat",
	 .text = "pidfile\"",
	 .first = true,
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "it looks before it opens, which would have failed as well"},
	{.calls = "newfstatat stat lstat",
	 .text = "memory\"",
	 .first = true,
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "it looks before it opens, which would have failed as well"},
	{.calls = "newfstatat stat lstat",
	 .text = "/dev/shm/",
	 .first = true,
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "it looks before it opens, which would have failed as well"},
	{.calls = "connect",
	 .text = "/socket\"",
	 .errors = "ENOENT",
	 .quiet = true,
	 .why = "that means that the stale socket is gone; the next step finds it there"},
	{.calls = "close_range",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "what the caller had left open stays open"},
	{.calls = "brk",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "libc gets the memory in another way"},
	{.calls = "munmap",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "what was mapped to try it stays mapped"},
	{.calls = "close",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "Linux closes the descriptor even then; nothing is written to these"},
	{.calls = "ioctl",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "it asks whether to show progress on a terminal"},
	{.calls = "read",
	 .text = "pipe:",
	 .errors = "EIO EAGAIN",
	 .outcome = NEVER,
	 .why = "a pipe that blocks has no such errors"},
	{.calls = "read",
	 .text = "pipe:",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "it is tried again"},
	{.calls = "write",
	 .text = "pipe:",
	 .errors = "EPIPE",
	 .outcome = NEVER,
	 .why = "the parent is there; where it has gone, the server goes on"},
	{.calls = "write",
	 .text = "pipe:",
	 .quiet = true,
	 .why = "the command cannot end before it knows, and syslog has the reason"},
	{.after = "setsid",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "it is in the background and complains to syslog"},
	{.calls = "setsid", .outcome = SERVES, .quiet = true, .why = "it leads a session already"},
	{.calls = "write",
	 .text = "tm_ivshmem_server: ",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "a line of the log is lost"},
	{.calls = "sendmsg",
	 .errors = "EAGAIN",
	 .outcome = SERVES,
	 .quiet = true,
	 .why = "the supervisor is told when it has room"},
	{.calls = "sendmsg", .outcome = SERVES, .why = "the supervisor is told a second later"},
	{.outcome = REFUSES, .why = "a start that fails is refused"},
};

/* A start: what is there before, and with which options. */
struct start {
	const char *name;
	void (*prepare)(void); /* in the working directory of the server */
	const char *args;      /* words; GROUP stands for a group of ours */
	bool daemonizes;
};

static void file_make(const char *path, const char *text, off_t size)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);

	if (fd < 0 || write(fd, text, strlen(text)) < 0 || (size && ftruncate(fd, size) < 0))
		test_abort(path);
	close(fd);
}

/* A socket that nobody listens on any more. */
static void socket_make_stale(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (sock < 0 || bind(sock, (struct sockaddr *)&address, sizeof(address)) < 0)
		test_abort(path);
	close(sock);
}

static void prepare_nothing(void)
{
}

static void prepare_small(void)
{
	file_make("memory", "precious", MEMORY);
	file_make(PIDFILE, "4194303\n", 0);
	socket_make_stale(SOCKET);
}

static void prepare_large(void)
{
	file_make("memory", "precious", 4 * MEMORY);
}

static void prepare_unwritten(void)
{
	file_make("memory", "", MEMORY);
}

static const struct start starts[] = {
	{"existing file", prepare_small, "-f memory -m 2M -t -a -g GROUP -i pidfile -y 5 -n 2 -v",
	 false},
	{"new file", prepare_nothing, "-f memory -i pidfile", false},
	{"shared memory", prepare_nothing, "-s SHM -m 2M -a -g GROUP", false},
	{"anonymous memory", prepare_nothing, "-A -m 2M -a", false},
	{"unnamed file", prepare_nothing, "--anonymous=. -i pidfile", false},
	{"shrinking", prepare_large, "-f memory -m 1M -t", false},
	{"file that nobody has written", prepare_unwritten, "-f memory -m 2M", false},
	{"log file", prepare_nothing, "-f memory -i pidfile -o " LOG, false},
	{"in the background", prepare_small, "-f memory -m 2M -t -i pidfile -d", true},
};

/* What is in the folder and must be the same after a start that is refused; the caller frees it. */
static char *folder_describe(void)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);
	struct dirent **entries;
	int n = scandir(".", &entries, NULL, alphasort);

	if (!out || n < 0)
		test_abort("cannot list the folder");
	for (int i = 0; i < n; i++) {
		const char *name = entries[i]->d_name;
		unsigned long sum = 5381;
		struct stat st;
		FILE *f;

		if (name[0] != '.' && lstat(name, &st) == 0) {
			f = S_ISREG(st.st_mode) ? fopen(name, "re") : NULL;
			for (int byte; f && (byte = getc_unlocked(f)) != EOF;)
				sum = sum * 33 + (unsigned long)byte;
			if (f)
				fclose(f);
			fprintf(out, " %s(inode %ju, mode %o, group %u, %jd bytes, sum %lx)", name,
				(uintmax_t)st.st_ino, (unsigned int)st.st_mode,
				(unsigned int)st.st_gid, (intmax_t)st.st_size, sum);
		}
		free(entries[i]);
	}
	free(entries);
	fclose(out);
	return text;
}

/* Whether somebody listens on the socket. */
static bool socket_lives(void)
{
	struct client c;
	bool lives = client_connect(&c, SOCKET, (struct client_options){0});

	client_free(&c);
	return lives;
}

static void folder_empty(void)
{
	const char *server;
	DIR *d = opendir(".");

	if (!d)
		test_abort("cannot list the folder");
	for (struct dirent *e; (e = readdir(d));)
		if (e->d_name[0] != '.' && unlink(e->d_name) < 0)
			test_abort(e->d_name);
	closedir(d);
	server = getenv("SERVER");
	if (!server || symlink(server, PROGRAM) < 0)
		test_abort("cannot link to $SERVER");
}

/* The name of the shared memory object. */
static const char *shm_name(void)
{
	static char name[64];

	snprintf(name, sizeof(name), "/tm_faults_%d", (int)getpid());
	return name;
}

/* The command that runs the server under strace; words has room for its options. */
static void start_command(const struct start *start, const struct fault *fault, char **argv,
			  char (*words)[64])
{
	const char *list = start->args;
	struct group *group = getgrgid(getegid());
	size_t n = strace_arguments(argv, STRACE_LOG, fault);

	argv[n++] = PROGRAM;
	argv[n++] = "-p";
	argv[n++] = SOCKET;
	for (; *word_next(&list, *words, sizeof(*words)); words++) {
		argv[n++] = *words;
		if (!strcmp(*words, "GROUP"))
			snprintf(*words, sizeof(*words), "%s", group ? group->gr_name : "0");
		else if (!strcmp(*words, "SHM"))
			snprintf(*words, sizeof(*words), "%s", shm_name());
	}
	argv[n] = NULL;
}

/* Starts the server in the folder. Returns its process. */
static pid_t start_spawn(const struct start *start, const struct fault *fault)
{
	char *argv[STRACE_ARGUMENTS + WORDS + 4], words[WORDS][64];
	pid_t pid;
	int log;

	start_command(start, fault, argv, words);
	pid = fork();
	if (pid < 0)
		test_abort("cannot fork");
	if (pid > 0)
		return pid;
	log = open(LOG, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
	if (log < 0 || dup2(log, STDOUT_FILENO) < 0 || dup2(log, STDERR_FILENO) < 0)
		_exit(127);
	close(log);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	execvp(argv[0], argv);
	_exit(127);
}

static char *log_text(void)
{
	char *text = file_text(LOG);

	return text ? text : strdup("");
}

/* The process in the background, as its pidfile says; 0: none. */
static pid_t daemon_pid(void)
{
	FILE *f = fopen(PIDFILE, "re");
	int pid = 0;

	if (f && fscanf(f, "%d", &pid) != 1)
		pid = 0;
	if (f)
		fclose(f);
	return pid;
}

/* Whether the server says that it is ready, in one way or the other: one of them may be lost. */
static bool start_ready(void)
{
	char *log = file_text(LOG);
	bool ready = (log && strstr(log, "connect a node:")) || supervisor_ready();

	free(log);
	return ready;
}

/* Waits until the start has succeeded or failed. Returns the process that serves; 0: status. */
static pid_t start_wait(const struct start *start, pid_t pid, int *status)
{
	int64_t deadline = deadline_in(PATIENCE);

	do {
		int ended = 0;

		if (waitpid(pid, &ended, WNOHANG) == pid) {
			*status = WIFEXITED(ended) ? WEXITSTATUS(ended) : -WTERMSIG(ended);
			return start->daemonizes && *status == 0 ? daemon_pid() : 0;
		}
		if (!start->daemonizes && start_ready())
			return pid;
	} while (deadline_ahead(deadline));
	test_fail("the start neither succeeded nor failed in %d s", PATIENCE);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return 0;
}

/* Whether a client is served. */
static bool served_check(const struct start *start)
{
	struct client c;
	int vectors = strstr(start->args, "-n 2") ? 2 : 1;
	bool served = client_connect(&c, SOCKET, (struct client_options){.vectors = vectors}) &&
		      clients_drive(&c, 1, client_knows, &(size_t){0}, PATIENCE);

	if (!served)
		test_fail("%s", c.error);
	client_free(&c);
	return served;
}

/* Ends the server, and checks that it ends as it should. */
static void server_end(pid_t pid)
{
	struct server s = {.pid = pid};
	int status = server_stop(&s);

	if (status != 0)
		test_fail("asked to end, it ends with status %d", status);
	if (access(SOCKET, F_OK) == 0 || access(PIDFILE, F_OK) == 0)
		test_fail("it has ended, and left socket or pidfile behind");
}

/* Makes everything as it is to be before a start. */
static void world_prepare(const struct start *start)
{
	folder_empty();
	start->prepare();
	shm_unlink(shm_name());
	supervisor_forget();
	unlink(STRACE_LOG);
	unlink(LOG);
}

/* After a start that was refused, everything must be as it was. */
static void world_check(const char *before, bool socket_before)
{
	char *after = folder_describe();

	if (strcmp(before, after))
		test_fail("before it was%s\nafterwards%s", before, after);
	free(after);
	if (access(SOCKET, F_OK) == 0 && (!socket_before || socket_lives()))
		test_fail("there is a socket");
	if (shm_unlink(shm_name()) == 0)
		test_fail("the shared memory object is still there");
}

/* Runs one start, and checks what it leaves behind. Returns the log, which the caller frees. */
static char *start_run(const struct start *start, const struct fault *fault, struct result *r)
{
	char *before, *log;
	bool socket_before;
	pid_t serving;

	*r = (struct result){0};
	world_prepare(start);
	before = folder_describe();
	socket_before = access(SOCKET, F_OK) == 0;
	serving = start_wait(start, start_spawn(start, fault), &r->status);
	r->outcome = serving ? SERVES : REFUSES;
	if (serving) {
		served_check(start);
		server_end(serving);
	} else {
		world_check(before, socket_before);
	}
	if (!calls_wait_exit(STRACE_LOG))
		test_fail("strace does not end");
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
	free(before);
	r->log = log = log_text();
	return log;
}

static const char *start_phase(const struct start *start)
{
	bool asked = strstr(start->args, "GROUP");

	if (start->prepare == prepare_nothing)
		return asked ? "start asked creates" : "start default creates";
	return asked ? "start asked" : "start default";
}

/* Lets one call fail. */
static void fault_try(const struct start *start, const struct fault *fault)
{
	struct calls calls;
	struct result r;
	char *log;

	log = start_run(start, fault, &r);
	if (!calls_read(&calls, STRACE_LOG))
		test_abort(STRACE_LOG);
	fault_check(rules, start_phase(start), &calls, fault, &r);
	if (r.outcome == REFUSES && r.status != (strstr(log, "--help") ? 2 : 1))
		test_fail("%s %u %s: ends with status %d: %s", fault->call, fault->nth,
			  fault->error, r.status, log);
	calls_free(&calls);
	free(log);
}

/* Whether a call is part of the start: of ours, and made before anybody waits for clients. */
static bool call_counts(const struct calls *calls, const struct call *c)
{
	for (const struct call *i = calls->list; i <= c; i++)
		if (i->own && word_in("pselect6 select", i->name))
			return false;
	return c->own;
}

/*
 * Whether a call can fail alone. strace counts in each process anew: the nth call of a child cannot
 * fail alone if its parent has made as many. Then it is the parent's that fails; and what the child
 * does is what a start in the foreground does, where all of it can fail.
 */
static bool call_fails_alone(const struct calls *calls, const struct call *c)
{
	unsigned int parents = 0;

	for (size_t i = 0; i < calls->n; i++)
		parents += calls->list[i].pid == calls->list[0].pid &&
			   !strcmp(calls->list[i].name, c->name);
	return c->pid == calls->list[0].pid || c->nth > parents;
}

/* All faults of one kind of call in one start. */
static void calls_try(const struct start *start, const struct calls *calls, const char *name)
{
	const char *errors = fault_errors(name);
	unsigned int places = 0, tried = 0;
	char error[32];

	for (size_t i = 0; i < calls->n; i++) {
		const struct call *c = &calls->list[i];
		const char *list = errors;

		if (strcmp(c->name, name) || !call_counts(calls, c) || !call_fails_alone(calls, c))
			continue;
		places++;
		for (unsigned int e = 0; *word_next(&list, error, sizeof(error)); e++) {
			struct fault fault = {.call = name,
					      .error = error,
					      .nth = c->nth,
					      .children = c->pid != calls->list[0].pid};

			if (!faults_chosen(places, e) ||
			    rule_find(rules, start_phase(start), calls, c, error)->outcome == NEVER)
				continue;
			fault_try(start, &fault);
			tried++;
		}
	}
	if (tried)
		test_end("start, %s: %s fails, %u faults", start->name, name, tried);
}

/* Runs a start without any fault, and then with each. */
static void start_test(const struct start *start)
{
	struct calls calls;
	struct result r;
	char *log;

	log = start_run(start, NULL, &r);
	if (r.outcome != SERVES)
		test_fail("%s", log);
	free(log);
	if (!calls_read(&calls, STRACE_LOG))
		test_abort(STRACE_LOG);
	calls_name(&calls);
	test_end("start, %s: serves, and every call is in the table", start->name);
	for (size_t i = 0; i < calls.n; i++)
		if (call_counts(&calls, &calls.list[i]) && calls_first(&calls, &calls.list[i]))
			calls_try(start, &calls, calls.list[i].name);
	calls_free(&calls);
}

int main(void)
{
	const char *parent = getenv("TEST_DIR");

	if (!parent || chdir(parent) < 0 || mkdir(FOLDER, 0700) < 0 || chdir(FOLDER) < 0)
		test_abort("no $TEST_DIR");
	if (!strace_works())
		return matrix_close();
	matrix_open("faults-start");
	supervisor_begin();
	prctl(PR_SET_CHILD_SUBREAPER, 1); /* to see how a server in the background ends */
	for (size_t i = 0; i < sizeof(starts) / sizeof(starts[0]); i++)
		start_test(&starts[i]);
	return matrix_close();
}
