/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/check.h"

#include "server/file.h"
#include "server/log.h"
#include "server/options.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

/* Whether two texts are the same, or neither is there. */
static bool text_same(const char *a, const char *b)
{
	return a && b ? !strcmp(a, b) : a == b;
}

/* Whether a server would do the same by these options. */
static bool options_same(const struct options *a, const struct options *b)
{
	return text_same(a->object, b->object) && text_same(a->socket, b->socket) &&
	       text_same(a->pidfile, b->pidfile) && text_same(a->group, b->group) &&
	       text_same(a->log, b->log) && a->shm == b->shm && a->anonymous == b->anonymous &&
	       a->daemonize == b->daemonize && a->truncate == b->truncate &&
	       a->allocate == b->allocate && a->legacy == b->legacy && a->verbose == b->verbose &&
	       a->sized == b->sized && a->size == b->size && a->vectors == b->vectors &&
	       a->sync == b->sync;
}

/* The command line of a process, ended by NULL, and how many words it has; 0: it cannot be read. */
static int words_read(uint64_t process, char **words, int room)
{
	char path[64];
	FILE *f;
	size_t size;
	int n = 0;

	snprintf(path, sizeof(path), "/proc/%" PRIu64 "/cmdline", process);
	f = fopen(path, "re");
	if (!f)
		return 0;
	for (; n < room - 1; n++) {
		words[n] = NULL;
		size = 0;
		if (getdelim(&words[n], &size, '\0', f) < 0)
			break;
	}
	free(words[n]);
	words[n] = NULL;
	fclose(f);
	return n;
}

/*
 * Says it if the server that is running was started with other options than these: a restart in
 * place keeps those. A supervisor tells us its process. A mistake ends a process: so a child reads
 * them.
 */
static void options_compare(const struct options *o)
{
	const char *server = getenv("MAINPID");
	static char *words[1024];
	struct options theirs;
	uint64_t process;
	int n, status;
	pid_t child;
	char *end;

	if (!server || !digits_parse(server, &process, &end) || *end)
		return;
	n = words_read(process, words, sizeof(words) / sizeof(words[0]));
	child = n > 0 ? fork() : -1;
	if (child == 0) {
		log_mute(true);
		optind = 0;
		options_parse(&theirs, n, words);
		_exit(options_same(o, &theirs) ? EXIT_SUCCESS : EXIT_FAILURE);
	}
	if (child > 0 && TEMP_FAILURE_RETRY(waitpid(child, &status, 0)) == child && status != 0)
		warn("process %" PRIu64 " was started with other options, which a reload keeps: "
		     "the new options take effect with systemctl restart",
		     process);
}

void check_answer(const struct options *o)
{
	gid_t group;

	if (o->group && !group_find(o, &group))
		exit(EXIT_FAILURE);
	if (o->version)
		print_and_exit(version_text);
	options_compare(o);
	exit(EXIT_SUCCESS);
}
