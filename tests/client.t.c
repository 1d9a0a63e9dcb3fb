/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The strict client itself: each hazard that a server could be, played to it from a script, must be
 * called by its name, and what real servers may send must pass. The other tests rest on that.
 */
#define _GNU_SOURCE
#include "send_scm.h"
#include "tests/lib/testing.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

/*
 * A script is words: a number is a message without a descriptor; behind it stand m for one with
 * memory, e for one with an eventfd. Other things that may be sent as memory: r, read-only; s, of
 * three pages; z, of no size; x, an eventfd in place of memory, or memory in that of an eventfd.
 */
struct script {
	const char *stream;
	const char *error;  /* what the client must say; NULL: it must be content */
	const char *option; /* L: the original stream; M: that, without memory */
};

static int memory_open(off_t size, int flags)
{
	int fd = memfd_create("memory", MFD_CLOEXEC), again;
	char path[32];

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, size), 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, flags | O_CLOEXEC);
	assert_true(again >= 0);
	close(fd);
	return again;
}

/* The descriptor that goes with a message of a script, if any. */
static int prop_open(char kind, int64_t value)
{
	switch (kind) {
	case 'e': return eventfd(0, EFD_CLOEXEC);
	case 'm': return memory_open(1 << 20, O_RDWR);
	case 'r': return memory_open(1 << 20, O_RDONLY);
	case 's': return memory_open(3 << 12, O_RDWR);
	case 'z': return memory_open(0, O_RDWR);
	case 'x': return value == -1 ? eventfd(0, EFD_CLOEXEC) : memory_open(1 << 20, O_RDWR);
	default: return -1;
	}
}

/* Sends the whole script to a socket, and closes that. */
static void script_play(const char *stream, int sock)
{
	for (const char *at = stream; *at;) {
		char *kind;
		int64_t value = strtoll(at, &kind, 10);
		int fd = prop_open(*kind, value);
		struct mmsghdr header;

		assert_int_equal(scm_send(sock, &header, &(struct scm_msg){value, fd}, 1), 1);
		if (fd >= 0)
			close(fd);
		at = kind + strspn(kind, "emrszx ");
	}
	close(sock);
}

/* Lets a client of two vectors read the script to its end. */
static void script_run(const struct script *script, bool keep)
{
	char option = script->option ? script->option[0] : '-';
	struct client_options options = {
		.vectors = 2,
		.legacy = option != '-',
		.memoryless = option == 'M',
		.keep = keep,
	};
	char folder[] = "/tmp/client.XXXXXX", path[64];
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct client c;

	assert_non_null(mkdtemp(folder));
	snprintf(path, sizeof(path), "%s/socket", folder);
	strcpy(address.sun_path, path);
	assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_true(client_connect(&c, path, options));
	script_play(script->stream, accept4(listener, NULL, NULL, SOCK_CLOEXEC));
	close(listener);
	unlink(path);
	rmdir(folder);

	while (client_step(&c) > 0)
		;
	assert_true(c.ended || c.error[0]);
	if (script->error && !strstr(c.error, script->error))
		fail_msg("'%s': '%s' instead of '%s'", script->stream, c.error, script->error);
	if (!script->error && c.error[0])
		fail_msg("'%s': %s", script->stream, c.error);
	client_free(&c);
}

static void scripts_run(const struct script *scripts, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		script_run(&scripts[i], true);
		script_run(&scripts[i], false);
	}
}

#define SCRIPTS_RUN(scripts) scripts_run(scripts, sizeof(scripts) / sizeof(*(scripts)))

#define GREETING "0 7 -1m 3e 3e 7e 7e "

static void right_streams_pass(void **state)
{
	static const struct script scripts[] = {
		{"0 7 -1m 7e 7e", NULL, NULL},
		{GREETING, NULL, NULL},
		{GREETING "5e 5e 3 5 8e 8e", NULL, NULL},
		{"0 7 -1m 3e 3 7e 7e", NULL, NULL}, /* 3 left while its eventfds were being sent */
		{"0 7 -1m 3e 3e 7e 3 7e", NULL, NULL}, /* and here while those of others were */
		{GREETING "5e 5 9e 9e", NULL, NULL},
		{"-1z -1z -1z", NULL, NULL},
		{"-1z -1z -1z", NULL, "L"},
		{"7 -1s 3e 3e 7e 7e 3", NULL, "L"},
		{"7 3e 3e 7e 7e 3", NULL, "M"},
	};

	(void)state;
	SCRIPTS_RUN(scripts);
}

static void hazards_are_named(void **state)
{
	static const struct script scripts[] = {
		{GREETING "3 3e 3e", "hazard 1", NULL},
		{GREETING "3 3", "hazard 1", NULL},
		{GREETING "5", "hazard 2", NULL},
		{"", "hazard 3", NULL},
		{"0", "hazard 3", NULL},
		{"0 7", "hazard 3", NULL},
		{"0 7 3e 3e 7e 7e -1m", "3 with a descriptor, while waiting for the memory", NULL},
		{GREETING "-1m", "hazard 6", NULL},
		{"0 7 -1m -1m", "hazard 6", NULL},
		{"0 7 -1r", "cannot be written", NULL},
		{"0 7 -1s", "12288 bytes: QEMU cannot map", NULL},
		{"0 7 -1z", "0 bytes: QEMU cannot map", NULL},
		{"0 7 -1x", "no file", NULL},
		{"0 7 -1m 3e 3e 3e", "hazard 8", NULL},
		{GREETING "7e", "hazard 8", NULL},
	};

	(void)state;
	SCRIPTS_RUN(scripts);
}

static void disorder_is_named(void **state)
{
	static const struct script scripts[] = {
		{"1 7 -1m", "version 1 instead of 0", NULL},
		{"0e", "0 with a descriptor", NULL},
		{"-1", "of a refusal is -1 without", NULL},
		{"-1z -1z", "in a refusal of 2", NULL},
		{"-1z -1m -1z", "of a refusal", NULL},
		{"-1z -1z -1z 0", "message 4 of a refusal", NULL},
		{"0 7e", "7 with a descriptor", NULL},
		{"0 -1m", "-1 with a descriptor", NULL},
		{"0 65536", "65536 instead of its own ID", NULL},
		{"0 7 -1", "-1 without a descriptor", NULL},
		{"0 7 -1m 3e 3e 7e 3e", "before all of another", NULL},
		{"0 7 -1m 3e 7e", "before all of another", NULL},
		{"0 7 -1m 3e 3e 7e 7e 3e", "after those of another", NULL},
		{GREETING "5e 9e", "before all of another", NULL},
		{GREETING "5e 5e 9e 9e 5e", "after those of another", NULL},
		{GREETING "7", "its own ID left", NULL},
		{GREETING "-1", "is no ID", NULL},
		{GREETING "65536e", "a descriptor of 65536", NULL},
		{"0 7 -1m 7e 7e", "7 without a descriptor", "L"},
		{"7 -1m 7e 7e", "version 7", NULL},
	};

	(void)state;
	SCRIPTS_RUN(scripts);
}

/* What is kept is looked at: an eventfd must be one. */
static void false_eventfd_is_named(void **state)
{
	static const struct script script = {"0 7 -1m 3x", "what came as an eventfd", NULL};

	(void)state;
	script_run(&script, true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		counted_test(right_streams_pass),
		counted_test(hazards_are_named),
		counted_test(disorder_is_named),
		counted_test(false_eventfd_is_named),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
