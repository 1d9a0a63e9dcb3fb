/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The table of the benchmark. */
#define _GNU_SOURCE
#include "bench.h"

#include <gnu/libc-version.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

static const char *const programs[BENCH_PROGRAMS] = {"kernel", "server", "peer"};
static const char *const hows[] = {"at once", "one by one", "churn"};

/* What the table shows of a run. */
enum column { MESSAGES, LOST, WALL, CPU, RATIO, MEDIAN, JOIN_RATIO, P99, PEAK };

static double cpu_per_message(const struct bench_result *r)
{
	return r->messages ? 1e6 * r->cpu / (double)r->messages : 0;
}

static double result_value(const struct bench_series *s, enum bench_who who, enum column column,
			   size_t round)
{
	const struct bench_result *r = &s->results[who][round];
	double kernel = cpu_per_message(&s->results[KERNEL][round]);
	double join = s->results[KERNEL][round].median;

	switch (column) {
	case MESSAGES: return (double)r->messages;
	case LOST: return 100 * (double)r->lost / (double)(r->lost + r->messages);
	case WALL: return r->wall;
	case CPU: return cpu_per_message(r);
	case RATIO: return kernel > 0 ? cpu_per_message(r) / kernel : 0;
	case MEDIAN: return r->median;
	case JOIN_RATIO: return join > 0 ? r->median / join : 0;
	case P99: return r->p99;
	case PEAK: return (double)r->peak / 1024;
	}
	return 0;
}

static int value_compare(const void *a, const void *b)
{
	double first = *(const double *)a, second = *(const double *)b;

	return (first > second) - (first < second);
}

/* The median over all rounds; *spread gets half the distance of the quartiles. */
static double median(const struct bench_series *s, enum bench_who who, enum column column,
		     double *spread)
{
	double values[ROUNDS_MAX] = {0};
	size_t n = s->rounds;

	for (size_t i = 0; i < n; i++)
		values[i] = result_value(s, who, column, i);
	qsort(values, n, sizeof(*values), value_compare);
	if (spread)
		*spread = (values[3 * n / 4] - values[n / 4]) / 2;
	return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* The first line of a file that begins with a key, after the colon; "?" if there is none. */
static void file_find(const char *path, const char *key, char *out, size_t size)
{
	FILE *f = fopen(path, "re");
	char line[256];

	snprintf(out, size, "?");
	while (f && fgets(line, sizeof(line), f)) {
		const char *colon = strchr(line, ':');

		if (colon && !strncmp(line, key, strlen(key))) {
			snprintf(out, size, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
			break;
		}
	}
	if (f)
		fclose(f);
}

/* The first line that a command prints. */
static void command_line(const char *command, char *out, int size)
{
	FILE *f = popen(command, "re");

	if (!f || !fgets(out, size, f))
		snprintf(out, (size_t)size, "?");
	out[strcspn(out, "\n")] = '\0';
	if (f)
		pclose(f);
}

void report_head(FILE *f, const char *server, const char *peer)
{
	char cpu[128], version[128], command[512];
	struct utsname name;

	snprintf(command, sizeof(command), "'%s' --version", server);
	command_line(command, version, sizeof(version));
	file_find("/proc/cpuinfo", "model name", cpu, sizeof(cpu));
	uname(&name);
	fprintf(f, "%s, %ld CPUs; %s %s; glibc %s; compiler %s\n", cpu,
		sysconf(_SC_NPROCESSORS_ONLN), name.sysname, name.release, gnu_get_libc_version(),
		__VERSION__);
	fprintf(f, "server: %s\n", version);
	if (peer)
		fprintf(f, "peer: %s\n", peer);
	fprintf(f,
		"\n"
		"                                            CPU per message     join, ms            "
		"peak\n"
		"case             program messages  lost  wall s    us ratio   +-  median ratio    "
		"p99   MiB\n");
}

void report_case(FILE *f, const struct bench_series *s, bool peer)
{
	const struct bench_case *c = &s->what;
	char label[32];

	snprintf(label, sizeof(label), "%ux%u %s", c->peers, c->vectors, hows[c->how]);
	for (unsigned int who = KERNEL; who < (peer ? BENCH_PROGRAMS : PEER); who++) {
		double spread, ratio = median(s, who, RATIO, &spread);

		fprintf(f, "%-16s %-7s %8.0f %4.0f%% %7.2f %5.2f", who == KERNEL ? label : "",
			programs[who], median(s, who, MESSAGES, NULL), median(s, who, LOST, NULL),
			median(s, who, WALL, NULL), median(s, who, CPU, NULL));
		if (who == KERNEL)
			fprintf(f, "            %7.1f       %6.1f\n", median(s, who, MEDIAN, NULL),
				median(s, who, P99, NULL));
		else
			fprintf(f, " %5.2f %4.2f %7.1f %5.2f %6.1f %5.1f\n", ratio, spread,
				median(s, who, MEDIAN, NULL), median(s, who, JOIN_RATIO, NULL),
				median(s, who, P99, NULL), median(s, who, PEAK, NULL));
	}
}

void report_foot(FILE *f, const struct bench_series *s, size_t cases)
{
	size_t least = ROUNDS_MAX, most = 0;

	for (size_t i = 0; i < cases; i++) {
		least = s[i].rounds < least ? s[i].rounds : least;
		most = s[i].rounds > most ? s[i].rounds : most;
	}
	fprintf(f, "\nmedians of %zu to %zu rounds; +- is half the distance of the quartiles\n",
		least, most);
}
