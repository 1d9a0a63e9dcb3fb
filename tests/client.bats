#!/usr/bin/env bats
# The client for the command line (client/ivshmem_client.c), with which people look at a mesh: its
# commands but for run, and its dialog.
# shellcheck disable=SC2030,SC2031,SC2119 # each test is a shell of its own

load lib/common
load lib/client

# A client that must not do what it was asked to: its status, and the one line that it says.
declines() { # STATUS TEXT -- ARGUMENT...
	try "$CLIENT" "${@:4}"
	declined "$@"
}

# The same, while a stream of messages is played to it.
declines_play() { # STREAM STATUS TEXT -- ARGUMENT...
	try_play "$1" "$CLIENT" "${@:5}"
	declined "${@:2}"
}

declined() { # STATUS TEXT -- ARGUMENT...
	is "status of: ${*:4}: $(cat "$WORK/err")" "$STATUS" "$1"
	said_lines 1 "${@:4}"
	has "$WORK/err" "$2"
}

# What list shows, in one line, of a stream of messages that is played to it. If it waited for more than
# comes, it would give up.
lists() { # WANTED STREAM -- [OPTION...]
	try_play "$2" "$CLIENT" "${@:4}" "$SOCK" list
	is "status of: $2: $(cat "$WORK/err")" "$STATUS" 0
	is "shown of: $2" "$(paste -sd ' ' "$WORK/out")" "$1"
}

# Types on a terminal, line by line, and puts what is seen there into $WORK/terminal. A person types
# when there is a prompt, of which each line brings another.
types() { # ARGUMENTS-OF-THE-CLIENT LINE...
	local line n=0
	rm -f "$WORK/terminal"
	for line in "${@:2}"; do
		eventually prompts_are $((n += 1))
		printf '%s\n' "$line"
	done | timeout --kill-after=5 120 script -qec "'$CLIENT' $1" /dev/null >"$WORK/terminal" 3>&- || STATUS=$?
	sed -i 's/\r//' "$WORK/terminal"
}

# A command takes so many milliseconds: at least, and less than. Twice something else may hold it up.
takes() { # LEAST LESS-THAN COMMAND...
	local before took i
	for i in 1 2 3; do
		before=$(date +%s%N)
		"${@:3}"
		took=$((($(date +%s%N) - before) / 1000000))
		[ "$took" -ge "$1" ] || break
		[ "$took" -ge "$2" ] || return 0
	done
	no "${*:3} took $took ms, the time $i"
}

prompts_are() { # NUMBER
	[ "$(grep -os 'cmd> ' "$WORK/terminal" | wc -l)" -ge "$1" ]
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
	client first "$SOCK" watch
	is 'with memory' "$("$CLIENT" "$SOCK" list)" $'id 1\nmemory 12288\nvectors 1\npeer 0 1'
	stop
	start -L -m 0 -n 2
	is 'without memory' "$("$CLIENT" "$SOCK" list)" $'id 0\nmemory 0\nvectors 2'
	stop
	start -L -m 0 -n 0
	is 'without all' "$("$CLIENT" "$SOCK" list)" $'id 0\nmemory 0\nvectors 0'
	is 'what -n 0 says' "$("$CLIENT" -n 0 "$SOCK" list)" $'id 0\nmemory 0\nvectors 0'
	is 'watch 0.1' "$("$CLIENT" "$SOCK" watch 0.1)" $'id 0\nmemory 0\nvectors 0'
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

@test "a doorbell that nobody can ring any more is not waited for" {
	plays 0 3 -1m 3e pause 70000e
	try "$CLIENT" -n 1 "$SOCK" wait 0
	is status "$STATUS" 1
	has "$WORK/err" 'a descriptor of 70000, which is no ID'
}

@test "SECONDS may have a fraction" {
	start -f memory
	client other -n 1 "$SOCK" watch
	for seconds in 0 0.25 .25 1. 000.2500; do
		case $seconds in
		0) takes 0 10000 try "$CLIENT" "$SOCK" wait 0 "$seconds" ;;
		1.) takes 1000 10000 try "$CLIENT" "$SOCK" wait 0 "$seconds" ;;
		*) takes 250 2500 try "$CLIENT" "$SOCK" wait 0 "$seconds" ;;
		esac
		is "status of wait 0 $seconds" "$STATUS" 1
		has "$WORK/err" 'vector 0 was not rung'
	done
	try "$CLIENT" "$SOCK" watch 0.1
	is 'status of watch 0.1' "$STATUS" 0
	stop
	# They begin when the ID is shown, and not while silence has to show that we are alone.
	start -f memory
	before=$(date +%s%N)
	try "$CLIENT" "$SOCK" wait 0 0.3
	took=$((($(date +%s%N) - before) / 1000000))
	[ "$took" -ge 600 ] || no "alone, wait 0 0.3 took $took ms"
	stop
}

@test "SECONDS hold while messages come and come, and beside a server that is stopped" {
	for command in 'watch 0.5' 'wait 0 0.5'; do
		plays 0 3 -1m 3e 65000e flood
		# shellcheck disable=SC2086 # two words
		try "$CLIENT" -n 1 "$SOCK" $command
		is "status of $command: $(cat "$WORK/err")" "$STATUS" "$([ "$command" = 'watch 0.5' ] && echo 0 || echo 1)"
	done
	waits_beside() { # WORD...
		plays "$@"
		try "$CLIENT" "$SOCK" wait 0 0.5
	}
	for stream in 0 '0 3' full; do
		# shellcheck disable=SC2086 # one word a message
		takes 500 10000 waits_beside $stream # without SECONDS it is more
		is "status of wait beside '$stream'" "$STATUS" 1
	done
	has "$WORK/err" 'the server accepts nobody; it is stopped, or hangs'
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

@test "ring takes all vectors of a peer, and of all others" {
	start -f memory -n 2
	client first "$SOCK" wait 1
	first=$CLIENT_PID
	client second "$SOCK" wait 1
	second=$CLIENT_PID
	"$CLIENT" "$SOCK" ring 0 all
	wait "$first"
	alive "$second"
	"$CLIENT" "$SOCK" ring all
	wait "$second"
	is 'what the second says' "$(cat "$WORK/second")" $'id 1\nvector 1 1'
	stop
}

@test "without -n, beside another, nothing needs to be waited for" {
	# Who waited would see the end, and fail.
	lists 'id 3 memory 4096 vectors 1 peer 1 1' '0 3 -1m 1e 3e close' --
	lists 'id 3 memory 4096 vectors 2 peer 1 2' '0 3 -1m 1e 1e 3e 3e close' --
}

@test "the socket is the first argument, that of -S, or the default" {
	# shellcheck disable=SC2016 # for the inner shell
	[ ! -e /tmp/ivshmem_socket ] || skip "/tmp/ivshmem_socket is in use"
	start -f memory
	is 'an argument' "$("$CLIENT" "$SOCK" list | head -n 1)" 'id 0'
	is 'that of -S' "$("$CLIENT" -S "$SOCK" list | head -n 1)" 'id 0'
	cp "$CLIENT" list
	is 'a path that is no command' "$(cd / && "$CLIENT" "${SOCK#/}" list | head -n 1)" 'id 0'
	declines 1 'cannot connect to /tmp/ivshmem_socket: No such file or directory: start the server' -- list
	declines 1 'cannot connect to ./list: Connection refused' -- ./list list
	stop
}

@test "what cannot be done is said, with status 1" {
	declines 1 'No such file' -- "$SOCK" list
	start -f memory -n 2
	client other -n 2 "$SOCK" watch
	declines 1 'no node 7' -- -n 2 "$SOCK" ring 7 0
	declines 1 'node 0 has no vector 2: it has 2, numbered from 0' -- -n 2 "$SOCK" ring 0 2
	declines 1 'more than 1 vector, as -n says' -- -n 1 "$SOCK" list
	declines 1 'each node 2 vectors, not 3, as -n says' -- -n 3 "$SOCK" list
	try "$CLIENT" -n 2 "$SOCK" wait 2
	is 'status of wait 2' "$STATUS" 1
	has "$WORK/err" 'there is no vector 2: each node has 2, numbered from 0'
	stop
}

@test "a user who may not connect is told whose the socket is" {
	need_root
	start -f memory -g 0
	chmod 755 "$DIR"
	WRAPPED=(setpriv --reuid="$NOBODY" --regid="$NOBODY" --clear-groups)
	try "${WRAPPED[@]}" "$CLIENT" "$SOCK" list
	is status "$STATUS" 1
	has "$WORK/err" 'Permission denied: your user must be in the group'
	stop
}

@test "a refusal is told as one" {
	plays -1n -1n -1n close
	declines 1 'refused us; its log says why' -- "$SOCK" list
	plays -1n -1n -1n close
	declines 1 'refused us; its log says why' -- "$SOCK" run true
	plays -1n -1n -1n close
	declines 1 'refused us; its log says why' -- "$SOCK"
	plays -1
	declines 1 'refused us; its log says why' -- "$SOCK" list
}

@test "a server that runs out of descriptors refuses, and says why itself" {
	need_tool prlimit
	# shellcheck disable=SC2034 # what the server is run by
	WRAP=(prlimit --nofile=40:40)
	start -f memory -n 4
	while client "peer$((++n))" -n 4 "$SOCK" watch && [ "$n" -lt 20 ]; do :; done || true
	declines 1 'refused us' -- -n 4 "$SOCK" list
	has "$LOG" 'a client is refused'
	stop
}

@test "what breaks the protocol is named" {
	plays close
	declines 1 'the server closed the connection' -- "$SOCK" list
	plays 0 3 close
	declines 1 'the server closed the connection' -- "$SOCK" list
	plays 1 3 -1m
	declines 1 'version 1 of the protocol' -- "$SOCK" list
	plays 0e
	declines 1 "no ivshmem server: it began with 0 with a descriptor" -- "$SOCK" list
	plays 0 3 3e
	declines 1 'no ivshmem server: it began with 3 with a' -- "$SOCK" list
	plays 0 65536
	declines 1 'no ivshmem server: it began with 65536 without' -- "$SOCK" list
	plays 0 3 -1n
	declines 1 'what the server sent as memory is no file' -- "$SOCK" list
	declines_play '0 3 -1m 70000e' 1 'a descriptor of 70000, which is no ID' -- "$SOCK" list
	declines_play '0 3 -1m -1m' 1 'a descriptor of -1, which is no ID' -- "$SOCK" list
	declines_play '0 3 -1m 3e 70000' 1 '70000 left, which cannot be' -- "$SOCK" list
	declines_play '0 3 -1m 3e 3' 1 '3 left, which cannot be' -- "$SOCK" list
}

@test "a client that runs out of descriptors says what to raise" {
	need_tool prlimit
	start -f memory -n 60
	try prlimit --nofile=40:40 "$CLIENT" "$SOCK" list
	is status "$STATUS" 1
	has "$WORK/err" "raise 'ulimit -n'"
	# The limit of a shell is raised, as far as it may be.
	try prlimit --nofile=40:100 "$CLIENT" -n 60 "$SOCK" list
	is status "$STATUS" 0
	stop
}

@test "a greeting that stops is given up" {
	plays 0 3 -1m 4e
	declines 1 'is not complete, and the server is silent' -- "$SOCK" list
	plays 0 3 -1m 3e
	declines 1 'the server is silent: is -n right?' -- -n 2 "$SOCK" list
}

@test "whatever comes into a greeting, list shows whole peers, and keeps nobody waiting" {
	local own1='id 3 memory 4096 vectors 1' own2='id 3 memory 4096 vectors 2' own3='id 3 memory 4096 vectors 3'
	# Who joins while silence is to show that we are alone: then our own vectors are complete.
	lists "$own1 peer 4 1" '0 3 -1m 3e wait 4e' --
	lists "$own1 peer 4 1" '0 3 -1m 9 3e 9 wait 4e' --
	lists "$own2" '0 3 -1m 3e wait 3e wait 4e wait 4e' --
	lists "$own2" '0 3 -1m 3e 3e wait 4e 4 wait' --
	lists "$own2" '0 3 -1m 3e 3e wait 4e wait 4e' -- -n 2
	lists "$own2" '0 3 -1m 3e 3e 4e 4 4e 4e' --
	# One who leaves while its eventfds come: how many these were says nothing, but that ours come.
	lists "$own2" '0 3 -1m 1e 1 pause 3e wait 3e' --
	lists "$own3" '0 3 -1m 1e 1e 1 3e pause 3e 3e' --
	lists "$own2" '0 3 -1m 1e 1 3e 3e wait 4e' --
	lists "$own2" '0 3 -1m 1e 1 3e wait 3e' -- -n 2
	lists "$own2 peer 2 2" '0 3 -1m 1e 1 2e 2e 3e wait 3e' --
	lists "$own2 peer 1 2" '0 3 -1m 1e 1 1e wait 1e 3e wait 3e' --
	# One who leaves while those of others come, or our own.
	lists "$own2 peer 2 2" '0 3 -1m 1e 1e 2e 1 pause 2e 3e 3e' --
	lists "$own2" '0 3 -1m 1e 1e 3e 1 pause 3e' --
	lists "$own2" '0 3 -1m 1e 1e 1 pause 3e pause 3e' --
	lists "$own2" '0 3 -1m 1e 1 3e 3e 4e 4 wait' --
	lists "$own2 peer 5 2" '0 wait 3 wait -1m wait 1e 1 2e 2e wait 2 9 5e wait 5e 3e wait 3e' --
	# The same in the original stream, with memory and without.
	lists "$own1 peer 4 1" '3 -1m 3e wait 4e' --
	lists "$own2" '3 -1m 1e 1 pause 3e wait 3e' --
	lists 'id 3 memory 0 vectors 1 peer 4 1' '3 3e wait 4e' --
	lists 'id 3 memory 0 vectors 2' '3 1e 1 pause 3e wait 3e' --
	lists "$own1" '0 3 -1m 3e wait 4e' -- -n 1
}

@test "a greeting that ends, or that -n does not fit, is said at once" {
	local stream
	for stream in '3e' '3e wait' '1e 1' '1e 1 3e' '1e 1e 2e 2e 3e'; do
		declines_play "0 3 -1m $stream close" 1 'the server closed the connection' -- "$SOCK" list
	done
	plays 0 3 -1m 3e wait 4e
	declines 1 'each node 1 vector, not 2, as -n says' -- -n 2 "$SOCK" list
	plays 0 3 -1m 1e 1 2e 2e 3e
	declines 1 'each node 2 vectors, not 3, as -n says' -- -n 3 "$SOCK" list
	plays 0 3 -1m 1e 1e
	declines 1 'more than 1 vector, as -n says' -- -n 1 "$SOCK" list
}

@test "what comes while the client itself is stopped is no silence" {
	try_play '0 3 -1m 3e wait stop pause 3e continue' "$CLIENT" "$SOCK" list
	is status "$STATUS" 0
	is 'what it shows' "$(cat "$WORK/out")" $'id 3\nmemory 4096\nvectors 2'
}

@test "who join at the same moment see each other" {
	start -f memory -n 2
	# shellcheck disable=SC2016 # for the inner shell
	local delay meet='while read -r word id <&4; do
		[ "$word" != join ] || { echo "ring $id all" >&5; seen=1; }
		[ "$word" != ring ] || rung=1
		[ "$seen$rung" != 11 ] || exit 0
	done
	exit 9'
	for delay in 0 0.05 0.1 0.15 0.2 0.25 0.3; do
		timeout 120 "$CLIENT" "$SOCK" run bash -c "$meet" 3>&- &
		sleep "$delay"
		try "$CLIENT" "$SOCK" run bash -c "$meet"
		is "status of the second, after $delay s: $(cat "$WORK/err")" "$STATUS" 0
		STATUS=0
		wait $! || STATUS=$?
		is "status of the first, $delay s before" "$STATUS" 0
	done
	stop
}

@test "however others come and go, a list is complete and quick" {
	start -f memory -n 8
	local i loop loops=()
	for loop in 1 2 3; do
		for ((i = 0; i < 25; i++)); do
			timeout 120 "$CLIENT" "$SOCK" list || echo "status $?"
		done >"$WORK/lists.$loop" 2>&1 3>&- &
		loops+=("$!")
	done
	wait "${loops[@]}"
	is 'lines that should not be' \
		"$(grep -hvxE 'id [0-9]+|memory 1048576|vectors 8|peer [0-9]+ 8' "$WORK"/lists.* | sort -u)" ''
	is 'lists' "$(cat "$WORK"/lists.* | grep -c '^vectors 8')" 75
	stop
}

@test "an ID may come again, as other servers have it" {
	plays 0 3 -1m 1e 3e wait 1 1e 2e wait 2 close
	try "$CLIENT" -n 1 "$SOCK" watch
	is status "$STATUS" 1
	has "$WORK/err" 'the server closed the connection'
	is 'what it shows' "$(cat "$WORK/out")" \
		$'id 3\nmemory 4096\nvectors 1\npeer 1 1\nleave 1\njoin 1\njoin 2\nleave 2'
}

@test "-v shows every message" {
	plays 0 3 -1m 3e
	try "$CLIENT" -v -n 1 "$SOCK" list
	is 'messages' "$(cat "$WORK/err")" 'ivshmem_client: message 0
ivshmem_client: message 3
ivshmem_client: message -1 with a descriptor
ivshmem_client: message 3 with a descriptor'
}

@test "a mistake in the command line is said in one line, with status 2" {
	declines 2 "unknown command 'lost': give status, list" -- "$SOCK" lost
	declines 2 "unknown command 'lits', and no socket of that name is here: give status, list" -- lits
	declines 2 "unknown command 'd', and no socket of that name" -- d
	declines 2 "unknown command 'lits': give status, list" -- -S "$SOCK" lits
	declines 1 'cannot connect to ./lits: No such file' -- ./lits list
	declines 2 "ring: give ID VECTOR" -- "$SOCK" ring
	declines 2 "ring: give ID VECTOR" -- "$SOCK" ring 1
	declines 2 "ring: give ID VECTOR" -- "$SOCK" ring 1 2 3
	declines 2 "ring: give ID VECTOR" -- "$SOCK" ring all all
	declines 2 "ring: ID '-1': give a whole number from 0 to 65535" -- "$SOCK" ring -1 0
	declines 2 "ring: ID '65536'" -- "$SOCK" ring 65536 0
	declines 2 "ring: VECTOR '0x1'" -- "$SOCK" ring 0 0x1
	declines 2 "ring: VECTOR ' 1'" -- "$SOCK" ring 0 ' 1'
	declines 2 "wait: give VECTOR" -- "$SOCK" wait
	declines 2 "VECTOR 'x'" -- "$SOCK" wait x
	declines 2 "unexpected argument '3'" -- "$SOCK" wait 1 2 3
	for seconds in '' . x 1x -1 +1 ' 1' 1e3 0x1 inf 1,5 1.5.1 2147484 2147483.1 99999999999999999999; do
		declines 2 "SECONDS '$seconds': give a number from 0 to 2147483, such as 5 or 0.5" \
			-- "$SOCK" watch "$seconds"
	done
	declines 2 "unexpected argument '-n'" -- "$SOCK" list -n 2
	declines 2 "run: give a program" -- "$SOCK" run
	declines 2 'give a path of 1 to 107 characters' -- "./$(printf '%0106d' 0)" list
	declines 2 'give a path of 1 to 107 characters' -- -S '' list
	declines 1 'No such file' -- -S "$(printf '%0107d' 0)" list
	declines 2 "-n/--vectors '2049'" -- -n 2049 "$SOCK" list
	declines 2 "option '-n' needs a value" -- -n
	declines 2 "option '--socket' needs a value" -- --socket
	declines 2 "unknown option '-x'" -- -vx
	declines 2 "unknown option '-x'" -- --verbose -xv
	declines 2 "option '--no-such-option' is unknown" -- --no-such-option
	declines 2 "option '--help=3' is unknown, ambiguous, or takes no value" -- --help=3
	declines 2 help -- --no-such-option
}

@test "--help and --version go to standard output, or fail" {
	try "$CLIENT" --help
	is 'status of --help' "$STATUS" 0
	has "$WORK/out" 'Usage: ivshmem_client'
	try "$CLIENT" -V
	is 'status of -V' "$STATUS" 0
	is 'version' "$(cut -d ' ' -f 2 "$WORK/out")" "$("$SERVER" -V | cut -d ' ' -f 2)"
	STATUS=0
	"$CLIENT" --help >/dev/full 2>"$WORK/err" || STATUS=$?
	is 'status of --help, the disk being full' "$STATUS" 1
	start -f memory
	STATUS=0
	"$CLIENT" "$SOCK" list >/dev/full 2>"$WORK/err" || STATUS=$?
	is 'status of list, the disk being full' "$STATUS" 1
	has "$WORK/err" 'cannot write to standard output: No space left'
	for command in 'wait 0' watch; do
		STATUS=0
		# shellcheck disable=SC2086 # two words
		timeout 120 "$CLIENT" "$SOCK" $command >/dev/full 2>"$WORK/err" || STATUS=$?
		is "status of $command, the disk being full" "$STATUS" 1
	done
	STATUS=0
	echo help | timeout 120 "$CLIENT" "$SOCK" >/dev/full 2>"$WORK/err" || STATUS=$?
	is 'status of a dialog, the disk being full' "$STATUS" 1
	STATUS=0
	"$CLIENT" "$SOCK" list >&- 2>"$WORK/err" || STATUS=$?
	is 'status of list, the output being closed' "$STATUS" 1
	has "$WORK/err" 'cannot write to standard output: Bad file descriptor'
	stop
}

@test "words from standard input: QEMU's client's, without a prompt" {
	start -f memory -n 2
	client waiting "$SOCK" wait 1
	printf '\n  dump ;int 0 0\nhelp;;\n?\nint 0 all' >words
	STATUS=0
	"$CLIENT" -S "$SOCK" <words >"$WORK/out" 2>"$WORK/err" || STATUS=$?
	is 'status' "$STATUS" 0
	wait "$CLIENT_PID"
	has "$WORK/waiting" 'vector 1 1'
	sed -i 's/fd=[0-9]*/fd=N/' "$WORK/out"
	is 'what dump shows' "$(head -n 6 "$WORK/out")" 'our_id = 1
  vector 0 is enabled (fd=N)
  vector 1 is enabled (fd=N)
peer_id = 0
  vector 0 is enabled (fd=N)
  vector 1 is enabled (fd=N)'
	is 'help, twice' "$(grep -c '^int ID VECTOR ' "$WORK/out")" 2
	hasnt "$WORK/out" 'cmd>'
	is 'errors' "$(cat "$WORK/err")" ''
	stop
}

@test "a word that cannot be done does not end the others, but makes the status 1" {
	start -f memory
	client waiting "$SOCK" wait 0
	printf 'int 7 0\nint 0 1\nint 0\nint 0 x\nlost\nquit now\nint 0 0\nquit\nint 9 9\n' >words
	STATUS=0
	"$CLIENT" "$SOCK" <words >"$WORK/out" 2>"$WORK/err" || STATUS=$?
	is 'status' "$STATUS" 1
	is 'errors' "$(cat "$WORK/err")" "ivshmem_client: there is no node 7
ivshmem_client: node 0 has no vector 1: it has 1, numbered from 0
ivshmem_client: give ID VECTOR, ID all, or all
ivshmem_client: VECTOR 'x': give a whole number from 0 to 2047
ivshmem_client: 'lost': unknown command; 'help' lists the commands
ivshmem_client: 'quit': unknown command; 'help' lists the commands"
	wait "$CLIENT_PID"
	has "$WORK/waiting" 'vector 0 1'
	stop
}

@test "a dialog that is no person's shows what comes in, and fails with the server" {
	start -f memory -n 2
	mkfifo words
	"$CLIENT" "$SOCK" <words >"$WORK/shown" 2>&1 3>&- &
	local dialog=$!
	PIDS+=("$dialog")
	exec 9>words
	echo dump >&9
	eventually grep -q our_id "$WORK/shown"
	# One that stays until it has been told of, and one that rings, of which that is not sure.
	client waiting "$SOCK" wait 1
	eventually grep -qx 'peer 1 joined' "$WORK/shown"
	"$CLIENT" "$SOCK" ring 0 all
	eventually grep -qx 'receive notification: vector=1 count=1' "$WORK/shown"
	kill "$CLIENT_PID"
	eventually grep -qx 'peer 1 left' "$WORK/shown"
	stop
	STATUS=0
	wait "$dialog" || STATUS=$?
	exec 9>&-
	is 'status' "$STATUS" 1
	is 'all of it, sorted' "$(tail -n +4 "$WORK/shown" | grep -v '^peer 2 ' | sort)" \
		'ivshmem_client: the server closed the connection
peer 1 joined
peer 1 left
receive notification: vector=0 count=1
receive notification: vector=1 count=1'
}

@test "on a terminal there is a prompt, and the steps of a tutorial work" {
	need_tool script
	start -f memory -n 2
	client waiting "$SOCK" wait 1
	types "-v -S '$SOCK'" '' help dump 'int 0 1' quit
	wait "$CLIENT_PID"
	has "$WORK/terminal" 'cmd> ' "connected to $SOCK: our_id=1 memory=1048576 vectors=2" \
		'int ID VECTOR' 'our_id = 1' 'peer_id = 0' 'message -1 with a descriptor'
	stop
}

@test "on a terminal a server that is not there is waited for, and one that went" {
	need_tool script
	mkfifo keys
	exec 9<>keys
	timeout --kill-after=5 120 script -qec "'$CLIENT' '$SOCK'" /dev/null <keys >"$WORK/terminal" 3>&- 9>&- &
	CLIENT_PID=$!
	PIDS+=("$CLIENT_PID")
	eventually grep -q 'cannot connect to .*trying to connect again' "$WORK/terminal"
	echo dump >&9
	eventually grep -q 'not connected to' "$WORK/terminal"
	start -f memory -n 1
	eventually grep -q 'our_id=0 .*vectors=1' "$WORK/terminal"
	"$CLIENT" -n 1 "$SOCK" ring 0 0
	eventually grep -q 'receive notification: vector=0 count=1' "$WORK/terminal"
	stop
	eventually grep -q 'the server closed the connection; trying' "$WORK/terminal"
	plays 0 3 -1m 1e wait close # one that is killed while it greets
	eventually test -e "$WORK/played"
	start -f memory -n 3
	eventually grep -q 'our_id=0 .*vectors=3' "$WORK/terminal"
	echo quit >&9
	STATUS=0
	wait "$CLIENT_PID" || STATUS=$?
	exec 9>&-
	is 'status' "$STATUS" 0
	stop
}

@test "an error is written at once, so that no line of others stands in it" {
	need_strace
	local args
	for args in 'list' 'lits' "$SOCK list"; do
		# shellcheck disable=SC2086 # several words
		try strace -o "$WORK/trace" -e trace=write -e write=2 "$CLIENT" -S "$SOCK" $args
		is "writes of $args" "$(grep -c '^write(2,' "$WORK/trace")" 1
		grep -q '^write(2, "ivshmem_client: ' "$WORK/trace"
	done
}
