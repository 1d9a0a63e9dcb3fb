/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a message costs a server, beside what the same messages cost the kernel alone. The parts:
 * bench.c runs everything in rounds, mesh.c is all the clients, program.c starts a server and looks
 * at its CPU time, sender.c is the plain sender to compare with, report.c prints.
 */
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/types.h>
#include <sys/un.h>
#include <time.h>

/* How peers come. */
enum bench_how {
	AT_ONCE, /* all connect at the same time */
	IN_TURN, /* the next connects when everybody knows the one before */
	CHURN,   /* in a mesh that stands, one joins and leaves again, CHURN_STEPS times */
};

#define CHURN_STEPS 100

struct bench_case {
	unsigned int peers, vectors;
	enum bench_how how;
};

/* What one run of a case gave. */
struct bench_result {
	double wall;     /* seconds from the first connect to the last message */
	double cpu;      /* seconds that the server computed meanwhile */
	size_t messages; /* received */
	size_t lost;     /* that should have been received as well */
	double median;   /* milliseconds from a connect to its last own vector */
	double p99;      /* of these */
	long peak;       /* KiB of memory that the server had at most */
};

/* A server that runs: a command, or the plain sender. */
struct bench_program {
	pid_t pid;
	clockid_t clock; /* its CPU time */
	double *spent;   /* the plain sender says itself what it spent, and ends; else NULL */
	char folder[64]; /* its log and socket; removed by program_stop */
	char socket[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
	char memory[32]; /* the object that it may make; removed by program_stop */
};

/* The messages of a greeting that are no eventfds: version, ID, memory. */
#define GREETING 3

/* The CPUs that the server and the clients keep to, so that neither moves or waits for the other.
 */
void program_pin(bool server);

/* Seconds on a clock. */
double clock_seconds(clockid_t clock);

/*
 * Starts a shell command that serves, or the plain sender where that is NULL, and waits until it
 * listens. Returns false after having said why.
 */
bool program_start(struct bench_program *p, const char *command, const struct bench_case *c);

/* The CPU time that it has used so far, in seconds. */
double program_cpu(const struct bench_program *p);

/* The same, once it has nothing more to do. */
double program_cpu_idle(struct bench_program *p);

/* The most memory that it had, in KiB; 0: unknown. */
long program_peak(const struct bench_program *p);

/* Ends it and removes what it leaves. */
void program_stop(struct bench_program *p);

/* Serves one case as cheaply as can be, on a socket that listens; *spent gets the cost of sending.
 */
void sender_run(const struct bench_case *c, int listener, double *spent);

/* How many messages all clients of a case must get. */
size_t mesh_expected(const struct bench_case *c);

/* Lets the clients of a case join, and leave, and measures. Returns false after having said why. */
bool mesh_run(const struct bench_case *c, struct bench_program *p, struct bench_result *r);

/* Who is measured, in the order in which the table has them. */
enum bench_who { KERNEL, SERVER, PEER, BENCH_PROGRAMS };

#define ROUNDS_MAX 99

/* All runs of a case: round by round, so that each is compared with its neighbours in time. */
struct bench_series {
	struct bench_case what;
	size_t rounds;
	struct bench_result results[BENCH_PROGRAMS][ROUNDS_MAX];
};

/* Prints where and what is measured. peer is NULL where there is none. */
void report_head(FILE *f, const char *server, const char *peer);

/* Prints the rows of a case. */
void report_case(FILE *f, const struct bench_series *s, bool peer);

/* Prints how often the cases were repeated. */
void report_foot(FILE *f, const struct bench_series *s, size_t cases);

#endif
