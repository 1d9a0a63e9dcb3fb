#!/usr/bin/env bats
# ivshmem_client run: programs as peers of a mesh, in shell and in Python.
# shellcheck disable=SC2030,SC2031,SC2119,SC2016,SC2153 # each test is a shell of its own, programs are text

load lib/common
load lib/client
load lib/manual

# Runs a shell program as a peer, in the background; what it says is in $WORK/NAME, and its first
# line has its ID.
peer_runs() { # NAME PROGRAM [OPTION...]
	client "$1" "${@:3}" "$SOCK" run bash -c "echo id \$IVSHMEM_ID
$2"
}

# A shell program as a peer, in the foreground: see `try`.
tries() { # PROGRAM [OPTION...]
	try "$CLIENT" "${@:2}" "$SOCK" run bash -c "$1"
}

# Waits for a peer's program, which must end with a status.
ends() { # PID STATUS
	local status=0
	wait "$1" || status=$?
	is "status of the peer" "$status" "$2"
}

# A process must use next to nothing of half a second.
idle() { # PID
	local before after
	before=$(ticks "$1")
	sleep 0.5
	after=$(ticks "$1")
	[ $((after - before)) -lt 10 ] || no "process $1 spins: $((after - before)) ticks in half a second"
}

ticks() { # PID
	awk '{ print $14 + $15 }' "/proc/$1/stat"
}

# An example of the manual page, as a reader has it before them.
example() { # NAME
	need_tool mandoc
	manual_text "$SOURCE_DIR/client/ivshmem_client.1" |
		awk -v name="$1:" '
			/^ *#!/ { start = $0; indent = match($0, /#/) - 1 }
			$2 == name { on = 1; print substr(start, indent + 1) }
			on && /[^ ]/ && match($0, /[^ ]/) <= indent { exit }
			on { print substr($0, indent + 1) }' >"$1"
	chmod +x "$1"
}

@test "two shell scripts ring each other" {
	start -f memory -n 2
	peer_runs first 'while read -r word number count <&4; do
		echo "$word $number $count"
		[ "$word" != join ] || echo "ring $number 1" >&5
		[ "$word" != ring ] || exit 5
	done'
	first=$CLIENT_PID
	eventually grep -q ready "$WORK/first"
	tries 'while read -r word number count <&4; do
		echo "$word $number $count"
		[ "$word" != ring ] || break
	done
	echo ring 0 all >&5'
	is 'status of the second' "$STATUS" 0
	is 'what the second hears' "$(cat "$WORK/out")" $'join 0 \nready  \nring 1 1'
	ends "$first" 5
	# The second ends as soon as it has rung; which of both the first hears first is open.
	is 'what the first hears' "$(sed '/^leave 1 $/d; s/^ring [01] 1$/ring/' "$WORK/first" | head -n 4)" \
		$'id 0\nready  \njoin 1 \nring'
	stop
}

@test "a Python program shares memory with another, and with the file on the host" {
	need_tool python3
	start -f memory -m 2M -n 2
	cat >peer.py <<-'END'
		import mmap, os
		me, size = int(os.environ["IVSHMEM_ID"]), int(os.environ["IVSHMEM_SIZE"])
		memory = mmap.mmap(int(os.environ["IVSHMEM_MEMORY"]), size)
		events = open(int(os.environ["IVSHMEM_EVENTS"]))
		requests = open(int(os.environ["IVSHMEM_REQUESTS"]), "w", buffering=1)
		print("id", me, size, os.environ["IVSHMEM_VECTORS"], flush=True)
		memory[size - 8:] = b"written%d" % me
		for line in events:
		    word, *numbers = line.split()
		    if word == "join" and me == 0:
		        print("ring", numbers[0], 1, file=requests)
		    elif word == "ring":
		        print("rung", *numbers, memory[size - 8:])
		        if me == 1:
		            print("ring 0 0", file=requests)
		        break
	END
	client first "$SOCK" run python3 peer.py
	first=$CLIENT_PID
	eventually grep -q id "$WORK/first"
	try "$CLIENT" "$SOCK" run python3 peer.py
	is 'status of the second' "$STATUS" 0
	is 'what the second says' "$(cat "$WORK/out")" $'id 1 2097152 2\nrung 1 1 b\'written1\''
	ends "$first" 0
	has "$WORK/first" "b'written1'"
	is 'what stands in the file' "$(tail -c 8 memory)" written1
	stop
}

@test "the examples of the manual page work" {
	need_tool python3
	example greet.bash
	example count.py
	[ "$(wc -l <greet.bash)" -ge 8 ] || no "$(cat greet.bash)"
	start -f memory -n 1
	# Two of each: each rings the other three, once, and then there is silence.
	local peer peers=()
	for peer in greet.1 greet.2 count.1 count.2; do
		client "$peer" -n 1 "$SOCK" run bash -c "echo id; exec ./${peer%.*}.[bp]*"
		peers+=("$CLIENT_PID")
	done
	rung() { awk '/^rung/ { n += $2 } END { print n + 0 }' "$WORK/$1"; }
	counted() { od -A n -t d8 -N 8 memory | tr -d ' '; }
	heard() {
		[ "$(rung greet.1)" -ge 3 ] && [ "$(rung greet.2)" -ge 3 ] && [ "$(counted)" -ge 3 ] &&
			[ "$(cat "$WORK"/greet.* | grep -c 'is there$')" -ge 6 ]
	}
	eventually heard
	sleep 0.5
	is 'how often they were rung' "$(rung greet.1) $(rung greet.2) $(counted)" '3 3 3'
	stop
	for peer in "${peers[@]}"; do
		ends "$peer" 0
	done
	is 'who was there' "$(grep -h 'is there$' "$WORK"/greet.* | sort)" \
		$'0 is there\n1 is there\n2 is there\n2 is there\n3 is there\n3 is there'
	is 'errors' "$(grep -hvE 'is there$|^rung|^id$' "$WORK"/greet.* "$WORK"/count.* | sort -u)" \
		'ivshmem_client: the server closed the connection'
}

@test "what was there first is told before 'ready', what comes and goes behind it" {
	start -f memory -n 2
	client first "$SOCK" watch
	client second "$SOCK" watch
	second=$CLIENT_PID
	peer_runs third 'while read -r line <&4; do echo "$line"; done'
	eventually grep -q ready "$WORK/third"
	kill "$second"
	eventually grep -q 'leave 1' "$WORK/third"
	third=$CLIENT_PID
	client fourth "$SOCK" watch
	eventually grep -q 'join 3' "$WORK/third"
	kill "$CLIENT_PID"
	eventually grep -q 'leave 3' "$WORK/third"
	alive "$third"
	is 'what it hears' "$(cat "$WORK/third")" \
		$'id 2\njoin 0\njoin 1\nready\nleave 1\njoin 3\nleave 3'
	stop
}

@test "the end of the server is told; memory and doorbells go on" {
	start -f memory -n 1
	peer_runs first 'while read -r line <&4; do echo "$line"; case $line in ring*) exit;; esac; done'
	first=$CLIENT_PID
	eventually grep -q ready "$WORK/first"
	peer_runs second 'while read -r line <&4; do
		[ "$line" != end ] || break
	done
	echo ring 0 0 >&5
	head -c 4 /dev/fd/3'
	printf 'here' | dd of=memory conv=notrunc status=none
	eventually grep -q 'join 1' "$WORK/first"
	stop
	ends "$CLIENT_PID" 0
	ends "$first" 0
	grep -vE '^ivshmem_client|^end$' "$WORK/first" >"$WORK/heard" # the end may come too late
	is 'what the first hears' "$(cat "$WORK/heard")" $'id 0\nready\njoin 1\nring 0 1'
	has "$WORK/second" here 'ivshmem_client: the server closed the connection'
}

# Reads nothing until the file "read" is there. Its pipe holds a page; when no more than a line fits,
# it makes the file "full".
SLEEPER='
import array, fcntl, os, select, sys, termios, time

def wait_for(what):
    while not what():
        time.sleep(0.02)

def bytes_unread():
    count = array.array("i", [0])
    fcntl.ioctl(4, termios.FIONREAD, count)
    return count[0]

F_SETPIPE_SZ = 1031
fcntl.fcntl(4, F_SETPIPE_SZ, 4096)
wait_for(lambda: bytes_unread() >= len("ready\n"))
print("id", os.environ["IVSHMEM_ID"], flush=True)
wait_for(lambda: bytes_unread() > 4000)
open("full", "w").close()
wait_for(lambda: os.path.exists("ask"))
os.write(5, b"ring 1 0\n")
wait_for(lambda: os.path.exists("read"))
all_rings = int(open("rings").read())
rung = {"0": 0, "1": 0}
met = False
for line in open(4):
    word, *numbers = line.split()
    if word == "ring":
        rung[numbers[0]] += int(numbers[1])
    else:
        print(line, end="")
        met = met or line == "join 7\n"
    if met and rung["0"] == 1 and rung["1"] >= all_rings:
        break
print("rung", rung["1"])
'

@test "a program that reads nothing loses no ring, and stops nobody" {
	need_tool python3
	start -f memory -n 2
	client first "$SOCK" run python3 -c "$SLEEPER"
	first=$CLIENT_PID
	peer_runs second 'for ((n = 0; ; n++)); do
			[ ! -e full ] || break
			echo ring 0 1
		done >&5
		for ((i = 0; i < 5000; i++, n++)); do echo ring 0 1; done >&5
		echo ring 1 1 >&5
		while read -r word vector _ <&4; do
			[ "$word $vector" != "ring 1" ] || echo "$n" >rings
			[ "$word $vector" != "ring 0" ] || break
		done'
	second=$CLIENT_PID
	eventually test -s rings
	# The client reads the stream on: all these have come and gone when its program reads.
	for _ in 1 2 3 4 5; do
		"$CLIENT" -n 2 "$SOCK" list >/dev/null
	done
	eventually grep -q 'ID 6 left' "$LOG"
	alive "$second"
	idle "$first"
	touch ask
	ends "$second" 0
	eventually grep -q 'ID 1 left' "$LOG"
	peer_runs third 'read -r line <&4; echo "$line"; sleep 1000'
	eventually grep -q 'join 0' "$WORK/third"
	touch read
	"$CLIENT" -n 2 "$SOCK" ring 0 0
	ends "$first" 0
	grep -vE '^(join|leave) 8$' "$WORK/first" >"$WORK/heard" # that is who has just rung
	is 'what it hears' "$(cat "$WORK/heard")" "$(printf 'id 0\nready\njoin 1\nleave 1\njoin 7\nrung %s' "$(cat rings)")"
	stop
}

@test "a program that closes the events, or both, costs nothing" {
	start -f memory -n 1
	peer_runs first 'exec 4<&-; while :; do echo ring 0 0; sleep 0.02; done >&5'
	first=$CLIENT_PID
	peer_runs second 'exec 4<&- 5>&-; sleep 2; exit 7'
	idle "$first"
	idle "$CLIENT_PID"
	ends "$CLIENT_PID" 7
	stop
}

@test "requests: in pieces, many in one, wrong ones; the last count at the end" {
	start -f memory -n 2
	client heard "$SOCK" wait 1
	heard=$CLIENT_PID
	tries 'printf "ri" >&5; sleep 0.2; printf "ng 0 " >&5; sleep 0.2; printf "0\nring 9 0\nring 0 2\n" >&5
		printf "\n \nring\nring 0\nring 0 0 0\nring all 1\nring x 0\nlost\nring 0 1" >&5; exit 4'
	is status "$STATUS" 4
	is 'what is wrong' "$(cat "$WORK/err")" "ivshmem_client: request 'ring 9 0': there is no node 9
ivshmem_client: request 'ring 0 2': node 0 has no vector 2: it has 2, numbered from 0
ivshmem_client: request 'ring': give ID VECTOR, ID all, or all
ivshmem_client: request 'ring 0': give ID VECTOR, ID all, or all
ivshmem_client: request 'ring 0 0 0': give ID VECTOR, ID all, or all
ivshmem_client: request 'ring all 1': give ID VECTOR, ID all, or all
ivshmem_client: request 'ring x 0': ID 'x': give a whole number from 0 to 65535
ivshmem_client: request 'lost': unknown; give 'ring ID VECTOR', 'ring ID all' or 'ring all'
ivshmem_client: request 'ring 0 1': not done, its line has no end"
	alive "$heard"
	# What the program has left behind may write on.
	tries 'printf "ring 0 1" >&5; (tail --pid=$PPID -f /dev/null; echo) >&5 2>/dev/null & exit 5'
	is status "$STATUS" 5
	has "$WORK/err" "request 'ring 0 1': not done, its line has no end"
	alive "$heard"
	tries 'head -c 5000 /dev/zero | tr "\0" x >&5; echo >&5; echo ring 0 1 >&5'
	is 'lines about one that is too long' "$(grep -c "^ivshmem_client: request 'xxx" "$WORK/err")" 2
	ends "$heard" 0
	stop
}

@test "ten thousand requests that nobody waits for are all done" {
	start -f memory -n 1
	peer_runs first 'total=0
		while read -r word number count <&4; do
			[ "$word" = ring ] || continue
			total=$((total + count))
			[ "$total" -lt 10000 ] || break
		done
		echo "total $total"'
	tries 'yes "ring 0 0" | head -n 10000 >&5'
	is 'status' "$STATUS" 0
	ends "$CLIENT_PID" 0
	is 'what was heard' "$(cat "$WORK/first")" $'id 0\ntotal 10000'
	stop
}

@test "the program has its descriptors and its caller's, no other; the limit as it was" {
	need_tool prlimit
	start -f memory -n 3
	client other "$SOCK" watch
	cat >look <<-'END'
		echo $IVSHMEM_SIZE $IVSHMEM_VECTORS $IVSHMEM_MEMORY $IVSHMEM_EVENTS $IVSHMEM_REQUESTS
		ls -l /proc/$$/fd >listing
		sed -n 's/.* \([3-9]\) -> \([^:]*\).*/\1 \2/p' listing
		while read -r name value; do
			[ "$name" != SigBlk: ] || echo "$name $value"
		done </proc/$$/status
		ulimit -Sn
	END
	# The caller has none but the first three, whatever those who run the tests have left open, and 7.
	cat >caller <<-'END'
		for fd in /proc/$$/fd/*; do
			fd=${fd##*/}
			[ "$fd" -le 2 ] || exec {fd}>&-
		done
	END
	# Where the caller itself has these open, or lacks the first three, the same must come out.
	for redirection in '' '3<look' '4<look 5<look' '0<&-' '0<&- 2>&-'; do
		prlimit --nofile=700:1000 bash -c "$(cat caller)
			exec '$CLIENT' '$SOCK' run bash look 7</dev/null $redirection" >seen
		is "with '$redirection'" "$(cat seen)" "1048576 3 3 4 5
3 $DIR/memory
4 pipe
5 pipe
7 /dev/null
SigBlk: 0000000000000000
700"
	done
	stop
}

@test "without memory there is no descriptor 3" {
	start -L -m 0 -n 1
	# Nor is there one that the caller has left open.
	try bash -c 'IVSHMEM_MEMORY=9 exec "$@" 3</dev/null' - "$CLIENT" -n 1 "$SOCK" run bash -c \
		'echo $IVSHMEM_SIZE ${IVSHMEM_MEMORY-none}; readlink /proc/$$/fd/3; read -r line <&4; echo $line'
	is 'status' "$STATUS" 0
	is 'what it finds' "$(cat "$WORK/out")" $'0 none\nready'
	stop
}

@test "without vectors nothing is heard but 'ready' and 'end'" {
	start -f memory -n 0
	peer_runs first 'cat <&4' -n 0
	peer_runs second 'echo ring all >&5; cat <&4'
	stop
	kill "$CLIENT_PID"
	eventually grep -q end "$WORK/first"
	is 'what the first hears' "$(grep -v ivshmem_client "$WORK/first")" $'id 0\nready\nend'
}

@test "the status is the program's, or that of its signal" {
	start -f memory -n 1
	tries 'exit 0'
	is 'exit 0' "$STATUS" 0
	tries 'exit 42'
	is 'exit 42' "$STATUS" 42
	tries 'kill -KILL $$'
	is 'KILL' "$STATUS" $((128 + 9))
	try "$CLIENT" "$SOCK" run ./missing
	is 'missing' "$STATUS" 127
	said_lines 1 missing
	has "$WORK/err" "cannot run './missing': No such file"
	echo 'no program' >text
	try "$CLIENT" "$SOCK" run ./text
	is 'no program' "$STATUS" 126
	has "$WORK/err" "cannot run './text': Permission denied"
	try "$CLIENT" "$SOCK" run printf '%s|' --help -n 'a b'
	is 'arguments' "$(cat "$WORK/out")" '--help|-n|a b|'
	try "$CLIENT" "$SOCK" run -- printf '%s|' --
	is 'arguments' "$(cat "$WORK/out")" '--|'
	try "$CLIENT" "$SOCK" run --
	is 'no program' "$STATUS" 2
	stop
}

# Runs the client in a terminal, whose keys come from the named pipe keys, and which goes to the file;
# its program says which process is its client. The key must reach no shell between: there are some
# that end with it, after the client. What a script runs in the background ignores it, and HUP under
# nohup; newer timeouts leave it so.
on_terminal() { # FILE PROGRAM
	timeout --kill-after=5 120 env '--default-signal=HUP,INT,QUIT' \
		script -qec "exec '$CLIENT' -n 1 '$SOCK' run $2" /dev/null <keys >"$1" 3>&- 9>&- &
	script=$!
	PIDS+=("$script")
	eventually grep -q $'its client is [0-9]*\r' "$1"
	client=$(sed -n 's/\r$//; s/.*its client is //p' "$1")
}

@test "signals to the client reach the program, a key's only once" {
	need_tool script
	start -f memory -n 1
	program='for s in HUP INT QUIT USR1 USR2; do trap "echo got $s" $s; done
		trap "exit 9" TERM
		echo "its client is $PPID"
		for ((i = 0; i < 2400; i++)); do sleep 0.05; done'
	mkfifo keys
	exec 9<>keys
	echo "$program" >program
	on_terminal "$WORK/terminal" 'bash program'
	printf '\3' >&9
	eventually grep -q 'got INT' "$WORK/terminal"
	for signal in HUP QUIT USR1 USR2; do
		kill -s "$signal" "$client"
		eventually grep -q "got $signal" "$WORK/terminal"
	done
	kill -INT "$client"
	twice() { [ "$(grep -c 'got INT' "$WORK/terminal")" = 2 ]; }
	eventually twice
	kill -TERM "$client"
	ends "$script" 9

	# One that the key does not reach, since it has a session of its own, is not sent it by us.
	on_terminal "$WORK/terminal.ignored" 'setsid bash program'
	printf '\3' >&9
	sleep 0.3
	kill -USR1 "$client"
	eventually grep -q 'got USR1' "$WORK/terminal.ignored"
	is 'how often INT came' "$(grep -c 'got INT' "$WORK/terminal.ignored")" 0
	kill -TERM "$client"
	ends "$script" 9
	exec 9>&-
	stop
}

@test "signals that were ignored from the start still are" {
	start -f memory -n 1
	(
		trap '' HUP
		exec "$CLIENT" -n 1 "$SOCK" run bash -c 'trap "exit 6" USR1; echo id; while :; do sleep 0.05; done'
	) >"$WORK/first" 3>&- &
	first=$!
	PIDS+=("$first")
	eventually grep -q id "$WORK/first"
	kill -HUP "$first"
	kill -USR1 "$first"
	ends "$first" 6
	stop
}

@test "a client that is killed leaves the mesh, and its program sees the end of the events" {
	start -f memory -n 1
	client watching -n 1 "$SOCK" watch
	peer_runs first 'cat <&4 >/dev/null; echo over >over'
	eventually grep -q 'join 1' "$WORK/watching"
	kill -KILL "$CLIENT_PID"
	eventually grep -q 'leave 1' "$WORK/watching"
	eventually test -s over
	stop
}

@test "a server that breaks the protocol ends the connection, not the program" {
	plays 0 3 -1m 1e 3e @go 1 -1m
	peer_runs first 'while read -r line <&4; do echo "$line"; [ "$line" != end ] || exit 3; done' -n 1
	eventually grep -q ready "$WORK/first"
	touch go
	ends "$CLIENT_PID" 3
	is 'what is said' "$(grep ivshmem_client "$WORK/first")" \
		'ivshmem_client: the server sent a descriptor of -1, which is no ID'
	is 'what it hears' "$(grep -v ivshmem_client "$WORK/first")" $'id 3\njoin 1\nready\nleave 1\nend'
}

@test "an ID that comes again is a leave and a join" {
	plays 0 3 -1m 1e 3e @go 1 1e 2e 2 close
	peer_runs first 'while read -r line <&4; do echo "$line"; [ "$line" != end ] || exit 0; done' -n 1
	eventually grep -q ready "$WORK/first"
	touch go
	ends "$CLIENT_PID" 0
	# Whether word of another came in between is up to who was quicker.
	is 'what it hears' "$(grep -vE '^(join|leave) 2$|^ivshmem_client' "$WORK/first")" \
		$'id 3\njoin 1\nready\nleave 1\njoin 1\nend'
}

@test "a thousand peers are told, though no pipe takes them at once" {
	# shellcheck disable=SC2046 # one word a peer
	plays 0 3 -1m $(printf '%de ' {1000..1999}) 3e wait 1234 wait close
	try "$CLIENT" -n 1 "$SOCK" run bash -c 'sleep 1; while read -r line <&4; do
		echo "$line"; [ "$line" != end ] || break; done'
	is 'status' "$STATUS" 0
	diff "$WORK/out" <(printf 'join %d\n' {1000..1999} | if [ "$(grep -c 'join 1234' "$WORK/out")" = 1 ]; then
		cat; else grep -v 1234; fi; echo ready; grep 'leave 1234' "$WORK/out" || true; echo end)
}

@test "a join is told when all doorbells of the peer are there" {
	plays 0 3 -1m 3e 3e wait 4e pause 4e
	try "$CLIENT" -n 2 "$SOCK" run bash -c 'while read -r word id <&4; do
		[ "$word" != join ] || { echo "ring $id 1" >&5; exit 3; }; done'
	is 'status' "$STATUS" 3
	is 'what is wrong' "$(cat "$WORK/err")" ''
}

@test "a silence in the greeting that was not its end makes no join too early" {
	plays 0 3 -1m @go 1e wait 9 1e wait 3e 3e wait 4e wait 4e
	tries 'while read -r word id _ <&4; do
		echo $word $id
		[ "$word" != ready ] || : >go
		[ "$word" != join ] || echo "ring $id 1" >&5
		[ "$word $id" != "join 4" ] || exit 3
	done'
	is 'status' "$STATUS" 3
	is 'what is wrong' "$(cat "$WORK/err")" ''
	is 'what it hears' "$(cat "$WORK/out")" $'ready\njoin 1\njoin 4'
}

@test "vectors that come after a silence are own vectors all the same" {
	# When another is there, they are complete.
	plays 0 3 -1m 3e @go 3e wait 3e 4e 4e 4e
	tries 'for i in 1 2 3 4 5; do
		read -r line <&4
		echo "$line"
		[ "$line" != ready ] || : >go
		[ "$line" != "join 4" ] || echo ring 3 all >&5
	done'
	is 'status' "$STATUS" 0
	is 'what it hears' "$(cat "$WORK/out")" $'ready\njoin 4\nring 0 1\nring 1 1\nring 2 1'
}
