#!/usr/bin/env bats
# The examples of ivshmem_protocol(7), as a reader has them before them, are peers of a real server.
# shellcheck disable=SC2119,SC2153 # each test is a shell of its own

load lib/common
load lib/client
load lib/manual

# Cuts a program out of the page: from a line that begins with its name to what is indented less.
example() { # NAME [LINES THAT IT HAS AT LEAST]
	need_tool mandoc
	manual_text "$SOURCE_DIR/client/ivshmem_protocol.7" |
		awk -v name="$1" '
			/[^ ]/ && on && match($0, /[^ ]/) <= indent { exit }
			/[^ ]/ && !on && index($0, name) { on = 1; indent = match($0, /[^ ]/) - 1 }
			on { print substr($0, indent + 1) }' >"$1"
	[ "$(wc -l <"$1")" -ge "${2:-40}" ] || no "$1 is:" "$(cat "$1")"
}

# Runs a peer in the background; what it says is in $WORK/NAME.
peer_runs() { # NAME COMMAND...
	rm -f "$WORK/$1" # what one before has said
	"${@:2}" >"$WORK/$1" 2>&1 3>&- &
	CLIENT_PID=$!
	PIDS+=("$CLIENT_PID")
	eventually grep -qs . "$WORK/$1"
}

setup_peers() {
	need_tool python3 gcc
	example peer.c
	example peer.py
	gcc -Wall -Wextra -Werror -O2 -o peer peer.c
}

@test "the peer in C and that in Python ring each other, and share the memory" {
	setup_peers
	start -f memory -m 2M -n 2
	peer_runs c ./peer "$SOCK"
	c=$CLIENT_PID
	is 'what the one in C says' "$(cat "$WORK/c")" 'id 0, 2097152 bytes'
	peer_runs python python3 peer.py "$SOCK"
	wait "$c"
	is 'what it says then' "$(tail -n 1 "$WORK/c")" 'rung 1 times, the memory begins with 2'
	peer_runs again ./peer "$SOCK"
	eventually grep -q 'rung 1 times, the memory begins with 3' "$WORK/python"
	is 'what the one in Python says' "$(head -n 1 "$WORK/python")" 'id 1, 2097152 bytes'
	"$CLIENT" -n 2 "$SOCK" ring all
	eventually grep -q 'rung 1 times' "$WORK/again"
	stop
}

@test "both go on without the server, and see who leaves" {
	setup_peers
	start -f memory -n 1
	client gone "$SOCK" watch
	gone=$CLIENT_PID
	peer_runs c ./peer "$SOCK"
	c=$CLIENT_PID
	peer_runs python python3 peer.py "$SOCK"
	python=$CLIENT_PID
	wait "$c" # the one in Python has rung it
	kill "$gone"
	eventually grep -q 'ID 0 left' "$LOG"
	peer_runs again ./peer "$SOCK" # and this one the other
	wait "$python"
	peer_runs last python3 peer.py "$SOCK"
	client ringing "$SOCK" run bash -c 'echo id; until [ -e go ]; do sleep 0.05; done; echo ring all >&5'
	stop
	touch go
	eventually grep -q 'rung 1 times' "$WORK/last"
}

@test "both end where they are refused, and when the server breaks off" {
	setup_peers
	for peer in ./peer 'python3 peer.py'; do
		plays -1n -1n -1n close
		# shellcheck disable=SC2086 # two words
		try $peer "$SOCK"
		is 'status' "$STATUS" 1
		has "$WORK/err" 'refused, or another protocol'
		plays 0 3 -1m 1e close
		# shellcheck disable=SC2086 # two words
		try $peer "$SOCK"
		is 'status' "$STATUS" 1
	done
}

@test "both see whoever comes and goes in the greeting" {
	setup_peers
	for peer in ./peer 'python3 peer.py'; do
		plays 0 3 -1m 1e 2e 2e 1 4e 4 9 3e wait 5e 2 5e wait 3e 5 close
		# shellcheck disable=SC2086 # two words
		peer_runs heard $peer "$SOCK"
		is "what $peer says" "$(cat "$WORK/heard")" 'id 3, 4096 bytes'
		eventually test -e "$WORK/played"
		sleep 0.5 # by then it has read all
		alive "$CLIENT_PID"
		kill "$CLIENT_PID"
	done
}

@test "both end where there is no descriptor left, and take that for no leave" {
	need_tool prlimit
	setup_peers
	for peer in ./peer 'python3 peer.py'; do
		# shellcheck disable=SC2046 # one word a peer
		plays 0 3 -1m $(printf '%de ' {10..40}) 3e
		# shellcheck disable=SC2086 # two words
		try prlimit --nofile=20:20 $peer "$SOCK"
		is "status of $peer" "$STATUS" 1
	done
}

@test "the one in Python that only asks sees who is there, and is not seen" {
	need_tool python3
	example status.py 15
	start -f memory -m 2M
	client first "$SOCK" watch
	is 'what it says' "$(python3 status.py "$SOCK")" "$DIR/memory 2097152"$'\n'"0 $CLIENT_PID ivshmem_client"
	is 'what is logged' "$(grep -c 'joined' "$LOG")" 1
	stop
	# A server that cannot tell greets him.
	plays 0 3 -1m 3e
	try python3 status.py "$SOCK"
	is status "$STATUS" 1
	has "$WORK/err" 'this server cannot tell'
}
