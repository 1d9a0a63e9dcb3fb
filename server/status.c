/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "server/status.h"
#include "send_scm.h"
#include "server/descriptor.h"
#include "server/ledger.h"
#include "server/listener.h"
#include "server/log.h"
#include "server/mesh.h"
#include "server/options.h"
#include "server/supervisor.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

void status_begin(struct status *s)
{
	s->since = time(NULL);
	s->text = -1;
}

bool status_asked(const struct sockaddr_un *from, socklen_t length)
{
	static const char address[] = "\0" STATUS_ADDRESS;

	return length >= offsetof(struct sockaddr_un, sun_path) + sizeof(address) - 1 &&
	       !memcmp(from->sun_path, address, sizeof(address) - 1);
}

/*
 * The text, in JSON (RFC 8259)
 */

/* Writes a string. A byte that is no character becomes U+FFFD, which stands for such. */
static void string_write(FILE *out, const char *text)
{
	putc('"', out);
	while (*text) {
		const unsigned char *c = (const unsigned char *)text;
		size_t n = character_length(text);
		unsigned int code = *c < 0x80 ? *c : 0xfffd;

		if (n == 0 && *c == 0xc2 && (c[1] & 0xe0) == 0x80) { /* it controls a terminal */
			code = c[1];
			text++;
		}
		if (n == 0)
			fprintf(out, "\\u%04x", code);
		else if (*c == '"' || *c == '\\')
			fprintf(out, "\\%c", *c);
		else
			fwrite(text, 1, n, out);
		text += n > 0 ? n : 1;
	}
	putc('"', out);
}

static void member_write(FILE *out, const char *name, const char *text)
{
	fprintf(out, "\"%s\":", name);
	string_write(out, text);
	putc(',', out);
}

static void row_write(FILE *out, const struct row *r, bool supervised)
{
	const struct who *w = r->who;

	fprintf(out, "{\"id\":%d,\"process\":%d,", r->id, (int)w->process.pid);
	member_write(out, "command", w->name);
	fprintf(out, "\"uid\":%u,\"age\":%" PRId64 ",\"waiting\":%zu,\"greeted\":%s,",
		(unsigned int)w->process.uid, r->age, r->waiting, r->greeted ? "true" : "false");
	fprintf(out, "\"stored\":%s}",
		!supervised                               ? "null"
		: r->stored && !(r->stored & PARCEL_ANEW) ? "true"
							  : "false");
}

/* What is served. */
static void head_write(const struct status *s, FILE *out)
{
	const struct options *o = s->opt;
	bool memory = s->ledger->store >= 0;

	fprintf(out, "{\"version\":\"" VERSION "\",\"process\":%d,\"since\":%" PRId64 ",",
		(int)getpid(), s->since);
	member_write(out, "socket", o->socket);
	member_write(out, "kind",
		     !memory        ? "none"
		     : o->anonymous ? "anonymous"
		     : o->shm       ? "shm"
				    : "file");
	member_write(out, "object", memory ? o->object : "");
	fprintf(out, "\"size\":%" PRIu64 ",\"vectors\":%" PRIu32 ",\"protocol\":\"%s\",",
		memory ? s->ledger->size : 0, s->ledger->vectors,
		s->ledger->legacy ? "legacy" : "current");
}

/* All of it; the caller frees it. NULL with errno. */
static char *text_make(const struct status *s, size_t *length)
{
	struct mesh *m = s->mesh;
	char *text = NULL;
	FILE *out = open_memstream(&text, length);
	size_t waiting = 0;
	bool whole;

	if (!out)
		return NULL;
	head_write(s, out);
	fputs("\"nodes\":[", out);
	for (size_t i = 0; i < m->count; i++) {
		struct row r = peer_row(m, m->order[i]);

		if (i > 0)
			putc(',', out);
		row_write(out, &r, supervised(m->supervisor));
		waiting += r.waiting;
	}
	fprintf(out, "],\"joined\":%" PRIu64 ",\"waiting\":%zu}\n", s->ledger->joins, waiting);
	whole = !ferror(out);
	if (fclose(out) == 0 && whole)
		return text;
	free(text);
	errno = ENOMEM;
	return NULL;
}

/*
 * The answer
 */

/* Makes a memfd. All who ask share it, so that nobody may change it. Returns -1 with errno. */
static int text_keep(const char *text, size_t length)
{
	int fd = memfd_create("ivshmem-status", MFD_CLOEXEC | MFD_ALLOW_SEALING), error;

	if (fd < 0)
		return -1;
	if (write(fd, text, length) == (ssize_t)length &&
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0)
		return descriptor_raise(fd, FD_SETSIZE);
	error = errno;
	close(fd);
	errno = error;
	return -1;
}

bool status_drop(struct status *s)
{
	bool kept = s->text >= 0;

	if (kept)
		close(s->text);
	s->text = -1;
	return kept;
}

/* How many have come or gone so far. */
static uint64_t changes_count(const struct status *s)
{
	return s->ledger->joins + s->ledger->departures;
}

void status_settle(struct status *s)
{
	if (s->text >= 0 && (now_ms() >= s->until_ms || s->changes != changes_count(s)))
		status_drop(s);
}

/* Makes the text anew, unless there is one that holds. Returns false with errno. */
static bool text_renew(struct status *s)
{
	char *text;

	status_settle(s);
	if (s->text >= 0)
		return true;
	text = text_make(s, &s->length);
	if (!text)
		return false;
	do
		s->text = text_keep(text, s->length);
	while (s->text < 0 && (errno == EMFILE || errno == ENFILE) && reserve_give(s->reserve));
	free(text);
	s->changes = changes_count(s);
	s->until_ms = now_ms() + STATUS_MS;
	return s->text >= 0;
}

void status_answer(struct status *s, int sock)
{
	struct mmsghdr header;
	bool told = text_renew(s);
	int error;

	if (told) {
		const struct scm_msg message = {(int64_t)s->length, s->text};

		told = scm_send(sock, &header, &message, 1) == 1;
	}
	error = told ? 0 : errno;
	if (s->opt->verbose) {
		struct who who = who_is(sock);

		log_line(LOG_INFO, error, "the status is %stold to %s", told ? "" : "not ",
			 who_text(&who).text);
	}
	close(sock);
	if (s->reserve->null < 0 || s->reserve->spare < 0) {
		status_drop(s);
		reserve_fill(s->reserve);
	}
}

/*
 * The log
 */

/*
 * Prints the path as QEMU's option parser wants it, where a comma is doubled, and as it stands
 * between single quotes for a shell. Returns whether a shell needs these.
 */
static bool path_for_qemu(const char *path, char *out)
{
	bool quotes = false;

	for (; *path; path++) {
		quotes = quotes || !(isalnum((unsigned char)*path) || strchr("/._-+,:@%", *path));
		if (*path == ',')
			*out++ = ',';
		if (*path == '\'')
			out = stpcpy(out, "'\\'");
		*out++ = *path;
	}
	*out = '\0';
	return quotes;
}

void status_announce(const struct status *s)
{
	char path[4 * sizeof(((struct sockaddr_un *)NULL)->sun_path)], memory[96] = "";
	unsigned int vectors = s->opt->vectors;
	const char *quote = path_for_qemu(s->opt->socket, path) ? "'" : "";

	if (s->ledger->store < 0) {
		say("serving interrupts without memory, vectors %u, socket %s", vectors,
		    s->opt->socket);
	} else {
		say("serving %s, size %s, vectors %u, socket %s", s->opt->object,
		    SIZE(s->ledger->size), vectors, s->opt->socket);
		snprintf(memory, sizeof(memory), ",size=%s", SIZE(s->ledger->size));
	}
	say("connect a node: -chardev %ssocket,path=%s,id=fam%s -device %s,chardev=fam%s,vectors=%u",
	    quote, path, quote, s->opt->legacy ? "ivshmem" : "ivshmem-doorbell",
	    s->opt->legacy ? memory : "", vectors ? vectors : 1);
}

void status_log(const struct status *s)
{
	struct mesh *m = s->mesh;
	size_t waiting = 0;

	for (size_t i = 0; i < m->count; i++) {
		struct row r = peer_row(m, m->order[i]);

		say("ID %d: %s, connected for %" PRId64 " s, %zu message%s waiting%s", r.id,
		    who_text(r.who).text, r.age, r.waiting, S(r.waiting),
		    !supervised(m->supervisor) ? ""
		    : !r.stored                ? ", not stored yet"
		    : r.stored & PARCEL_ANEW   ? ", not stored anew yet"
					       : "");
		waiting += r.waiting;
	}
	say("%zu node%s connected, %" PRIu64 " joined so far, %zu message%s waiting", m->count,
	    S(m->count), s->ledger->joins, waiting, S(waiting));
}
