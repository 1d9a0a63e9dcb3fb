/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Fault injection: lets strace make one system call of the server fail, and reads from strace's log
 * which call that was. What may fail how is in one table, fault_errors; what the server must then
 * do is a list of rules in each test, and a call or an outcome that nobody has explained is a
 * failed test. Every fault tried becomes a row of the matrix, $LOG_DIR/NAME.txt.
 */
#ifndef FAULTS_H
#define FAULTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/types.h>

struct supervisor;

/* Which call fails, counted in each process from the start of strace on. */
struct fault {
	const char *call;  /* NULL: nothing fails; or two words for two calls */
	const char *error; /* the name of an errno */
	unsigned int nth;
	bool onwards;  /* and all after that */
	bool children; /* follow children (they count anew); else only the process itself */
};

/* One line of strace's log. */
struct call {
	pid_t pid;
	bool own;        /* made by our program, not by the loader and libc before main */
	bool after_exec; /* made by a program that has replaced the first one of the process */
	bool injected;
	unsigned int nth;
	char name[24];
	char text[320];
};

struct calls {
	struct call *list;
	size_t n;
};

/* A strace that is attached to a process. */
struct strace {
	pid_t pid; /* 0: none */
};

/* The places that strace_arguments fills, at most. */
#define STRACE_ARGUMENTS 16

/* The errnos that a call is likely to fail with, as one word each; NULL: not in the table. */
const char *fault_errors(const char *call);

/* Whether a list of words has this one. */
bool word_in(const char *list, const char *word);

/* The next word of a list, and moves on; empty at its end. */
const char *word_next(const char **list, char *word, size_t room);

/* The errno of a name such as "ENOMEM"; dies where there is none. */
int error_number(const char *name);

/*
 * Whether a fault is tried: all are with FULL=1. Else, of each kind of call, the first fails with
 * the first two errnos, and the second and the third with the next ones.
 */
bool faults_chosen(unsigned int place, unsigned int error);

/*
 * The arguments that run a program under strace, from argv[0] on: nothing fails where fault is
 * NULL. The program keeps its process. Returns how many; the program's own follow.
 */
size_t strace_arguments(char **argv, const char *log, const struct fault *fault);

/* Whether there is a strace that can be used here. If not, the test is skipped. */
bool strace_works(void);

/* Attaches to a process. Returns false, and says why, where that fails. */
bool strace_attach(struct strace *t, pid_t pid, const char *log, const struct fault *fault);

/* Lets go of it: every call that was made until then is in the log. */
void strace_detach(struct strace *t);

/*
 * Reads a log. What a program does before it calls close_range or getcwd for the first time is what
 * loader and libc do before main. Returns false if it cannot be read.
 */
bool calls_read(struct calls *calls, const char *log);
void calls_free(struct calls *calls);

/* The call that was made to fail; NULL: none yet, the last of them if there are more. */
const struct call *calls_injected(const struct calls *calls, size_t *times);

/* Makes us the supervisor of all servers that we start: it stands in $NOTIFY_SOCKET. Returns it. */
struct supervisor *supervisor_begin(void);

/* Whether one of them has told us that it is ready, since we were last asked. */
bool supervisor_ready(void);

/* Forgets that, and what they have stored. */
void supervisor_forget(void);

/* Fails the test if one of our own calls is not in the table. */
void calls_name(const struct calls *calls);

/* Whether it is the first of ours of its name. */
bool calls_first(const struct calls *calls, const struct call *c);

/* Waits until the log says that a process has ended. */
bool calls_wait_exit(const char *log);

/* What comes of a fault. */
enum outcome {
	REFUSES, /* the start */
	SERVES,
	EITHER,     /* of the two, or of JOINS and DROPS, or of RESTARTS and STAYS */
	JOINS,      /* the client that comes */
	TURNS_AWAY, /* it, with version -1 */
	DROPS,      /* the connection of the one client that it hit */
	RESTARTS,   /* in place */
	STAYS,      /* as it is, without a restart */
	ENDS,
	LEAVES, /* ends, and leaves a file behind */
	DIES,   /* which is never right */
	NEVER,  /* the call cannot fail like this: not tried */
};

/*
 * What must come of a fault; of a list of these the first that fits counts, and what is left out
 * fits all. A list ends with a rule that fits all.
 */
struct rule {
	const char *phase;          /* a word of what the test says that is going on */
	const char *calls, *errors; /* words */
	const char *text;           /* a part of the call as strace prints it */
	const char *after, *before; /* a call of ours that came earlier, or did not yet */
	bool first;                 /* the first call of ours with that text */
	enum outcome outcome;
	bool quiet; /* nothing needs to be said about it */
	const char *why;
};

const struct rule *rule_find(const struct rule *rules, const char *phase, const struct calls *calls,
			     const struct call *c, const char *error);

/* What came of one fault, for fault_check. */
struct result {
	enum outcome outcome;
	int status;      /* that the server ended with, where it did */
	const char *log; /* what it wrote */
};

/*
 * Checks an outcome against the rules, and makes a row of the matrix of it. calls must contain the
 * call that failed, once.
 */
void fault_check(const struct rule *rules, const char *phase, const struct calls *calls,
		 const struct fault *fault, const struct result *r);

/* Opens the matrix, $LOG_DIR/NAME.txt. */
void matrix_open(const char *name);

/* One test (TAP): whatever was wrong has been noted with test_fail before. */
__attribute__((format(printf, 1, 2))) void test_fail(const char *format, ...);
__attribute__((format(printf, 1, 2))) void test_end(const char *format, ...);

/* Ends the program: the test itself cannot go on. */
__attribute__((noreturn)) void test_abort(const char *what);

/* Prints the plan and a summary. Returns the exit status. */
int matrix_close(void);

#endif
