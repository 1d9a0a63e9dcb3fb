#!/usr/bin/env bats
# ivshmem_client status: what people and programs see of a server without being one of its nodes. That
# nobody is harmed by it, however often they ask, is in status.t.c.
# shellcheck disable=SC2030,SC2031,SC2119 # each test is a shell of its own

load lib/common
load lib/client

# Says what Python makes of the answer, which has to be one line of JSON.
answer() { # EXPRESSION
	need_tool python3
	"$CLIENT" "$SOCK" status --json >"$WORK/answer" || return
	is 'lines of the answer' "$(wc -l <"$WORK/answer")" 1
	python3 -c 'import json, sys
s = json.load(open(sys.argv[1]))
print(eval(sys.argv[2]))' "$WORK/answer" "$1"
}

# A look that comes to nothing: its status is 1, and it says one line with this text.
fails() { # TEXT [ARGUMENT...]
	try "$CLIENT" "$SOCK" status "${@:2}"
	is "status: $(cat "$WORK/err")" "$STATUS" 1
	said_lines 1 status
	has "$WORK/err" "$1"
}

# Looks again and again, in the background, into $WORK/watch and $WORK/complaints.
watches() { # ARGUMENT...
	: >"$WORK/watch"
	"$CLIENT" "$SOCK" status --watch 0.1 "$@" >"$WORK/watch" 2>"$WORK/complaints" 3>&- &
	WATCH_PID=$!
	PIDS+=("$WATCH_PID")
	eventually test -s "$WORK/watch"
}

watches_no_more() {
	kill "$WATCH_PID"
	wait "$WATCH_PID" || true
}

longer() { # FILE BYTES
	[ "$(wc -c <"$1")" -gt "$2" ]
}

@test "people see what is served and a table of nodes" {
	start -f memory -m 2 -n 3
	"$CLIENT" "$SOCK" status >"$WORK/out"
	grep -qx "socket $SOCK, object $DIR/memory, size 2M, vectors 3, protocol current" "$WORK/out"
	grep -qxE "server [0-9.]+, process $PID, since 20[0-9-]{8} [0-9:]{8}" "$WORK/out"
	is 'the last line' "$(tail -n 1 "$WORK/out")" '0 nodes connected, 0 joined so far, 0 messages waiting'
	client first -n 3 "$SOCK" watch
	client second -n 3 "$SOCK" watch
	eventually grep -qx 'join 1' "$WORK/first" # it has been told all
	"$CLIENT" "$SOCK" status >"$WORK/out"
	is columns "$(sed -n 3p "$WORK/out" | xargs)" 'ID PROCESS COMMAND USER AGE WAITING GREETED STORED'
	sed -n 5p "$WORK/out" | grep -qxE " +1 +$CLIENT_PID ivshmem_client +$(id -un) +[0-9]+s +0 yes +-"
	is 'the last line' "$(tail -n 1 "$WORK/out")" '2 nodes connected, 2 joined so far, 0 messages waiting'
	stop
}

@test "programs see the same in JSON, and what they are promised" {
	local first since
	since=$(date +%s)
	start -f memory -m 2 -n 600
	peer
	first=$PEER_PID
	# One that reads nothing: what its socket does not hold waits.
	perl -MSocket -e 'socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die;
		connect($s, pack_sockaddr_un($ARGV[0])) or die; sleep 1000' "$SOCK" 3>&- &
	PIDS+=("$!")
	second=$!
	eventually grep -q 'ID 1 joined' "$LOG"
	all_sent_to_first() {
		[ "$(answer 's["nodes"][0]["waiting"]')" = 0 ]
	}
	eventually all_sent_to_first
	is 'what is served' "$(answer '[s[k] for k in ("process", "socket", "kind", "object", "size", "vectors", "protocol", "joined")]')" \
		"[$PID, '$SOCK', 'file', '$DIR/memory', 2097152, 600, 'current', 2]"
	is version "$("$SERVER" --version)" "tm_ivshmem_server $(answer 's["version"]')"
	is 'since then' "$(answer "0 <= s['since'] - $since < 400")" True
	is nodes "$(answer '[(n["id"], n["process"], n["command"], n["uid"], n["greeted"], n["stored"]) for n in s["nodes"]]')" \
		"[(0, $first, 'perl', $(id -u), True, None), (1, $second, 'perl', $(id -u), False, None)]"
	is ages "$(answer '[0 <= n["age"] < 400 for n in s["nodes"]]')" '[True, True]'
	is waiting "$(answer 's["waiting"] == s["nodes"][1]["waiting"] > 100')" True
	# USR1 logs the same.
	kill -USR1 "$PID"
	eventually grep -q "2 nodes connected, 2 joined so far, $(answer 's["waiting"]') messages waiting" "$LOG"
	stop
}

@test "each kind of memory is told" {
	start -s "$SHM" -m 4
	is shm "$(answer 's["kind"], s["object"], s["size"]')" "('shm', '/dev/shm/$SHM', 4194304)"
	stop
	start -A
	is anonymous "$(answer 's["kind"], s["size"]')" "('anonymous', 1048576)"
	stop
	start -L -m 0 -n 2
	is none "$(answer 's["kind"], s["object"], s["size"], s["protocol"], s["vectors"]')" "('none', '', 0, 'legacy', 2)"
	"$CLIENT" "$SOCK" status | grep -q 'object -, size 0 bytes, vectors 2, protocol legacy'
	stop
}

@test "nobody notices, and nothing is logged but with -v" {
	start -f memory
	client first -n 1 "$SOCK" watch
	cp "$LOG" "$WORK/before"
	"$CLIENT" "$SOCK" status --json >/dev/null
	"$CLIENT" "$SOCK" status >/dev/null
	client second -n 1 "$SOCK" watch
	is 'its ID' "$(head -n 1 "$WORK/second")" 'id 1'
	eventually grep -q 'join 1' "$WORK/first"
	is 'what the first sees' "$(tail -n +4 "$WORK/first")" 'join 1'
	is 'what was logged' "$(grep -vF -f "$WORK/before" "$LOG")" \
		"tm_ivshmem_server: ID 1 joined: process $CLIENT_PID (ivshmem_client), uid $(id -u)"
	stop
	start -f memory -v
	"$CLIENT" "$SOCK" status >/dev/null
	eventually grep -qE 'the status is told to process [0-9]+ \(ivshmem_client\), uid' "$LOG"
	stop
}

@test "no name in it breaks the answer, or the terminal" {
	local name=$'me"mo\\ry\n\x1b[31m\xff\xc2\x85\xc3\xa9\xe2\x82'
	start -f "$name" -n 600
	perl -MSocket -e 'socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die;
		open(my $c, ">", "/proc/self/comm") or die; print $c "a\"b\\c\n\xff\xe9\x1b[1"; close $c;
		connect($s, pack_sockaddr_un($ARGV[0])) or die; sleep 1000' "$SOCK" 3>&- &
	PIDS+=("$!")
	eventually grep -q 'ID 0 joined' "$LOG"
	is object "$(answer 'ascii(s["object"].rsplit("/", 1)[1])')" \
		"'me\"mo\\\\ry\\n\\x1b[31m\\ufffd\\x85\\xe9\\ufffd\\ufffd'"
	is command "$(answer 's["nodes"][0]["command"]')" 'a"b\c????[1'
	"$CLIENT" "$SOCK" status >"$WORK/out"
	run -1 grep -qP '\x1b|\xc2\x85' "$WORK/out"
	grep -qF "object $DIR/me\\\"mo\\\\ry\\u000a\\u001b[31m\\ufffd\\u0085é\\ufffd\\ufffd, size 1M" "$WORK/out"
	sed -n 4p "$WORK/out" | grep -qF ' a\"b\\c????[1 '
	stop
}

@test "the server is asked from another network namespace as well" {
	need_namespace
	unshare -n true 2>/dev/null || skip "this machine has no network namespaces"
	start -f memory
	unshare -n "$CLIENT" "$SOCK" status | grep -q '0 nodes connected, 0 joined so far'
	stop
}

@test "who may not connect may not ask" {
	need_root
	need_tool setpriv
	start -f memory
	cp "$CLIENT" "$WORK/copy"
	try setpriv "--reuid=$NOBODY" "--regid=$NOBODY" --clear-groups "$WORK/copy" "$SOCK" status
	is status "$STATUS" 1
	said_lines 1 status
	has "$WORK/err" 'Permission denied: your user must be in the group of the socket'
	stop
}

@test "an older server, and another, cannot tell: the client says so" {
	local version=f7d38cdccd05d480006e4ae2ac023d89c18a83c6 said words
	# Those that greet, in either protocol, or refuse, or close, or send what is no answer.
	for words in '0 3 -1m 3e' '3 -1m 3e' '-1n -1n -1n close' '4096m' '4095m' '5' '-1m'; do
		# shellcheck disable=SC2086 # one word a message
		plays $words
		fails "the server at $SOCK cannot tell its status: it is older than 1.3.0, or none of ours" --json
	done
	rm "$SOCK"
	STATUS=0
	said=$("$SOURCE_DIR/tests/lib/version" $version "$WORK/old" 2>&1) || STATUS=$?
	[ "$STATUS" != 77 ] || skip "$said"
	is "status of the build: $said" "$STATUS" 0
	SERVER=$WORK/old/tm_ivshmem_server start -f memory
	fails "cannot tell its status: it is older than 1.3.0"
	eventually grep -q 'ID 0 left' "$LOG"
	fails "cannot tell its status: it is older than 1.3.0" --watch 0.1
	stop
}

# Where it reads too far, a sanitizer says so.
@test "an answer that is cut off anywhere is read no further than that" {
	start -f memory
	client first "$SOCK" watch
	answer 1
	stop
	python3 - "$CLIENT" "$SOCK" "$WORK/answer" <<-'END'
		import os, socket, struct, subprocess, sys
		client, path, answer = sys.argv[1:]
		whole = open(answer, "rb").read()
		listener = socket.socket(socket.AF_UNIX)
		listener.bind(path)
		listener.listen()
		for end in range(1, len(whole)):
		    if whole[end - 1] in b'{[,:"':
		        look = subprocess.Popen([client, path, "status"], stdout=subprocess.PIPE)
		        server, _ = listener.accept()
		        text = os.memfd_create("text")
		        os.write(text, whole[:end])
		        socket.send_fds(server, [struct.pack("<q", end)], [text])
		        os.close(text)
		        server.close()
		        look.communicate(timeout=60)
		        assert look.returncode == 0, (look.returncode, whole[:end])
	END
}

@test "an answer that would control the terminal is none" {
	need_tool python3
	start -f memory
	answer 1
	stop
	python3 - "$CLIENT" "$SOCK" "$WORK/answer" <<-'END'
		import os, socket, struct, subprocess, sys
		client, path, answer = sys.argv[1:]
		whole = open(answer, "rb").read()
		version = b'"version":"'
		listener = socket.socket(socket.AF_UNIX)
		listener.bind(path)
		listener.listen()
		for evil in b"", b"\x1b[31m", b"\0", b"\n", b"\x7f", b"\xc2\x9b31m":
		    text = whole.replace(version, version + evil)
		    assert text != whole or not evil
		    for how in [], ["--json"]:
		        look = subprocess.Popen([client, path, "status", *how], stdout=subprocess.PIPE,
		                                stderr=subprocess.PIPE)
		        server, _ = listener.accept()
		        memory = os.memfd_create("text")
		        os.write(memory, text)
		        socket.send_fds(server, [struct.pack("<q", len(text))], [memory])
		        os.close(memory)
		        server.close()
		        out, err = look.communicate(timeout=60)
		        assert look.returncode == (1 if evil else 0), (evil, how, look.returncode)
		        assert not evil or (not out and b"cannot tell its status" in err), (evil, out, err)
	END
}

@test "a server that is not there, stopped, or closes without an answer: the client says so" {
	fails "cannot connect to $SOCK: No such file or directory: start the server first"
	fails "cannot connect to $SOCK: No such file or directory: start the server first" --watch
	need_tool python3
	python3 -c 'import socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
while True: s.accept()' "$SOCK" 3>&- &
	PIDS+=("$!")
	eventually listens_at "$SOCK"
	fails "the server at $SOCK closed the connection without an answer"
	kill "$!"
	rm "$SOCK"
	start -f memory
	kill -STOP "$PID"
	fails "the server at $SOCK does not answer; it is stopped, or hangs"
	kill -CONT "$PID"
	is joined "$(answer 's["joined"]')" 0
	hasnt "$LOG" joined
	stop
}

@test "where the server dies over the question, its standby answers it" {
	need_strace
	start -f memory -d -i pid
	wait "$PID"
	PID=$(cat pid)
	PIDS+=("$PID")
	strace -o "$WORK/strace" -e inject=memfd_create:signal=KILL -p "$PID" 2>"$WORK/attached" 3>&- &
	PIDS+=("$!")
	eventually grep -q attached "$WORK/attached"
	before=$PID
	is joined "$(answer 's["joined"], s["nodes"]')" '(0, [])'
	grep -q 'memfd_create("ivshmem-status"' "$WORK/strace"
	eventually ended "$before"
	PID=$(cat pid)
	PIDS+=("$PID")
	[ "$PID" != "$before" ]
	is process "$(answer 's["process"]')" "$PID"
	stop_daemon
}

@test "--watch shows one after the other, and goes on over a restart of the server" {
	start -f memory
	watches
	eventually longer "$WORK/watch" $((3 * $(wc -c <"$WORK/watch")))
	stop
	eventually grep -q "cannot connect to $SOCK" "$WORK/complaints"
	start -f memory
	eventually grep -q "process $PID" "$WORK/watch"
	hasnt "$WORK/watch" $'\033'
	watches_no_more
	watches --json
	eventually longer "$WORK/watch" $((3 * $(wc -c <"$WORK/watch")))
	watches_no_more
	python3 -c 'import json, sys
for line in open(sys.argv[1]): json.loads(line)' "$WORK/watch"
	# Who has seen enough ends it.
	timeout 120 "$CLIENT" "$SOCK" status --watch=0.1 | head -n 1 | grep -q "^socket $SOCK"
	stop
}

@test "--watch paints a terminal anew, also while there is no server" {
	local columns
	need_tool script
	paints_on() { # SIZE
		rm -f "$WORK/terminal"
		# Bash has the background ignore INT.
		env --default-signal=INT script -qefc "stty $1; exec '$CLIENT' '$SOCK' status --watch 0.1" "$WORK/terminal" >/dev/null 3>&- &
		SCRIPT_PID=$!
		PIDS+=("$SCRIPT_PID")
	}
	ends_by_int() {
		kill -INT "$(pgrep -P "$SCRIPT_PID" -f 'status --watch')"
		eventually ended "$SCRIPT_PID"
	}
	start -f memory
	paints_on 'rows 5 cols 1000'
	eventually grep -qsF $'0 nodes connected, 0 joined so far, 0 messages waiting\033[K' "$WORK/terminal"
	eventually grep -qF $'\033[J' "$WORK/terminal"
	client first "$SOCK" watch
	client second "$SOCK" watch
	# Four lines fit into five, and a word of the rest.
	eventually grep -qF $'...\033[J' "$WORK/terminal"
	hasnt "$WORK/terminal" '2 nodes connected'
	stop
	eventually grep -qF $'\033[Hcannot connect to' "$WORK/terminal"
	is 'no line is printed beside the table' "$(grep -c 'ivshmem_client: ' "$WORK/terminal")" 0
	ends_by_int
	# A line that is longer than the terminal is wide takes several rows: the first of them two here.
	start -f "memory-of-a-long-name-$(printf 'm%.0s' {1..80})"
	columns=$(($("$CLIENT" "$SOCK" status | head -n 1 | wc -m) - 2))
	paints_on "rows 4 cols $columns"
	eventually grep -qsF $'...\033[J' "$WORK/terminal"
	has "$WORK/terminal" $'protocol current\033[K'
	hasnt "$WORK/terminal" '0 nodes connected'
	ends_by_int
	paints_on "rows 4 cols $((columns + 1))"
	eventually grep -qsF '0 nodes connected' "$WORK/terminal"
	ends_by_int
	stop
}

@test "sizes are for people on a terminal, and bytes for programs" {
	need_tool script
	start -f memory -m 2
	script -qec "'$CLIENT' '$SOCK' list" /dev/null >"$WORK/terminal" 3>&-
	grep -q $'^memory 2M\r$' "$WORK/terminal"
	"$CLIENT" "$SOCK" list | grep -qx 'memory 2097152'
	stop
	start -L -f odd -m 12K
	"$CLIENT" "$SOCK" status | grep -q ', size 12K,'
	stop
}

@test "mistakes after status are told" {
	local args
	for args in '--jason' 'now' '--watch 0' '--watch 0.05' '--watch=0' '--watch=' '--watches' '--watch x' '--watch 1 2' '--json=1'; do
		# shellcheck disable=SC2086 # several words
		try "$CLIENT" "$SOCK" status $args
		is "status of: status $args" "$STATUS" 2
		said_lines 1 "$args"
		has "$WORK/err" --help
	done
	try "$CLIENT" -D status
	is 'status of -D' "$STATUS" 1
	has "$WORK/err" 'a virtual machine cannot ask the server'
}
