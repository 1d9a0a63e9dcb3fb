/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A program that ivshmem_client runs, and a real QEMU node: they ring each other, and share memory.
 */
#define _GNU_SOURCE
#include "tests/lib/mesh.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static struct server server;
static FILE *program; /* what it says */

static int everything_end(void **state)
{
	(void)state;
	if (program)
		pclose(program);
	program = NULL;
	nodes_end();
	server_remove(&server);
	server = (struct server){0};
	return 0;
}

/* Runs a shell program as a peer. */
static void program_start(const char *text)
{
	const char *source = getenv("SOURCE_DIR");
	char command[1024];

	setenv("PROGRAM", text, 1);
	snprintf(command, sizeof(command),
		 "exec '%s/client/ivshmem_client' '%s' run bash -c \"$PROGRAM\"",
		 source ? source : ".", server.socket);
	program = popen(command, "re");
	assert_non_null(program);
}

/* What the program says next must be this. */
static void program_says(const char *wanted)
{
	char line[80] = "";

	assert_that(fgets(line, sizeof(line), program), "'%s' is not said", wanted);
	line[strcspn(line, "\n")] = '\0';
	assert_string_equal(line, wanted);
}

static void program_ends(int status)
{
	int how = pclose(program);

	program = NULL;
	assert_true(WIFEXITED(how));
	assert_int_equal(WEXITSTATUS(how), status);
}

/* Waits until the node has been rung. */
static bool node_rung_soon(struct node *n, unsigned int vector)
{
	int64_t deadline = deadline_in(PATIENCE);

	do
		node_settle(n);
	while (!node_rung(n, vector) && deadline_ahead(deadline));
	return node_rung(n, vector);
}

static void program_and_node_ring_each_other(void **state)
{
	const uint64_t written = UINT64_C(0x6c6c656873206568); /* as text, "he shell" */
	struct node *node;
	size_t eventfds;

	(void)state;
	if (node_missing())
		skip_because("%s", node_missing());
	assert_start(&server, "-f", "memory", "-m", "1M", "-n", "3");
	node = node_start(server.socket, 3, "");
	assert_non_null(node);
	assert_true(node_ready(node));
	assert_int_equal(node_id(node), 0);
	node_store(node, 4096, UINT64_C(0x65646f6e2061)); /* "a node" */

	eventfds = node_eventfds(node);
	program_start(
		"while read -r word number count <&4; do\n"
		"	case $word in\n"
		"	ready) printf 'he shell' | dd of=/dev/fd/3 conv=notrunc status=none\n"
		"		echo ring 0 1 >&5 ;;\n"
		"	ring) echo $word $number $count\n"
		"		dd if=/dev/fd/3 skip=4096 count=6 iflag=skip_bytes,count_bytes status=none\n"
		"		echo; [ $number = 0 ] || exit 3 ;;\n"
		"	*) echo $word $number\n"
		"	esac\n"
		"done\n");
	program_says("join 0");
	assert_true(node_rung_soon(node, 1));
	assert_int_equal(node_rung_count(node), 1);
	assert_int_equal(node_load(node, 0), written);
	node_check_eventfds(node, eventfds + 3); /* it can ring who has just joined */
	node_ring(node, 1, 0);
	program_says("ring 0 1");
	program_says("a node");
	node_ring(node, 1, 2);
	program_says("ring 2 1");
	program_says("a node");
	program_ends(3);
	assert_true(node_alive(node));

	/* The other way round: the node comes later, and leaves first. */
	program_start("while read -r word number count <&4; do\n"
		      "	echo $word $number\n"
		      "	[ $word != join ] || echo ring $number all >&5\n"
		      "	[ $word != leave ] || exit 0\n"
		      "done\n");
	program_says("join 0");
	program_says("ready");
	assert_true(node_rung_soon(node, 2));
	node_end(node);
	program_says("leave 0");
	program_ends(0);
	/* When the server knows that nobody is left, the next one is 0 again. */
	assert_true(server_descriptors_wait(&server, server.idle, PATIENCE));
	node = node_start(server.socket, 3, "");
	assert_non_null(node);
	assert_true(node_ready(node));
	program_start("while read -r line <&4; do\n"
		      "	echo $line; [ \"$line\" != end ] || exit 0\n"
		      "done\n");
	program_says("join 0");
	program_says("ready");
	node_end(node);
	program_says("leave 0");
	node = node_start(server.socket, 3, "");
	assert_non_null(node);
	assert_true(node_ready(node));
	program_says("join 2");
	node_end(node);
	program_says("leave 2");
	assert_int_equal(server_stop(&server), 0);
	program_says("end");
	program_ends(0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(program_and_node_ring_each_other, everything_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
