/* SPDX-License-Identifier: GPL-2.0-or-later */
#define _GNU_SOURCE
#include "crowd.h"

#include <errno.h>
#include <string.h>

struct client clients[CLIENTS_MAX];
size_t count;
static const char *socket_path, *log_path;

void crowd_at(const char *socket, const char *log)
{
	socket_path = socket;
	log_path = log;
}

struct client *somebody_connects(struct client_options options)
{
	struct client *c = &clients[count];

	assert_true(count < CLIENTS_MAX);
	count++;
	assert_that(client_connect(c, socket_path, options), "%s", c->error);
	return c;
}

struct client *somebody_is_greeted(struct client_options options)
{
	struct client *c = somebody_connects(options);

	some_drive(count - 1, 1, client_greeted, NULL);
	return c;
}

struct client *somebody_joins(struct client_options options)
{
	struct client *c = somebody_is_greeted(options);

	if (options.vectors)
		everybody(client_sees, &c->id);
	return c;
}

void somebody_goes(size_t i)
{
	assert_true(i < count);
	client_free(&clients[i]);
	count--;
	memmove(&clients[i], &clients[i + 1], (count - i) * sizeof(clients[0]));
	memset(&clients[count], 0, sizeof(clients[0]));
}

void everybody_goes(void)
{
	clients_free(clients, count);
	memset(clients, 0, count * sizeof(clients[0]));
	count = 0;
}

void everybody_is_let_go(void)
{
	everybody(client_ended, NULL);
	everybody_goes();
}

void some_drive(size_t from, size_t n, client_condition *done, const void *argument)
{
	const struct client *wrong;

	if (clients_drive(&clients[from], n, done, argument, PATIENCE))
		return;
	wrong = clients_error(&clients[from], n);
	fail_msg("%s; %s", wrong ? wrong->error : "no client has an error",
		 log_path ? file_end(log_path) : "");
}

void everybody(client_condition *done, const void *argument)
{
	some_drive(0, count, done, argument);
}

bool client_agrees(const struct client *c, const void *unused)
{
	if (!c->options.vectors)
		return client_greeted(c, unused);
	return client_meets(c, &(struct client_crowd){clients, count});
}

/* Everybody rings one vector of one of them. */
static void bell_ring(const struct client *target, int vector)
{
	for (size_t i = 0; i < count; i++)
		assert_that(client_ring(&clients[i], target->id, vector),
			    "%d cannot ring vector %d of %d: %s", clients[i].id, vector, target->id,
			    strerror(errno));
}

/* This vector was rung so often. */
static void bell_check(const struct client *target, int vector, size_t times)
{
	uint64_t rung = client_rung(target, vector);

	assert_that(rung == times, "vector %d of %d was rung %zu times, not %zu", vector,
		    target->id, (size_t)rung, times);
}

/* Everybody rings each vector of one of them: first all at once, so that a bell that is heard in
 * two places is found out, then one by one, so that one in the place of another is. */
static void bells_check(const struct client *target)
{
	for (int v = 0; v < target->options.vectors; v++)
		bell_ring(target, v);
	for (const struct client *c = clients; c < &clients[count]; c++)
		for (int v = 0; v < c->options.vectors && c != target; v++)
			bell_check(c, v, 0);
	for (int v = 0; v < target->options.vectors; v++)
		bell_check(target, v, count);
	for (int v = 0; v < target->options.vectors; v++) {
		bell_ring(target, v);
		bell_check(target, v, count);
	}
}

void everybody_agrees(void)
{
	everybody(client_agrees, NULL);
	for (size_t i = 0; i < count; i++) {
		bells_check(&clients[i]);
		assert_true(clients[i].memory_dev == clients[0].memory_dev);
		assert_true(clients[i].memory_ino == clients[0].memory_ino);
	}
}
