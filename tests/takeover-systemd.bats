#!/usr/bin/env bats
# Nodes outlive the server under the real systemd: what build/tests/systemd/takeover tries, which runs
# in a container. With a supervisor that is as slow or full as a test wants it, see takeover.t.c.

load lib/common
load lib/systemd

# A copy of the server that is the same but for its version, which is as long.
newer() { # FILE
	local version
	version=$("$SERVER" --version)
	version=${version##* }
	perl -0777 -pe "s/(server|version) \\Q$version\\E/\$1 $(tr 0-9 1-90 <<<"$version")/g" \
		"$SERVER" >"$1"
	chmod 755 "$1"
}

# The tests of these names must pass there.
takes_over() { # NAME...
	install_there
	newer "$ROOT/usr/sbin/tm_ivshmem_server.newer"
	tests_there "$@"
}

@test "QEMU nodes notice no restart, death, upgrade or reload" {
	takes_over nodes_notice_nothing
}

@test "what lets nodes go: a stop, other options" {
	takes_over a_stop_lets_all_go who_left_meanwhile_is_dropped other_options
}

@test "what does not: a program that always dies, a mistake, many restarts, a hang, isolate, a lost store" {
	takes_over a_crash_loop_is_survived a_mistake_is_survived many_restarts_are_no_loop \
		a_hang_is_survived nobody_is_isolated a_store_that_is_lost
}

@test "the socket unit: the first node starts the server, and it survives that" {
	takes_over a_socket_unit a_socket_and_no_supervisor
}

@test "the server may be killed at any moment" {
	takes_over any_moment_may_be_the_last
}

@test "a thousand nodes are taken over" {
	takes_over a_thousand_nodes
}
