/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "client/status.h"
#include "client/clock.h"
#include "client/connect.h"
#include "client/report.h"
#include "send_scm.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PURPOSE     "ivshmem-status/"
#define ANSWER_MS   10000     /* until a server that is silent is given up */
#define RETRY_MS    200       /* until one is asked again that has closed the connection */
#define LENGTH_MAX  (1 << 26) /* of an answer, which is 200 bytes or so for each node */
#define NAME_COLUMN 16

const char *size_text(uint64_t bytes, char *text)
{
	const char *const units[] = {bytes == 1 ? " byte" : " bytes", "K", "M", "G", "T"};
	int unit = 0;

	for (; bytes && bytes % 1024 == 0 && unit < 4; unit++)
		bytes /= 1024;
	snprintf(text, SIZE_TEXT, "%" PRIu64 "%s", bytes, units[unit]);
	return text;
}

/*
 * The answer
 */

/* Why there is none. */
enum trouble {
	AWAY,   /* nobody listens at the path, or answers; that may change */
	CLOSED, /* the connection was; another server may take its place at this very moment */
	WRONG,  /* and so it would be the next time */
};

/*
 * Whether a text can control a terminal, which no answer of ours can: JSON has no control
 * characters in its strings, and our server writes 127 to 159 as it writes those (\u0085).
 */
static bool text_controls(const char *text, size_t length)
{
	const unsigned char *c = (const unsigned char *)text;

	for (size_t i = 0; i < length; i++)
		if ((c[i] < ' ' && !(c[i] == '\n' && i + 1 == length)) || c[i] == 127 ||
		    (c[i] == 0xc2 && c[i + 1] < 0xa0))
			return true;
	return false;
}

/* Reads the text in a descriptor, whose position is not ours alone. NULL: it cannot be that. */
static char *text_read(int fd, int64_t length)
{
	struct stat st;
	char *text;

	if (fd < 0 || length <= 0 || length > LENGTH_MAX || fstat(fd, &st) < 0 ||
	    !S_ISREG(st.st_mode) || st.st_size != length)
		return NULL;
	text = malloc((size_t)length + 1);
	if (!text)
		return NULL;
	text[length] = '\0';
	if (pread(fd, text, (size_t)length, 0) == length && text[0] == '{' &&
	    !text_controls(text, (size_t)length))
		return text;
	free(text);
	return NULL;
}

/* Takes the first message of a server: one that knows nothing of this begins to greet a node. */
static char *message_read(const struct look *l, int sock, char *why, enum trouble *trouble)
{
	struct pollfd answer = {.fd = sock, .events = POLLIN};
	int64_t value, deadline = clock_now() + ANSWER_MS;
	char *text;
	int fd, n;

	do {
		polls_wait(&answer, 1, ANSWER_MS);
		n = scm_recv(sock, &value, &fd);
	} while (n < 0 && errno == EAGAIN && clock_now() < deadline);
	*trouble = n < 0 && errno == EAGAIN ? AWAY : CLOSED;
	if (n == 0 || (n < 0 && (errno == EAGAIN || errno == ECONNRESET))) {
		wrong(why,
		      *trouble == AWAY ? "the server at %s does not answer; it is stopped, or hangs"
				       : "the server at %s closed the connection without an "
					 "answer; it has ended, or lacks descriptors or memory",
		      l->path);
		return NULL;
	}
	*trouble = WRONG;
	if (n < 0) {
		wrong(why, "cannot read the answer of the server: %s", strerror(errno));
		return NULL;
	}
	if (l->verbose)
		complain("message %" PRId64 "%s", value, fd < 0 ? "" : " with a descriptor");
	text = text_read(fd, value);
	if (!text)
		wrong(why,
		      "the server at %s cannot tell its status: it is older than 1.3.0, or none of "
		      "ours; 'list' joins to look",
		      l->path);
	if (fd >= 0)
		close(fd);
	return text;
}

/* Asks once. Returns the answer, which the caller frees; NULL with why, WHY_SIZE bytes. */
static char *answer_get(const struct look *l, char *why, enum trouble *trouble)
{
	int sock = server_connect(l->path, PURPOSE, ANSWER_MS, why);
	char *text;

	if (sock < 0) {
		*trouble =
			errno == ENOENT || errno == ECONNREFUSED || errno == EAGAIN ? AWAY : WRONG;
		return NULL;
	}
	text = message_read(l, sock, why, trouble);
	close(sock);
	return text;
}

/* The same; and once more where the server may just have been replaced. */
static char *answer_wait(const struct look *l, char *why, enum trouble *trouble)
{
	char *text = answer_get(l, why, trouble);

	if (text || *trouble != CLOSED)
		return text;
	polls_wait(NULL, 0, RETRY_MS);
	return answer_get(l, why, trouble);
}

/*
 * JSON, as far as the table needs it. Strings are shown as they stand there, escaped: so no name
 * can control the terminal.
 */

/* What is behind a string, whose first quote at is. */
static const char *string_end(const char *at)
{
	for (at++; *at && *at != '"'; at++)
		if (*at == '\\' && at[1])
			at++;
	return *at ? at + 1 : at;
}

/* What is behind a value: what ends it, or the end of the text. */
static const char *value_end(const char *at)
{
	int depth = 0;

	while (*at && (depth > 0 || !strchr(",]}", *at))) {
		if (*at == '"') {
			at = string_end(at);
			continue;
		}
		depth += *at == '{' || *at == '[';
		depth -= *at == '}' || *at == ']';
		at++;
	}
	return at;
}

/* The value of that name in an object; NULL: there is none. */
static const char *value_find(const char *object, const char *name)
{
	size_t length = strlen(name);

	for (const char *at = object; *at == '{' || *at == ',';) {
		const char *key = at + 1, *value = *key == '"' ? string_end(key) : key;

		if (*value != ':')
			return NULL;
		if ((size_t)(value - key) == length + 2 && !memcmp(key + 1, name, length))
			return value + 1;
		at = value_end(value + 1);
	}
	return NULL;
}

/* The text of a value, and its length; "-" where there is none. */
static const char *value_text(const char *object, const char *name, int *length)
{
	const char *value = value_find(object, name), *end = value ? value_end(value) : NULL;

	*length = 1;
	if (!value || !strncmp(value, "null", 4) || !strncmp(value, "\"\"", 2))
		return "-";
	if (*value == '"' && end > value + 1) {
		*length = (int)(end - value - 2);
		return value + 1;
	}
	*length = (int)(end - value);
	return value;
}

static int64_t value_number(const char *object, const char *name)
{
	const char *value = value_find(object, name);

	return value ? strtoll(value, NULL, 10) : 0;
}

/*
 * The table
 */

/* Prints what stands before a value, the value, and what stands behind it. */
static void value_print(FILE *out, const char *before, const char *object, const char *name)
{
	int length;
	const char *text = value_text(object, name, &length);

	fprintf(out, "%s%.*s", before, length, text);
}

/* Who a user is, whom the server knows by number only. */
static const char *user_name(uid_t uid)
{
	static char name[64];
	static uid_t known;
	const struct passwd *user;

	if (*name && uid == known)
		return name;
	user = getpwuid(uid);
	known = uid;
	if (user)
		snprintf(name, sizeof(name), "%s", user->pw_name);
	else
		snprintf(name, sizeof(name), "%u", (unsigned int)uid);
	return name;
}

/* An age in seconds, in its two largest units. */
static const char *age_text(int64_t s)
{
	static char text[64];

	if (s < 60)
		snprintf(text, sizeof(text), "%" PRId64 "s", s);
	else if (s < 3600)
		snprintf(text, sizeof(text), "%" PRId64 "m%02" PRId64 "s", s / 60, s % 60);
	else if (s < 86400)
		snprintf(text, sizeof(text), "%" PRId64 "h%02" PRId64 "m", s / 3600, s / 60 % 60);
	else
		snprintf(text, sizeof(text), "%" PRId64 "d%02" PRId64 "h", s / 86400,
			 s / 3600 % 24);
	return text;
}

/* "yes", "no", or "-" where it is neither. */
static const char *truth_text(const char *object, const char *name)
{
	const char *value = value_find(object, name);

	if (!value || *value == 'n')
		return "-";
	return *value == 't' ? "yes" : "no";
}

static void head_print(FILE *out, const char *answer)
{
	time_t since = (time_t)value_number(answer, "since");
	struct tm local;
	char text[64] = "?", size[SIZE_TEXT];

	value_print(out, "socket ", answer, "socket");
	value_print(out, ", object ", answer, "object");
	fprintf(out, ", size %s", size_text((uint64_t)value_number(answer, "size"), size));
	value_print(out, ", vectors ", answer, "vectors");
	value_print(out, ", protocol ", answer, "protocol");
	value_print(out, "\nserver ", answer, "version");
	value_print(out, ", process ", answer, "process");
	if (localtime_r(&since, &local))
		strftime(text, sizeof(text), "%F %T", &local);
	fprintf(out, ", since %s\n", text);
}

static void row_print(FILE *out, const char *node)
{
	int length;
	const char *command = value_text(node, "command", &length);

	fprintf(out, "%5" PRId64 " %8" PRId64 " %-*.*s %-*s %7s %8" PRId64 " %-7s %s\n",
		value_number(node, "id"), value_number(node, "process"), NAME_COLUMN, length,
		command, NAME_COLUMN, user_name((uid_t)value_number(node, "uid")),
		age_text(value_number(node, "age")), value_number(node, "waiting"),
		truth_text(node, "greeted"), truth_text(node, "stored"));
}

/* Prints the answer for people. */
static void table_print(FILE *out, const char *answer)
{
	const char *nodes = value_find(answer, "nodes");
	size_t count = 0;

	head_print(out, answer);
	for (const char *at = nodes; at && at[0] && at[1] == '{'; at = value_end(at + 1)) {
		if (count++ == 0)
			fprintf(out, "%5s %8s %-*s %-*s %7s %8s %-7s %s\n", "ID", "PROCESS",
				NAME_COLUMN, "COMMAND", NAME_COLUMN, "USER", "AGE", "WAITING",
				"GREETED", "STORED");
		row_print(out, at + 1);
	}
	fprintf(out, "%zu node%s connected", count, count == 1 ? "" : "s");
	value_print(out, ", ", answer, "joined");
	value_print(out, " joined so far, ", answer, "waiting");
	fprintf(out, " message%s waiting\n", value_number(answer, "waiting") == 1 ? "" : "s");
}

/*
 * Watching
 */

/* How many characters there are in so many bytes of UTF-8. */
static size_t text_width(const char *text, size_t length)
{
	size_t width = 0;

	for (size_t i = 0; i < length; i++)
		width += ((unsigned char)text[i] & 0xc0) != 0x80;
	return width;
}

/* Paints a text over what stood there before, as far as it fits; a long line takes several rows. */
static void screen_paint(const char *text)
{
	struct winsize window = {0};
	bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0;
	int rows = known && window.ws_row > 1 ? window.ws_row : 24;
	size_t columns = known && window.ws_col > 0 ? window.ws_col : 80;

	fputs("\033[H", stdout);
	while (*text) {
		size_t length = strcspn(text, "\n"), width = text_width(text, length);
		bool full = width > 0 && width % columns == 0; /* nothing is behind the line */

		rows -= width > 0 ? (int)((width + columns - 1) / columns) : 1;
		if (rows < 1)
			break;
		printf("%.*s%s\n", (int)length, text, full ? "" : "\033[K");
		text += length + (text[length] == '\n');
	}
	fputs(*text ? "...\033[J" : "\033[J", stdout);
}

/* Shows an answer; NULL: there is none, and why. */
static void answer_show(const struct look *l, const char *answer, const char *why)
{
	bool screen = l->every_ms && !l->json && isatty(STDOUT_FILENO);
	char *text = NULL;
	size_t length;
	FILE *out;

	if (!answer && !screen) {
		complain("%s", why);
		return;
	}
	if (l->json) {
		fputs(answer, stdout);
		return;
	}
	out = open_memstream(&text, &length);
	if (!out)
		quit(1, "no memory for the table");
	if (answer)
		table_print(out, answer);
	else
		fprintf(out, "%s\n", why);
	if (fclose(out) != 0)
		quit(1, "no memory for the table");
	if (screen)
		screen_paint(text);
	else
		fputs(text, stdout);
	free(text);
}

int status(const struct look *l)
{
	enum trouble trouble;
	char why[WHY_SIZE];

	for (bool first = true;; first = false) {
		char *answer = answer_wait(l, why, &trouble);

		if (!answer && (first || trouble == WRONG))
			quit(1, "%s", why);
		answer_show(l, answer, why);
		free(answer);
		output_flush();
		if (!l->every_ms)
			return 0;
		polls_wait(NULL, 0, l->every_ms);
	}
}
