#!/usr/bin/env bats
# The client for the command line (tests/tools/ivshmem_client.c), with which people look at a mesh.
# shellcheck disable=SC2030,SC2031,SC2119 # each test is a shell of its own

load lib/common

setup_more() {
	CLIENT=$SOURCE_DIR/build/tests/ivshmem_client
	[ -x "$CLIENT" ] || skip "needs $CLIENT: make check builds it"
}

# Runs the client in the background; what it says is in $WORK/NAME.
client() { # NAME ARGUMENT...
	"$CLIENT" "${@:2}" >"$WORK/$1" 2>&1 3>&- &
	CLIENT_PID=$!
	PIDS+=("$CLIENT_PID")
	eventually grep -q '^id' "$WORK/$1"
}

# A client that must not do what it was asked to: its status, and texts of what it says.
declines() { # STATUS TEXT -- ARGUMENT...
	try "$CLIENT" "${@:4}"
	is "status of: ${*:4}: $(cat "$WORK/err")" "$STATUS" "$1"
	has "$WORK/err" "$2"
}

@test "list shows the memory, and who is there with how many vectors" {
	start -f memory -m 2 -n 3
	client first -n 3 "$SOCK" watch
	"$CLIENT" -n 3 "$SOCK" list >"$WORK/certain"
	eventually grep -q 'leave 1' "$WORK/first"
	"$CLIENT" "$SOCK" list >"$WORK/waited"
	is certain "$(cat "$WORK/certain")" $'id 1\nmemory 2097152\nvectors 3\npeer 0 3'
	is waited "$(cat "$WORK/waited")" $'id 2\nmemory 2097152\nvectors 3\npeer 0 3'
	stop
}

@test "list understands the original stream, with memory and without" {
	start -L -f memory -m 12K
	is 'with memory' "$("$CLIENT" -L "$SOCK" list)" $'id 0\nmemory 12288\nvectors 1'
	stop
	start -L -m 0 -n 0
	is 'without memory' "$("$CLIENT" -M "$SOCK" list)" $'id 0\nmemory 0\nvectors 0'
	stop
}

@test "ring reaches the vector that another waits for, and no other" {
	start -f memory -n 3
	client waiting -n 3 "$SOCK" wait 2
	"$CLIENT" -n 3 "$SOCK" ring 0 1
	"$CLIENT" -n 3 "$SOCK" ring 0 0
	alive "$CLIENT_PID"
	"$CLIENT" -n 3 "$SOCK" ring 0 2
	wait "$CLIENT_PID"
	is 'what it says' "$(cat "$WORK/waiting")" $'id 0\nvector 2 1'
	stop
}

@test "a doorbell is waited for beyond the end of the server" {
	start -f memory
	client waiting -n 1 "$SOCK" wait 0 1
	stop
	STATUS=0
	wait "$CLIENT_PID" || STATUS=$?
	is status "$STATUS" 1
	has "$WORK/waiting" 'vector 0 was not rung'
}

@test "watch shows joins and leaves, and fails when the server ends" {
	start -f memory -n 2
	client watching -n 2 "$SOCK" watch
	"$CLIENT" -n 2 "$SOCK" list >/dev/null
	eventually grep -q 'leave 1' "$WORK/watching"
	"$CLIENT" -n 2 "$SOCK" list >/dev/null
	eventually grep -q 'leave 2' "$WORK/watching"
	stop
	STATUS=0
	wait "$CLIENT_PID" || STATUS=$?
	is status "$STATUS" 1
	is 'what it says' "$(tail -n +4 "$WORK/watching")" \
		$'join 1\nleave 1\njoin 2\nleave 2\nivshmem_client: the server closed the connection'
}

@test "what cannot be done is said, with status 1" {
	declines 1 'No such file' -- "$SOCK" list
	start -f memory -n 2
	client other -n 2 "$SOCK" watch
	declines 1 'no peer 7 with a vector 0' -- -n 2 "$SOCK" ring 7 0
	declines 1 'no vector 2' -- -n 2 "$SOCK" wait 2
	declines 1 'hazard 8' -- -n 1 "$SOCK" list
	declines 1 'waiting for the memory' -- -L "$SOCK" list
	stop
}

@test "a mistake in the command line is said, with status 2" {
	declines 2 'give a socket and a command' --
	declines 2 'give a socket and a command' -- "$SOCK"
	declines 2 "unknown command 'lost'" -- "$SOCK" lost
	declines 2 "'ring' needs 1 more" -- "$SOCK" ring 1
	declines 2 "unexpected argument '3'" -- "$SOCK" ring 1 2 3
	declines 2 "ID '-1'" -- "$SOCK" -- ring -1 0
	declines 2 "VECTOR 'x'" -- "$SOCK" wait x
	declines 2 "SECONDS ''" -- "$SOCK" watch ''
	declines 2 "-n/--vectors '2049'" -- -n 2049 "$SOCK" list
	declines 2 help -- --no-such-option
	try "$CLIENT" --help
	is 'status of --help' "$STATUS" 0
	has "$WORK/out" 'Usage: ivshmem_client'
}
