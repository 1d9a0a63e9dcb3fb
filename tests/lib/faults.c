/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "faults.h"

#include "deadline.h"
#include "form.h"
#include "server.h"
#include "supervisor.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * Every system call that the server makes, and what its manual page lets it fail with on Linux: not
 * all errnos, but those that a server can meet that does nothing wrong. A call that is not here
 * fails the tests, so that new code cannot slip by.
 */
static const struct {
	const char *calls, *errors;
} table[] = {
	/* Descriptors and files. */
	{"openat", "EMFILE ENFILE ENOMEM EACCES EPERM EINTR EIO ENOSPC EDQUOT EROFS"},
	{"close", "EIO EINTR ENOSPC EDQUOT"},
	{"close_range", "ENOMEM EMFILE"},
	{"dup2 dup3", "EMFILE EBUSY EINTR"},
	{"fcntl", "EMFILE EAGAIN EINTR ENOMEM"},
	{"pipe2", "EMFILE ENFILE"},
	{"read pread64", "EIO EINTR EAGAIN"},
	{"write", "EIO ENOSPC EDQUOT EPIPE EAGAIN EINTR"},
	{"pwrite64", "EIO ENOSPC EDQUOT EFBIG EINTR"},
	{"lseek", "EIO EOVERFLOW"},
	{"newfstatat fstat stat lstat statx", "ENOMEM EACCES EIO EOVERFLOW"},
	{"fstatfs", "EIO EINTR ENOMEM ENOSYS"},
	{"flock", "EINTR ENOLCK EAGAIN"},
	{"ftruncate", "EIO EFBIG EINTR EPERM ENOSPC EDQUOT ETXTBSY"},
	{"fallocate", "ENOSPC EIO EINTR EOPNOTSUPP EDQUOT EFBIG EPERM"},
	{"fdatasync", "EIO ENOSPC EDQUOT EINTR EROFS"},
	{"unlink unlinkat", "EACCES EPERM EBUSY EIO EROFS"},
	{"rename renameat renameat2", "EACCES EPERM EBUSY EIO EROFS ENOSPC"},
	{"chmod fchmod fchmodat", "EPERM EACCES EIO EROFS"},
	{"chown lchown fchown fchownat", "EPERM EINVAL EACCES EIO EROFS EDQUOT"},
	{"removexattr lremovexattr fremovexattr", "EACCES EPERM EIO EROFS ENOENT"},
	{"epoll_create1", "EMFILE ENFILE ENOMEM"},
	{"epoll_ctl", "ENOMEM ENOSPC"},
	{"epoll_wait epoll_pwait", "EINTR"},
	{"inotify_init1", "EMFILE ENFILE ENOMEM"},
	{"inotify_add_watch", "EACCES ENOENT ENOMEM ENOSPC"},
	{"readlink readlinkat", "EACCES ENOENT"},
	{"getdents64", "ENOENT"},
	{"getcwd", "ENOENT EACCES ENOMEM"},
	{"chdir", "EACCES EIO"},
	{"ioctl", "EIO"},
	{"memfd_create", "EMFILE ENFILE ENOMEM EPERM"},
	{"eventfd2", "EMFILE ENFILE ENOMEM ENODEV"},
	{"signalfd4", "EMFILE ENFILE ENOMEM ENODEV"},
	/* Sockets. */
	{"socket", "EMFILE ENFILE ENOBUFS ENOMEM EACCES EAFNOSUPPORT"},
	{"bind", "EACCES EADDRINUSE ENOMEM ENOSPC EROFS EDQUOT"},
	{"listen", "EADDRINUSE EOPNOTSUPP"},
	{"connect", "EACCES EPERM EAGAIN EINTR ENOENT"},
	{"accept4", "EMFILE ENFILE ENOBUFS ENOMEM ECONNABORTED EPERM EPROTO EINTR EAGAIN"},
	{"recvfrom", "EINTR ENOMEM EAGAIN ENOBUFS ECONNRESET"},
	{"recvmsg", "EAGAIN EINTR ENOMEM ENOBUFS"},
	{"socketpair", "EMFILE ENFILE ENOBUFS ENOMEM"},
	{"sendto", "EAGAIN ECONNREFUSED ENOBUFS ENOMEM EINTR"},
	{"sendmsg", "EAGAIN ENOBUFS ENOMEM EACCES EPERM ECONNREFUSED EINTR ETOOMANYREFS"},
	{"sendmmsg", "EAGAIN EINTR ENOBUFS ENOMEM ETOOMANYREFS EPIPE ECONNRESET"},
	{"shutdown", "ENOTCONN"},
	{"getsockopt", "ENOBUFS ENOPROTOOPT"},
	{"getsockname getpeername", "ENOBUFS"},
	{"setsockopt", "ENOBUFS ENOMEM"},
	{"pselect6 select", "EINTR ENOMEM"},
	{"poll ppoll", "EINTR ENOMEM"},
	/* Processes. */
	{"clone clone3 fork", "EAGAIN ENOMEM"},
	{"execve", "EACCES ENOENT ENOMEM ETXTBSY EAGAIN EMFILE EIO ENOEXEC"},
	{"wait4 waitid", "EINTR"},
	{"kill", "EPERM ESRCH"},
	{"setsid", "EPERM"},
	{"setpgid", "EACCES EPERM"},
	{"prlimit64", "EPERM"},
	{"capget", "EPERM"},
	/* Memory: where memory is short, the C library first tries another way to get it. */
	{"brk", "ENOMEM"},
	{"mmap", "ENOMEM EACCES EAGAIN ENFILE EPERM ENODEV"},
	{"munmap", "ENOMEM"},
	{"mremap", "ENOMEM"},
	{"mprotect", "ENOMEM"},
	/* These cannot fail in any way that a program can meet, or do not matter where they do. */
	{"umask getpid getppid gettid getuid geteuid getgid getegid exit_group", ""},
	{"rt_sigaction rt_sigprocmask rt_sigpending rt_sigreturn restart_syscall", ""},
	{"set_robust_list clock_gettime getrandom futex sched_yield sysinfo uname", ""},
	{"clock_nanosleep nanosleep rt_sigtimedwait", "EINTR"},
	/* The sanitizers make these. */
	{"madvise sigaltstack prctl getrlimit sched_getaffinity tgkill personality", ""},
};

static const char *const outcome_names[] = {
	[REFUSES] = "refuses",
	[SERVES] = "serves",
	[EITHER] = "either",
	[JOINS] = "joins",
	[TURNS_AWAY] = "turns away",
	[DROPS] = "drops",
	[RESTARTS] = "restarts",
	[STAYS] = "stays",
	[ENDS] = "ends",
	[LEAVES] = "leaves",
	[DIES] = "dies",
	[NEVER] = "never",
};

static struct {
	FILE *file;
	const char *name;
	size_t tests, failures, rows;
	char failed[1 << 16]; /* what was wrong in the test under way; empty: nothing */
} matrix;

void test_abort(const char *what)
{
	printf("Bail out! %s: %s\n", what, strerror(errno));
	exit(EXIT_FAILURE);
}

const char *word_next(const char **list, char *word, size_t room)
{
	size_t length;

	*list += strspn(*list, " ");
	length = strcspn(*list, " ");
	snprintf(word, room, "%.*s", (int)length, *list);
	*list += length;
	return word;
}

bool word_in(const char *list, const char *word)
{
	char one[64];

	while (*word_next(&list, one, sizeof(one)))
		if (!strcmp(one, word))
			return true;
	return false;
}

const char *fault_errors(const char *call)
{
	/* A sanitizer has more memory than the program, and ends it where it cannot have that. */
	if (sanitized() && word_in("brk mmap munmap mremap mprotect", call))
		return "";
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		if (word_in(table[i].calls, call))
			return table[i].errors;
	return NULL;
}

int error_number(const char *name)
{
	for (int error = 1; error < 200; error++)
		if (strerrorname_np(error) && !strcmp(strerrorname_np(error), name))
			return error;
	errno = EINVAL;
	test_abort(name);
}

bool faults_chosen(unsigned int place, unsigned int error)
{
	return full() || (place == 1 && error < 2) || (place > 1 && place <= 3 && error == place);
}

/*
 * How a call fails, in the words of strace. brk says by its result that it has not done anything,
 * and never returns an errno; a write that nobody reads raises a signal as well.
 */
static void fault_describe(const struct fault *fault, const char *call, char *text, size_t room)
{
	char how[64];

	if (!fault->error)
		test_abort("a fault without an errno");
	snprintf(how, sizeof(how), "error=%s", fault->error);
	if (!strcmp(call, "brk"))
		strcpy(how, "retval=0");
	else if (!strcmp(call, "write") && !strcmp(fault->error, "EPIPE"))
		strcat(how, ":signal=SIGPIPE");
	snprintf(text, room, "inject=%s:%s:when=%u%s", call, how, fault->nth,
		 fault->onwards ? "+" : "");
}

/* Adds what strace is to do: to write a log and to let calls fail. Returns the new length. */
static size_t strace_options(char **argv, size_t n, const char *log, const struct fault *fault)
{
	static const struct fault nothing = {.children = true};
	static char inject[2][128], path[256];
	char call[32];
	const char *calls;

	if (!fault)
		fault = &nothing;
	calls = fault->call ? fault->call : "";
	snprintf(path, sizeof(path), "%s", log);
	argv[n++] = "-o";
	argv[n++] = path;
	argv[n++] = "-y"; /* shows which file a descriptor is */
	if (fault->children)
		argv[n++] = "-f";
	for (size_t i = 0; i < 2 && *word_next(&calls, call, sizeof(call)); i++) {
		fault_describe(fault, call, inject[i], sizeof(inject[i]));
		argv[n++] = "-e";
		argv[n++] = inject[i];
	}
	return n;
}

size_t strace_arguments(char **argv, const char *log, const struct fault *fault)
{
	argv[0] = "strace";
	argv[1] = "-D"; /* the program stays our child, and strace is nobody's */
	argv[2] = "-q";
	return strace_options(argv, 3, log, fault);
}

bool strace_works(void)
{
	if (system("strace -e inject=getcwd:error=EIO true >/dev/null 2>&1") == 0)
		return true;
	printf("ok %zu - faults # SKIP strace is missing, or may not be used\n", ++matrix.tests);
	return false;
}

static bool file_contains(const char *path, const char *what)
{
	char *text = file_text(path);
	bool found = text && strstr(text, what);

	free(text);
	return found;
}

/* Becomes strace, in the child, with its messages in a file. */
static void strace_exec(pid_t pid, const char *log, const char *messages, const struct fault *fault)
{
	char *argv[STRACE_ARGUMENTS], number[16];
	int fd = open(messages, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	size_t n = 1;

	argv[0] = "strace";
	n = strace_options(argv, n, log, fault);
	snprintf(number, sizeof(number), "%d", (int)pid);
	argv[n++] = "-p";
	argv[n++] = number;
	argv[n] = NULL;
	if (fd >= 0 && dup2(fd, STDERR_FILENO) >= 0)
		execvp(argv[0], argv);
	_exit(127);
}

bool strace_attach(struct strace *t, pid_t pid, const char *log, const struct fault *fault)
{
	int64_t deadline = deadline_in(PATIENCE);
	char messages[256], *text;
	bool attached;

	snprintf(messages, sizeof(messages), "%s.messages", log);
	unlink(messages);
	t->pid = fork();
	if (t->pid < 0)
		test_abort("cannot start strace");
	if (t->pid == 0)
		strace_exec(pid, log, messages, fault);
	while (!(attached = file_contains(messages, "attached\n")) &&
	       waitpid(t->pid, NULL, WNOHANG) == 0 && deadline_ahead(deadline))
		;
	if (attached)
		return true;
	text = file_text(messages);
	printf("# %s\n", text ? text : "no strace");
	free(text);
	t->pid = 0;
	return false;
}

void strace_detach(struct strace *t)
{
	if (t->pid <= 0)
		return;
	kill(t->pid, SIGINT);
	waitpid(t->pid, NULL, 0);
	t->pid = 0;
}

/* What is known of a process while its log is read. */
struct process {
	pid_t pid;
	bool seen, own, after_exec;
};

/* The place of a process, which is new if it has not been seen yet. */
static struct process *process_place(struct process *processes, size_t room, pid_t pid)
{
	size_t i = 0;

	while (i < room - 1 && processes[i].seen && processes[i].pid != pid)
		i++;
	if (!processes[i].seen)
		processes[i] = (struct process){.pid = pid, .seen = true, .own = true};
	return &processes[i];
}

/* Notes how a call ended, from the rest of its line. */
static void call_end(struct process *p, struct call *c, const char *rest)
{
	c->injected = strstr(rest, "(INJECTED)");
	if (!strcmp(c->name, "execve") && strstr(rest, " = 0")) {
		p->own = false;
		p->after_exec = true;
	}
}

/* How many calls of that name the process has made before. */
static unsigned int calls_before(const struct calls *calls, pid_t pid, const char *name)
{
	unsigned int n = 0;

	for (size_t i = 0; i < calls->n; i++)
		n += calls->list[i].pid == pid && !strcmp(calls->list[i].name, name);
	return n;
}

/* Takes one line: "123 name(arguments) = result", or a part of that. */
static void line_take(struct calls *calls, struct process *processes, size_t room, char *line)
{
	char *at = line, *name_end;
	struct process *p;
	struct call *c;
	pid_t pid = 0;

	if (isdigit((unsigned char)*at))
		pid = (pid_t)strtol(at, &at, 10);
	at += strspn(at, " ");
	at[strcspn(at, "\n")] = '\0';
	p = process_place(processes, room, pid);
	if (!strncmp(at, "<... ", 5)) {
		for (size_t i = calls->n; i-- > 0;)
			if (calls->list[i].pid == pid) {
				call_end(p, &calls->list[i], at);
				break;
			}
		return;
	}
	name_end = at + strspn(at, "abcdefghijklmnopqrstuvwxyz0123456789_");
	if (*name_end != '(' || name_end == at)
		return; /* a signal, or the end of a process */
	c = &calls->list[calls->n];
	*c = (struct call){.pid = pid, .after_exec = p->after_exec};
	snprintf(c->name, sizeof(c->name), "%.*s", (int)(name_end - at), at);
	snprintf(c->text, sizeof(c->text), "%s", at);
	if (word_in("getcwd close_range", c->name))
		p->own = true;
	c->own = p->own && !(calls->n == 0 && !strcmp(c->name, "execve")) &&
		 !strstr(at, ".gcda"); /* what was executed is counted there, by make coverage */
	c->nth = calls_before(calls, pid, c->name) + 1;
	calls->n++;
	if (!strstr(at, "<unfinished ...>"))
		call_end(p, c, at);
}

bool calls_read(struct calls *calls, const char *log)
{
	struct process processes[64] = {0};
	FILE *f = fopen(log, "re");
	char *line = NULL;
	size_t size = 0, room = 0;

	*calls = (struct calls){0};
	if (!f)
		return false;
	while (getline(&line, &size, f) > 0) {
		if (calls->n == room) {
			room = room ? 2 * room : 256;
			calls->list = reallocarray(calls->list, room, sizeof(*calls->list));
			if (!calls->list)
				test_abort("no memory");
		}
		line_take(calls, processes, sizeof(processes) / sizeof(processes[0]), line);
	}
	free(line);
	fclose(f);
	return true;
}

void calls_free(struct calls *calls)
{
	free(calls->list);
	*calls = (struct calls){0};
}

const struct call *calls_injected(const struct calls *calls, size_t *times)
{
	const struct call *last = NULL;

	*times = 0;
	for (size_t i = 0; i < calls->n; i++)
		if (calls->list[i].injected) {
			last = &calls->list[i];
			++*times;
		}
	return last;
}

void calls_name(const struct calls *calls)
{
	for (size_t i = 0; i < calls->n; i++)
		if (calls_first(calls, &calls->list[i]) && !fault_errors(calls->list[i].name))
			test_fail("%s: lib/faults.c does not say how it can fail",
				  calls->list[i].text);
}

bool calls_first(const struct calls *calls, const struct call *c)
{
	for (const struct call *i = calls->list; i < c; i++)
		if (i->own && !strcmp(i->name, c->name))
			return false;
	return c->own;
}

bool calls_wait_exit(const char *log)
{
	int64_t deadline = deadline_in(PATIENCE);
	bool ended;

	while (!(ended = file_contains(log, "+++ exited with") ||
			 file_contains(log, "+++ killed by")) &&
	       deadline_ahead(deadline))
		;
	return ended;
}

void matrix_open(const char *name)
{
	const char *folder = getenv("LOG_DIR");
	char path[4096];

	setlinebuf(stdout);
	/* Leaks cannot be looked for under strace. */
	setenv("ASAN_OPTIONS", "exitcode=99:detect_leaks=0", 1);
	matrix.name = name;
	if (!folder)
		return;
	snprintf(path, sizeof(path), "%s/%s.txt", folder, name);
	matrix.file = fopen(path, "we");
	if (!matrix.file)
		test_abort(path);
	printf("# the matrix is in %s\n", path);
}

static struct supervisor *supervisor;

struct supervisor *supervisor_begin(void)
{
	supervisor = supervisor_start();
	if (!supervisor)
		test_abort("no supervisor");
	setenv("NOTIFY_SOCKET", supervisor_path(supervisor), 1);
	return supervisor;
}

bool supervisor_ready(void)
{
	static size_t before;
	size_t heard, known = before;

	supervisor_settle(supervisor);
	heard = supervisor_heard(supervisor, "READY=1");
	before = heard;
	return heard > known;
}

void supervisor_forget(void)
{
	supervisor_ready();
	supervisor_empty(supervisor);
}

/* Whether we made such a call before this one, and with such a text if one is given. */
static bool call_came_before(const struct calls *calls, const struct call *c, const char *name,
			     const char *text)
{
	for (const struct call *i = calls->list; i < c; i++)
		if (i->own && (!name || !strcmp(i->name, name)) && (!text || strstr(i->text, text)))
			return true;
	return false;
}

static bool rule_fits(const struct rule *r, const char *phase, const struct calls *calls,
		      const struct call *c, const char *error)
{
	return (!r->phase || word_in(phase, r->phase)) &&
	       (!r->calls || word_in(r->calls, c->name)) &&
	       (!r->errors || word_in(r->errors, error)) &&
	       (!r->text || strstr(c->text, r->text)) &&
	       (!r->after || call_came_before(calls, c, r->after, NULL)) &&
	       (!r->before || !call_came_before(calls, c, r->before, NULL)) &&
	       (!r->first || !call_came_before(calls, c, NULL, r->text));
}

const struct rule *rule_find(const struct rule *rules, const char *phase, const struct calls *calls,
			     const struct call *c, const char *error)
{
	while (!rule_fits(rules, phase, calls, c, error))
		rules++;
	return rules;
}

/* The line of a log that says a text, or else its last one. */
static void log_line_find(const char *log, const char *text, char *line, size_t room)
{
	const char *at = strstr(log, text), *begin;

	if (!at) {
		at = log + strlen(log);
		while (at > log && at[-1] == '\n')
			at--;
	}
	begin = at;
	while (begin > log && begin[-1] != '\n')
		begin--;
	snprintf(line, room, "%.*s", (int)(at - begin + (long)strcspn(at, "\n")), begin);
}

/* One row of the matrix. */
static void matrix_row(const char *phase, const struct fault *fault, const struct call *c,
		       const struct result *r, const char *said, const char *why)
{
	FILE *out = matrix.file ? matrix.file : stdout;

	matrix.rows++;
	fprintf(out, "%s%s%s | %s %u %s | %s", matrix.file ? "" : "# ", phase,
		fault->children ? " (child)" : "", c->name, c->nth, fault->error,
		outcome_names[r->outcome]);
	if (word_in("refuses ends dies leaves", outcome_names[r->outcome]))
		fprintf(out, ", status %d", r->status);
	fprintf(out, " | %s | %s | %s\n", c->text, said, why);
}

void fault_check(const struct rule *rules, const char *phase, const struct calls *calls,
		 const struct fault *fault, const struct result *r)
{
	const char *text = strerror(error_number(fault->error));
	const struct call *c;
	const struct rule *rule;
	char said[256];
	size_t times;

	c = calls_injected(calls, &times);
	if (!c || times != 1 || !c->own) {
		test_fail("%s, %s %u %s: did not fail where it should, but %zu times", phase,
			  fault->call, fault->nth, fault->error, times);
		return;
	}
	rule = rule_find(rules, phase, calls, c, fault->error);
	log_line_find(r->log, text, said, sizeof(said));
	matrix_row(phase, fault, c, r, said, rule->why);
	if (r->outcome != rule->outcome && (rule->outcome != EITHER || r->outcome == DIES))
		test_fail("%s: %s, but %s: %s", c->text, outcome_names[r->outcome], rule->why,
			  said);
	if (!rule->quiet && !strstr(r->log, text))
		test_fail("%s: not a word about it: %s", c->text, said);
}

void test_fail(const char *format, ...)
{
	size_t n = strlen(matrix.failed);
	va_list args;

	va_start(args, format);
	if (n + 2 < sizeof(matrix.failed)) {
		vsnprintf(matrix.failed + n, sizeof(matrix.failed) - n - 1, format, args);
		strcat(matrix.failed, "\n");
	}
	va_end(args);
}

void test_end(const char *format, ...)
{
	char *line, *rest = matrix.failed;
	va_list args;

	printf("%sok %zu - ", matrix.failed[0] ? "not " : "", ++matrix.tests);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	matrix.failures += matrix.failed[0] != '\0';
	while ((line = strsep(&rest, "\n")) && *line)
		printf("# %s\n", line);
	matrix.failed[0] = '\0';
}

int matrix_close(void)
{
	if (matrix.rows)
		printf("# %s: %zu faults\n", matrix.name, matrix.rows);
	printf("1..%zu\n", matrix.tests);
	if (matrix.file && fclose(matrix.file) != 0)
		test_abort("cannot write the matrix");
	return matrix.failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
