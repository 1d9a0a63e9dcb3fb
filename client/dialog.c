/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "client/dialog.h"
#include "client/clock.h"
#include "client/lines.h"
#include "client/mesh.h"
#include "client/report.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define RETRY_MS 1000 /* between two attempts to connect */

struct dialog {
	struct mesh *m;
	bool terminal; /* a person types; else words come from a file or a program */
	bool patient;  /* there is a prompt, and a server that is gone is tried again */
	bool prompted; /* the cursor stands behind the prompt */
	bool failed;   /* something could not be done */
	bool over;
};

/* Begins a line of output. */
static void dialog_line(struct dialog *d)
{
	if (d->prompted)
		putchar('\n');
	d->prompted = false;
}

static void dump_peer(const char *what, int id, const struct peer *p)
{
	printf("%s = %d\n", what, id);
	for (int v = 0; v < p->vectors; v++)
		printf("  vector %d is enabled (fd=%d)\n", v, p->fds[v]);
}

static void dump(const struct mesh *m)
{
	dump_peer("our_id", m->id, mesh_own(m));
	for (int id = -1; (id = peer_next(m, id)) >= 0;)
		dump_peer("peer_id", id, &m->peers[id]);
}

static void help(void)
{
	puts("dump           show the client's ID and the other nodes, with their vectors\n"
	     "int ID VECTOR  ring a doorbell of that node\n"
	     "int ID all     ring all doorbells of that node\n"
	     "int all        ring all doorbells of all other nodes\n"
	     "help, ?        show this\n"
	     "quit           end; so does the end of the input");
}

static bool word_alone(char *const *words, const char *word)
{
	return strcmp(words[0], word) == 0 && !words[1];
}

/* Does what was asked for. Returns false with why. */
static bool dialog_do(struct dialog *d, char *request, char *why)
{
	char *words[LINE_WORDS];
	bool ring, show;
	int id, vector;

	words_split(request, words);
	if (!words[0])
		return true;
	ring = strcmp(words[0], "int") == 0;
	show = word_alone(words, "dump");
	if ((ring || show) && d->m->sock < 0)
		return wrong(why, "not connected to %s; trying again every second", d->m->path);
	if (ring)
		return ring_read(words + 1, &id, &vector, why) && mesh_ring(d->m, id, vector, why);
	if (show)
		dump(d->m);
	else if (word_alone(words, "quit"))
		d->over = true;
	else if (word_alone(words, "help") || word_alone(words, "?"))
		help();
	else
		return wrong(why, "'%.40s': unknown command; 'help' lists the commands", words[0]);
	return true;
}

/* Does what a line asks for, of which several requests may be parted by semicolons. */
static void dialog_answer(struct dialog *d, char *line)
{
	char why[WHY_SIZE], *request;

	d->prompted = false;
	while (!d->over && (request = strsep(&line, ";\r"))) {
		if (dialog_do(d, request, why))
			continue;
		d->failed = true;
		complain("%s", why);
	}
}

/* Shows what the mesh has done: joins, leaves, doorbells. */
static void dialog_show(struct dialog *d)
{
	struct mesh *m = d->m;
	enum news news;
	int id;

	while ((news = news_next(m, &id)) != NEWS_NONE) {
		dialog_line(d);
		printf("peer %d %s\n", id, news == NEWS_JOIN ? "joined" : "left");
	}
	for (int v = 0; v < mesh_own(m)->vectors; v++) {
		uint64_t count = bell_count(m, v);

		if (count == 0)
			continue;
		dialog_line(d);
		if (as_qemu())
			printf("receive notification from peer_id=%d vector=%d\n", m->id, v);
		else
			printf("receive notification: vector=%d count=%" PRIu64 "\n", v, count);
	}
}

/*
 * Joins the mesh. Who is there by then is for `dump` to show. Returns false with d->m->error where
 * there is no server, or no longer; one that greets wrongly, or refuses us, would do so again.
 */
static bool dialog_connect(struct dialog *d)
{
	if (!mesh_join(d->m, FOREVER)) {
		if (!d->m->gone)
			quit(1, "%s", d->m->error);
		return false;
	}
	news_skip(d->m);
	if (!d->patient)
		return true;
	dialog_line(d);
	if (as_qemu())
		printf("listen on server socket %d: ", d->m->sock);
	else
		printf("connected to %s: ", d->m->path);
	printf("our_id=%d memory=%jd vectors=%d\n", d->m->id, (intmax_t)d->m->size,
	       mesh_own(d->m)->vectors);
	return true;
}

/* There is no server, or no longer. A person may start it again; a script has lost what it works
 * on. */
static void dialog_disconnected(struct dialog *d)
{
	if (!d->patient)
		quit(1, "%s", d->m->error);
	dialog_line(d);
	complain("%s; trying to connect again, every second", d->m->error);
	mesh_free(d->m);
}

/* Waits for words, messages and doorbells; without a server, for a second. A script's words wait
 * for the server, too. Returns whether there are words. */
static bool dialog_wait(struct dialog *d, int input)
{
	enum { INPUT, SERVER, BELLS };
	static struct pollfd polls[BELLS + VECTORS_MAX];
	bool listens = d->terminal || d->m->sock >= 0;

	polls[INPUT] = (struct pollfd){.fd = listens ? input : -1, .events = POLLIN};
	polls[SERVER] = (struct pollfd){.fd = d->m->sock, .events = POLLIN};
	polls_wait(polls, BELLS + bells_poll(d->m, polls + BELLS, true),
		   d->m->sock >= 0 ? FOREVER : RETRY_MS);
	return polls[INPUT].revents != 0;
}

/* Reads once, and answers every line. The last need not be a whole one. */
static void dialog_read(struct dialog *d, struct lines *input)
{
	bool more = lines_fill(input);
	char *line;

	while (!d->over && (line = lines_next(input)))
		dialog_answer(d, line);
	if (more || d->over)
		return;
	line = lines_rest(input);
	if (line)
		dialog_answer(d, line);
	d->over = true;
}

/* Hears what the server says, and shows what is new. */
static void dialog_hear(struct dialog *d)
{
	bool goes_on;

	if (d->m->sock < 0) {
		dialog_connect(d);
		return;
	}
	goes_on = messages_read(d->m);
	dialog_show(d);
	if (goes_on)
		return;
	if (as_qemu()) {
		dialog_line(d);
		puts("disconnected from server");
	}
	dialog_disconnected(d);
}

int dialog(struct mesh *m)
{
	struct dialog d = {.m = m, .terminal = isatty(STDIN_FILENO)};
	struct lines input = {.fd = STDIN_FILENO};

	d.patient = d.terminal || as_qemu();
	if (as_qemu())
		help();
	if (!dialog_connect(&d))
		dialog_disconnected(&d);
	while (!d.over) {
		if (d.patient && !d.prompted)
			printf("cmd> ");
		d.prompted = d.patient;
		output_flush();
		if (dialog_wait(&d, input.fd))
			dialog_read(&d, &input);
		if (!d.over)
			dialog_hear(&d);
	}
	if (d.prompted)
		putchar('\n');
	return d.failed && !d.patient ? 1 : 0;
}
