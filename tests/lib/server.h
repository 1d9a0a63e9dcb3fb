/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Starts the server under test, $SERVER, in a folder of its own, and looks at it from outside.
 *
 *	struct server s = {0};
 *
 *	if (!server_start(&s, SERVER_ARGS("-f", "memory", "-n", "2")))
 *		puts(s.error);
 *	...
 *	status = server_stop(&s);
 *	server_remove(&s);
 */
#ifndef SERVER_H
#define SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <sys/un.h>

struct supervisor;

/* What greetings under way get when the server ends, as the program has it. */
#define GREETING_MS 1000

/* How often what takes longer than that, on a busy machine, is tried again. */
#define TRIES 30

struct server {
	/* Set before the start; zero: as the test itself. */
	struct rlimit descriptors;     /* RLIMIT_NOFILE */
	bool unprivileged;             /* if the test is root, runs as a user that nobody else is */
	struct supervisor *supervisor; /* it runs under this one, and gets what that has stored */
	unsigned int alarm_us;         /* so long after its start a signal kills it; 0: never */
	bool piped;                    /* its log goes through a pipe, which it may open again */
	bool held;                     /* stops before its first instruction, until SIGCONT */
	bool unraised;                 /* it cannot raise its hard limits, whatever else root may */

	uid_t user;      /* that it runs as */
	char folder[96]; /* its working directory; made at the first start */
	char socket[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
	char log[128];   /* the path of what it wrote to stdout and stderr, over all its starts */
	pid_t pid;       /* 0: not running */
	int status;      /* how it ended, as server_wait says it, if it did not start */
	int idle;        /* descriptors that it had open when it was ready */
	char error[512]; /* why it did not start, its last words included */
};

#define SERVER_ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})

/*
 * Starts it with -p and these arguments, and waits until it says that it is ready. It dies with the
 * test. Can be called again after it has ended: folder, socket path and log stay the same.
 * Returns false with s->error set.
 */
bool server_start(struct server *s, const char *const *args);

/*
 * The same, and does not wait until it is ready: it has not got further than to be executed, and
 * not even that where it is held.
 */
bool server_spawn(struct server *s, const char *const *args);

/* Sends it a signal. */
void server_signal(const struct server *s, int signal);

/*
 * Waits until it has ended, and kills it after so many seconds. Returns its exit status; or the
 * negative number of the signal that killed it: -SIGKILL where it had to be ours.
 */
int server_wait(struct server *s, int seconds);

/* Asks it to end, with TERM. Returns as server_wait does. */
int server_stop(struct server *s);

/* Ends it with KILL, if it is still running, and removes its folder. */
void server_remove(struct server *s);

/* The text of a file; the caller frees it. NULL where it cannot be read. */
char *file_text(const char *path);

/* The last lines of a file, for a message, up to the next call; "" where it cannot be read. */
const char *file_end(const char *path);

/* What stands in a file of a process in /proc; the caller frees it. NULL where it cannot be read.
 */
char *process_text(pid_t pid, const char *file);

/* What it has logged so far, or what /proc says: NULL or -1 where that cannot be read. */
char *server_log(const struct server *s); /* the caller frees it */
bool server_logged(const struct server *s, const char *text);
bool server_log_wait(const struct server *s, const char *text, int seconds);
int server_descriptors(const struct server *s);

/* The process whose number is in the pidfile "pid" in its folder; 0: none. */
pid_t server_pidfile(const struct server *s);

/* Opens the ledger that it has, to read and write. Returns the descriptor, or -1. */
int server_ledger(const struct server *s);

/* How many it has open when it waits for somebody, and none for a moment; -1 if it never does. */
int server_idle(const struct server *s);

/* The memory that it has for itself alone, in bytes, and exactly: neither what of its program it
 * has run so far, nor what the kernel counts in advance for each processor. -1: that cannot be
 * read. */
long server_memory(const struct server *s);

/* Waits until it has exactly so many descriptors open. Returns false after so many seconds. */
bool server_descriptors_wait(const struct server *s, int descriptors, int seconds);

/* How many descriptors a process has open; 0: this one. -1 with errno. */
int descriptors_count(pid_t pid);

/* Raises this process's limit of descriptors to the hard one. Returns that. */
rlim_t descriptors_allow(void);

#endif
