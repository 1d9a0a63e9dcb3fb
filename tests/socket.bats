#!/usr/bin/env bats
# The socket and who may connect: modes and groups at every moment, sockets of other servers and what
# else may stand at the path, and what is there when the server has ended.
# shellcheck disable=SC2016,SC2030,SC2031,SC2034,SC2119,SC2153,SC2314 # each test is a shell of its own

load lib/common

GID=45107 # of the group kvm in these tests, which nobody has
OTHER=45108

# Runs the server where the group kvm exists (and `guests`, of another number), or where it does not.
# Only this process sees that.
with_groups() { # GROUP:NUMBER...
	local group
	need_namespace
	grep -v '^kvm:\|^guests:' /etc/group >"$WORK/group"
	for group in "$@"; do
		echo "${group%%:*}:x:${group#*:}:" >>"$WORK/group"
	done
	WRAP=(unshare -m sh -c 'mount --bind "$0" /etc/group && exec "$@"' "$WORK/group")
}

# The same as an account that owns nothing, in the groups named.
with_groups_as_nobody() { # [GROUPS] GROUP:NUMBER...
	need_tool setpriv
	cp "$SERVER" "$WORK/tm_ivshmem_server"
	SERVER=$WORK/tm_ivshmem_server
	chown "$NOBODY:$NOBODY" "$DIR"
	with_groups "${@:2}"
	if [ -n "$1" ]; then
		WRAP+=(setpriv "--reuid=$NOBODY" "--regid=$NOBODY" "--groups=$1")
	else
		WRAP+=(setpriv "--reuid=$NOBODY" "--regid=$NOBODY" --clear-groups)
	fi
}

mode() { # PATH
	stat -c '%a %g' "$1"
}

# Connects as another account, in the groups named, and gets a greeting; prints why if that fails.
connect_as() { # GROUPS SOCKET
	local groups=--clear-groups
	[ -z "$1" ] || groups=--groups=$1
	timeout 60 setpriv "--reuid=$NOBODY" "--regid=$NOBODY" "$groups" perl -e "$PEER" "$2" 4 2>&1 3>&-
}

# --- mode and group

@test "with a group kvm: socket and new objects are its" {
	with_groups "kvm:$GID"
	start -f store
	is socket "$(mode "$SOCK")" "660 $GID"
	is store "$(mode store)" "660 $GID"
	stop
	start -s "$SHM"
	is socket "$(mode "$SOCK")" "660 $GID"
	is object "$(mode "/dev/shm/$SHM")" "660 $GID"
	stop
}

@test "without a group kvm: only the own account gets in" {
	with_groups
	start -f store
	is socket "$(mode "$SOCK")" '600 0'
	is store "$(mode store)" '600 0'
	stop
	start -s "$SHM"
	is socket "$(mode "$SOCK")" '600 0'
	is object "$(mode "/dev/shm/$SHM")" '600 0'
	stop
}

@test "-g: a group by name or number" {
	local group
	with_groups "kvm:$GID" "guests:$OTHER"
	for group in guests "$OTHER" "0$OTHER"; do
		rm -f store
		start -f store -g "$group"
		is "socket of -g $group" "$(mode "$SOCK")" "660 $OTHER"
		is "store of -g $group" "$(mode store)" "660 $OTHER"
		stop
	done
	# A number needs no name.
	rm store
	start -f store --group=45109
	is socket "$(mode "$SOCK")" '660 45109'
	stop
	start -s "$SHM" -g 0
	is socket "$(mode "$SOCK")" '660 0'
	is object "$(mode "/dev/shm/$SHM")" '660 0'
	stop
}

@test "a name of digits is a name first" {
	with_groups "7777:$OTHER"
	start -s "$SHM" -g 7777
	is socket "$(mode "$SOCK")" "660 $OTHER"
	stop
}

@test "as an account in kvm: the group gets in" {
	with_groups_as_nobody "$GID" "kvm:$GID"
	start -f store
	is socket "$(mode "$SOCK")" "660 $GID"
	is store "$(mode store)" "660 $GID"
	stop
}

@test "as an account that is not in kvm: only itself gets in, without a word" {
	with_groups_as_nobody '' "kvm:$GID"
	start -f store
	is socket "$(mode "$SOCK")" "600 $NOBODY"
	is store "$(mode store)" "600 $NOBODY"
	is 'lines in the log' "$(wc -l <"$LOG")" 2
	stop
}

@test "as an account that is not in the group of -g: refused, nothing left" {
	with_groups_as_nobody '' "kvm:$GID" "guests:$OTHER"
	refused "$DIR/store" "$OTHER" 'Operation not permitted' -- -f store -g guests
	refused 'Operation not permitted' -- -s "$SHM" -g "$OTHER"
	refused 'Operation not permitted' -- -f store -m 8 -a -i pid -g 0
	# An object that exists is not the question, but the socket is.
	truncate -s 4M store
	chown "$NOBODY" store
	refused "$SOCK" "$OTHER" 'Operation not permitted' -- -f store -g guests -t -m 1
	start -f store -g "$NOBODY"
	is socket "$(mode "$SOCK")" "660 $NOBODY"
	stop
}

@test "the umask does not matter" {
	local mask
	with_groups "kvm:$GID"
	for mask in 000 022 077 0177 0777; do
		rm -f store
		umask "$mask"
		start -f store
		umask 022
		is "socket with umask $mask" "$(mode "$SOCK")" "660 $GID"
		is "store with umask $mask" "$(mode store)" "660 $GID"
		stop
	done
	with_groups
	for mask in 000 022 077; do
		rm -f store
		umask "$mask"
		start -f store
		umask 022
		is "socket with umask $mask" "$(mode "$SOCK")" '600 0'
		is "store with umask $mask" "$(mode store)" '600 0'
		stop
	done
}

@test "the umask does not matter, also for an account without rights" {
	local mask
	with_groups_as_nobody '' "kvm:$GID"
	for mask in 0777 0700 0277; do
		rm -f store pid
		umask "$mask"
		start -f store -i pid
		umask 022
		is "socket with umask $mask" "$(mode "$SOCK")" "600 $NOBODY"
		is "store with umask $mask" "$(mode store)" "600 $NOBODY"
		[ "$(stat -c %A pid | cut -c2-3)" = rw ]
		stop
	done
}

@test "existing objects keep owner and mode" {
	local before
	with_groups "kvm:$GID" "guests:$OTHER"
	truncate -s 1M store
	chmod 640 store
	chown "$NOBODY:$OTHER" store
	before=$(state)
	serves -- -f store
	serves -- -f store -g guests
	is 'everything' "$(state)" "$before"
	serves -- -f store -t -m 2M -a
	is 'mode and owner' "$(stat -c '%a %u:%g' store)" "640 $NOBODY:$OTHER"
	cp --preserve=all store "/dev/shm/$SHM"
	serves -- -s "$SHM"
	is 'mode and owner' "$(stat -c '%a %u:%g' "/dev/shm/$SHM")" "640 $NOBODY:$OTHER"
}

# --- who gets in

@test "an account in the group connects, one outside does not, whatever else it may" {
	need_tool setpriv
	with_groups "kvm:$GID"
	start -f store
	is 'a member' "$(connect_as "$GID" "$SOCK" | sed -n 3p)" '-1 fd 1048576'
	is 'a member of more' "$(connect_as "$OTHER,$GID" "$SOCK" | sed -n 3p)" '-1 fd 1048576'
	run -13 connect_as '' "$SOCK"
	is 'nobody' "$output" 'connect: Permission denied'
	run -13 connect_as "$OTHER" "$SOCK"
	is 'a member of another' "$output" 'connect: Permission denied'
	is 'clients in the log' "$(grep -c joined "$LOG")" 2
	stop
	with_groups
	start -f store
	run -13 connect_as "$GID" "$SOCK"
	is 'a member, without -g' "$output" 'connect: Permission denied'
	stop
}

# Tries all the time, as an account outside of the group, to connect and to open the object; says
# how it went each time the answer changes.
# shellcheck disable=SC2016
INTRUDER='
	use strict; use warnings; use Socket;
	my ($path, @files) = @ARGV;
	$| = 1;
	my %last;
	my $tell = sub { my ($what, $how) = @_; print "$what: $how\n" if ($last{$what} // "") ne $how; $last{$what} = $how; };
	while (1) {
		socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die "socket: $!\n";
		$tell->("connect", connect($s, pack_sockaddr_un($path)) ? "done" : "$!");
		close $s;
		for my $file (@files) {
			for my $mode ("<", "+<") {
				$tell->("open $file", open(my $f, $mode, $file) ? "done" : "$!");
			}
		}
		select undef, undef, undef, 0.002;
	}
'

@test "there is no moment at which another account gets in, or the modes are wider" {
	need_tool setpriv
	need_strace
	local calls=umask,bind,listen,chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,ftruncate
	local intruder watcher args
	with_groups "kvm:$GID"
	for args in "-f $DIR/store" "-s $SHM" "-f $DIR/store -a" "-f $DIR/store -g $OTHER" "-f $DIR/store -d -i pid"; do
		rm -f store "/dev/shm/$SHM" "$WORK/trace" "$WORK/intruder" "$WORK/modes" "$LOG"
		touch "$WORK/intruder" "$LOG"
		chmod 600 "$WORK/intruder"
		umask 000
		setpriv "--reuid=$NOBODY" "--regid=$NOBODY" --clear-groups perl -e "$INTRUDER" "$SOCK" \
			"$DIR/store" "/dev/shm/$SHM" >"$WORK/intruder" 2>&1 3>&- &
		intruder=$!
		perl -e '
			$| = 1;
			while (1) {
				for (@ARGV) {
					my @s = lstat or next;
					my $now = sprintf "%o %d %d", $s[2] & 07777, $s[4], $s[5];
					print "$now\n" if ($last{$_} // "") ne $now;
					$last{$_} = $now;
				}
				select undef, undef, undef, 0.002;
			}' "$WORK/intruder" "$SOCK" "$DIR/store" "/dev/shm/$SHM" >"$WORK/modes" 2>&1 3>&- &
		watcher=$!
		PIDS+=("$intruder" "$watcher")
		eventually grep -q connect "$WORK/intruder"
		eventually test -s "$WORK/modes" # that of the other's file
		# Before and after each of the calls that matter there is time to get in.
		# shellcheck disable=SC2086 # words
		"${WRAP[@]}" strace -D -f -o "$WORK/trace" -e trace=$calls \
			--inject=$calls:delay_enter=30000:delay_exit=30000 \
			"$SERVER" -p "$SOCK" $args >"$LOG" 2>&1 3>&- &
		PID=$!
		PIDS+=("$PID")
		eventually grep -q 'connect a node:' "$LOG"
		umask 022
		eventually grep -q 'connect: Permission denied' "$WORK/intruder"
		eventually grep -q 'open .*: Permission denied' "$WORK/intruder"
		eventually grep -q '^660 0 4510[78]$' "$WORK/modes"
		if [ -e pid ]; then
			wait "$PID"
			PID=$(cat pid)
			PIDS+=("$PID")
			kill "$PID"
			eventually ended "$PID"
		else
			stop
		fi
		eventually tail_is "$WORK/intruder" connect 'No such file or directory'
		kill "$intruder" "$watcher"
		is "what else the other account met with, $args" \
			"$(grep -v ': Permission denied$\|: No such file or directory$' "$WORK/intruder")" ''
		is "wider modes with $args" "$(grep -v -x "600 0 [0-9]*\|660 0 $GID\|660 0 $OTHER\|[0-7]* 0 0" "$WORK/modes")" ''
		is "wider modes with $args" "$(grep -x "[0-7]* 0 0" "$WORK/modes" | grep -v -x '[0-6]00 0 0')" ''
	done
}

tail_is() { # FILE WHAT HOW
	[ "$(grep "^$2:" "$1" | tail -n 1)" = "$2: $3" ]
}

# Holds a start before a system call, or stops it behind one, while a command is run.
held_at() { # before|behind CALL COMMAND...
	local how=$HELD
	[ "$1" = before ] || how=signal=STOP
	rm -f "$WORK/trace"
	WRAP=(strace -D -o "$WORK/trace" -e "trace=$2" "--inject=$2:$how:when=1")
	launch -A -g "$(id -g)"
	WRAP=()
	if [ "$1" = before ]; then
		eventually grep -qs '(' "$WORK/trace"
		"${@:3}"
		let_go "$PID"
	else
		eventually stopped
		"${@:3}"
		kill -CONT "$PID"
	fi
}

@test "what is put in place of the socket while it is made is not touched, by a link or otherwise" {
	need_root
	need_strace
	local before
	: >secret
	chmod 600 secret
	link() {
		mv -f "$SOCK" moved
		ln -s secret "$SOCK"
	}
	other() {
		mv -f "$SOCK" moved
		mv secret-sock "$SOCK"
	}
	not_ours() {
		eventually ready_or_ended
		! alive "$PID" || no "it has started"
		has "$LOG" "$SOCK was replaced while it was being made" 'a folder that only uid'
	}
	# Between its making and the first look.
	held_at behind bind link
	not_ours
	is 'mode of what the link leads to' "$(stat -c %a secret)" 600
	is 'the link' "$(readlink "$SOCK")" secret
	rm "$SOCK"
	# A socket of somebody else's, who listens there.
	perl -MIO::Socket::UNIX -e 'umask 0177; my $s = IO::Socket::UNIX->new(Local => "secret-sock", Listen => 5) or die;
		sleep 1000' 3>&- &
	PIDS+=($!)
	eventually test -S secret-sock
	before=$(stat -c '%a %u:%g' secret-sock)
	held_at behind bind other
	not_ours
	is 'mode and owner of the other socket' "$(stat -c '%a %u:%g' "$SOCK")" "$before"
	rm "$SOCK"
	# Later, when it is known which is ours: that one gets the mode, wherever it is.
	held_at before chown,lchown link
	ready
	is 'mode of what the link leads to' "$(stat -c %a secret)" 600
	is 'mode of the socket' "$(stat -c %a moved)" 660
	stop
	is 'the link' "$(readlink "$SOCK")" secret
}

@test "the socket's mode does not go by its path, and without /proc nobody else is let in" {
	need_root
	need_namespace
	local hide='mount -t tmpfs none /proc/$$/fd' # the rest a sanitizer may want
	WRAP=(unshare -m sh -c "$hide"' && exec "$@"' sh)
	refused "$SHM" 'without /proc' -- -s "$SHM" -g "$(id -g)"
	with_groups "kvm:$GID"
	WRAP=("${WRAP[@]:0:4}" "$hide && ${WRAP[4]}" "${WRAP[@]:5}")
	start -s "$SHM"
	has "$LOG" "$SOCK is for uid 0 alone" 'without /proc'
	is socket "$(mode "$SOCK")" '600 0'
	stop
}

# --- what stands at the path

@test "what is no socket is never touched" {
	: >file
	echo text >text
	mkdir folder
	mkfifo fifo
	ln -s nothing dangling
	ln -s text link
	local path
	for path in file text folder fifo dangling link; do
		refused "$DIR/$path" 'not a socket' -p -- -s "$SHM" -p "$path"
		refused "$DIR/$path" -- -f store -m 1 -p "$path"
	done
	# Not even by a symbolic link to a socket.
	start -s "$SHM"
	ln -s sock to-socket
	refused "$DIR/to-socket" -- -f store -p to-socket
	stop
	refused /dev/null 'not a socket' -- -f store -p /dev/null
	refused "$DIR" 'not a socket' -- -f store -p .
}

@test "paths at which no socket can be" {
	: >file
	refused "$DIR/missing/sock" 'No such file or directory' -- -f store -p missing/sock
	refused "$DIR/file/sock" 'Not a directory' -- -f store -p file/sock
	refused "$DIR/sock/" -- -f store -p sock/
	refused "$DIR/missing/" -- -f store -p missing/
	refused / -- -f store -p /
}

@test "a folder in which we may not write" {
	need_root
	need_tool setpriv
	cp "$SERVER" "$WORK/tm_ivshmem_server"
	SERVER=$WORK/tm_ivshmem_server
	chown "$NOBODY" "$DIR"
	mkdir closed locked
	chmod 755 closed
	chmod 700 locked
	WRAP=(setpriv "--reuid=$NOBODY" "--regid=$NOBODY" --clear-groups)
	refused "$DIR/closed/sock" 'Permission denied' -- -f store -p closed/sock
	refused "$DIR/locked/sock" 'Permission denied' -- -f store -p locked/sock
}

@test "the longest path that a socket can have" {
	SOCK=$DIR/$(printf 's%.0s' $(seq $((106 - ${#DIR}))))
	is 'its length' ${#SOCK} 107
	serves "$SOCK" -- -f store
}

@test "a server that lives is named with its pid and left alone; its clients notice nothing" {
	local i first
	start -f store
	first=$PID
	peer
	eventually grep -q '^0 fd 0' "$HEARD"
	cp "$HEARD" "$WORK/heard"
	for i in 1 2 3; do
		refused "$SOCK" "$first" -p -- -s "$SHM"
		refused "$SOCK" "$first" -p -- -f other -m 1 -a
		refused "$SOCK" "$first" -- -d -f other
	done
	# One that comes now is the next that the client hears of.
	greeting "$SOCK" 5 >"$WORK/greeting"
	eventually grep -q '^1 fd' "$HEARD"
	is 'what the client heard' "$(head -n 5 "$HEARD")" "$(cat "$WORK/heard")"$'\n''1 fd 0'
	is 'joins in the log' "$(grep -c joined "$LOG")" 2
	is 'refusals in the log' "$(grep -c refused "$LOG")" 0
	stop
}

@test "of two servers that have listened on one path, none is blamed for the other" {
	local first
	start -f store
	first=$PID
	kill -STOP "$first" # else it might make its socket again
	rm "$SOCK"
	start -f other
	refused "$SOCK" -- -s "$SHM"
	hasnt "$WORK/err" "process $first"
	kill "$first"
	kill -CONT "$first"
	wait "$first" || true
	refused "$SOCK" "process $PID" -- -s "$SHM"
	stop
}

@test "sockets of others that live are left alone too" {
	local type pid
	for type in SOCK_STREAM SOCK_DGRAM SOCK_SEQPACKET; do
		rm -f sock "$WORK/here"
		: >"$WORK/here"
		perl -MSocket -e '
			socket(my $s, PF_UNIX, eval $ARGV[1], 0) or die; bind($s, pack_sockaddr_un($ARGV[0])) or die;
			$ARGV[1] eq "SOCK_DGRAM" or listen($s, 1) or die; print "here\n"; close STDOUT; sleep 1000' \
			"$SOCK" "$type" >"$WORK/here" 3>&- &
		pid=$!
		PIDS+=("$pid")
		eventually grep -q here "$WORK/here"
		refused "$SOCK" -- -s "$SHM"
		kill "$pid"
		wait "$pid" || true
		serves "$SOCK" -- -s "$SHM" # now it is a stale one
	done
}

@test "a stale socket is replaced" {
	local inode
	start -s "$SHM"
	inode=$(stat -c %i "$SOCK")
	kill -KILL "$PID"
	wait "$PID" || true
	[ -S "$SOCK" ]
	: >keep-the-inode-number-busy
	start -s "$SHM"
	greeting "$SOCK" >"$WORK/greeting"
	is 'the greeting' "$(head -n 2 "$WORK/greeting")" $'0\n0'
	stop
	missing "$SOCK"
	# One that only root may replace is left to root.
	need_root
	need_tool setpriv
	perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => "sock", Listen => 1)'
	cp "$SERVER" "$WORK/tm_ivshmem_server"
	SERVER=$WORK/tm_ivshmem_server
	truncate -s 1M store
	chown "$NOBODY" store
	WRAP=(setpriv "--reuid=$NOBODY" "--regid=$NOBODY" --clear-groups)
	refused "$SOCK" -- -f store
}

@test "a start that fails leaves a stale socket, and a stale pidfile, as they were" {
	need_strace
	local fault
	perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => "sock", Listen => 1)'
	chmod 604 sock
	echo 4194303 >pid
	for fault in bind:error=ENOSPC listen:error=EADDRINUSE chown:error=EIO chmod:error=EPERM \
		pwrite64:error=ENOSPC:when=1 renameat2:error=EACCES:when=1; do
		WRAP=(strace -D -f -o /dev/null -e "trace=${fault%%:*}" "--inject=$fault")
		refused -- -s "$SHM" -i pid -g "$(id -g)"
	done
	WRAP=()
	serves "$SOCK" -- -s "$SHM" -i pid
	is 'what is here' "$(ls)" ''
}

@test "a stale socket is removed for good when the start has succeeded, whatever stands beside it" {
	perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => "sock", Listen => 1)'
	daemonize -s "$SHM"
	is 'what is here' "$(ls)" $'pid\nsock'
	stop_daemon
	# What has the name to which it is moved first is somebody else's.
	perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => "sock", Listen => 1)'
	# shellcheck disable=SC2016 # for the inner shell
	WRAP=(bash -c 'echo precious >"sock.$$"; exec "$@"' bash)
	start -s "$SHM"
	is 'what is here' "$(ls)" "sock"$'\n'"sock.$PID"
	is 'what it says' "$(<"sock.$PID")" precious
	stop
}

@test "two servers started at the same moment on one path: exactly one lives, and its socket works" {
	local round i pids
	for round in {1..20}; do
		[ $((round % 2)) = 0 ] || perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => "sock", Listen => 1)'
		rm -f "/dev/shm/$SHM"* "$WORK"/log?
		pids=()
		for i in 1 2 3; do
			"$SERVER" -p "$SOCK" -s "$SHM-$i" >"$WORK/log$i" 2>&1 3>&- &
			pids+=($!)
		done
		PIDS+=("${pids[@]}")
		eventually at_most_one_alive "${pids[@]}"
		for i in 1 2 3; do
			if alive "${pids[i - 1]}"; then
				PID=${pids[i - 1]} LOG=$WORK/log$i
			else
				has "$WORK/log$i" "$SOCK" running
				missing "/dev/shm/$SHM-$i"
			fi
		done
		ready
		greeting "$SOCK" >"$WORK/greeting"
		is "the greeting in round $round" "$(head -n 2 "$WORK/greeting")" $'0\n0'
		stop
		missing "$SOCK"
	done
}

@test "a server that is slow to replace a stale socket does not take away the next one's" {
	need_strace
	local slow quick slow_log=$LOG
	perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => "sock", Listen => 1)'
	# The first has found that the socket is stale, and takes a while to remove it.
	WRAP=(strace -D -o "$WORK/slow" -e trace=renameat2 "--inject=renameat2:$HELD:when=1")
	launch -s "$SHM"
	slow=$PID
	eventually grep -qs rename "$WORK/slow"
	# The second finds that the first has locked the folder, and then it is stopped.
	WRAP=(strace -D -o "$WORK/trace" -P "$DIR" -e trace=flock --inject=flock:signal=STOP:when=1)
	LOG=$WORK/log2
	launch -s "$SHM-2"
	quick=$PID
	eventually stopped
	has "$WORK/trace" EAGAIN
	let_go "$slow"
	PID=$slow LOG=$slow_log
	ready
	kill -CONT "$quick"
	eventually ended "$quick"
	has "$WORK/log2" "$SOCK belongs to a server that is running" "process $slow"
	greeting "$SOCK" >"$WORK/greeting"
	is 'the greeting' "$(head -n 2 "$WORK/greeting")" $'0\n0'
	stop
	missing "$SOCK"
}

# --- the end

@test "TERM, INT and QUIT end it well, and the socket is gone" {
	local signal
	for signal in TERM INT QUIT; do
		start -f store
		peer
		stop "$signal"
		missing "$SOCK"
		eventually grep -qx end "$HEARD"
		has "$LOG" "$DIR/store stays"
	done
}

@test "signals that were ignored when it was started end it all the same" {
	local signal
	for signal in TERM INT QUIT; do
		WRAP=(perl -e '$SIG{$_} = "IGNORE" for qw(TERM INT QUIT USR1 CHLD PIPE); exec @ARGV')
		start -f store
		stop "$signal"
		missing "$SOCK"
	done
}

# Something else is put in place of the socket.
other_comes() {
	rm "$SOCK"
	echo text >"$SOCK"
}

@test "at the end the socket is removed only if it is still ours" {
	start -s "$SHM"
	unseen other_comes
	stop
	is 'what stands there' "$(cat "$SOCK")" text
	rm "$SOCK"
	# Another server's socket.
	local first first_log=$LOG
	start -s "$SHM"
	first=$PID
	kill -STOP "$first"
	rm "$SOCK"
	LOG=$WORK/log2
	start -s "$SHM-2"
	kill "$first"
	kill -CONT "$first"
	wait "$first"
	hasnt "$first_log" remove
	greeting "$SOCK" >"$WORK/greeting"
	is 'the greeting' "$(head -n 2 "$WORK/greeting")" $'0\n0'
	stop
	missing "$SOCK"
	# None at all.
	start -s "$SHM"
	rm "$SOCK"
	stop
	hasnt "$LOG" remove
}

@test "the folder of the socket gone: the server serves on, and ends well" {
	mkdir folder
	SOCK=$DIR/folder/sock
	start -f store
	peer
	unseen rm -r folder
	stop
	eventually grep -qx end "$HEARD"
	is 'what is here' "$(ls)" store
}

# --- what others do to it while we serve

# A newcomer is served.
newcomer_served() {
	greeting "$SOCK" 4 >"$WORK/greeting" 2>/dev/null
}

@test "a socket that somebody removes is made again, as it was" {
	local before
	start -s "$SHM" -g "$(id -g)"
	before=$(stat -c '%A %U %G' "$SOCK")
	peer
	# Who waits on the old one is served, too.
	kill -s STOP "$PID"
	greeting "$SOCK" 4 >"$WORK/waiting" &
	PIDS+=($!)
	eventually sh -c "[ \$(grep -c ' $SOCK\$' /proc/net/unix) -ge 3 ]"
	rm "$SOCK"
	kill -s CONT "$PID"
	eventually test -S "$SOCK"
	eventually newcomer_served
	is 'mode, owner and group' "$(stat -c '%A %U %G' "$SOCK")" "$before"
	eventually test -s "$WORK/waiting"
	is 'what the one that waited was told first' "$(head -n 1 "$WORK/waiting")" 0
	has "$LOG" 'our socket is gone, making it again' "listening on $SOCK again"
	refused "$SOCK belongs to a server that is running" "process $PID" -- -s "$SHM-2"
	# It is watched again, in the next image of the program as well, and whatever was done to it.
	mv "$SOCK" "$SOCK.old"
	eventually newcomer_served
	kill -s HUP "$PID"
	eventually grep -q 'restarted in place' "$LOG"
	ln -f "$SOCK" hard
	mv -f "$SOCK.old" "$SOCK"
	eventually newcomer_served
	stop
	missing "$SOCK"
}

@test "where something else stands, or there is no folder, it tries until it can make its socket" {
	mkdir folder
	SOCK=$DIR/folder/sock
	start -s "$SHM"
	unseen other_comes
	eventually grep -q 'trying again every second' "$LOG"
	has "$LOG" "$SOCK exists and is not a socket"
	sleep 1.5
	is 'how often it was said' "$(grep -c 'not a socket' "$LOG")" 1
	is 'what stands there' "$(cat "$SOCK")" text
	rm "$SOCK"
	eventually newcomer_served
	unseen rm -r folder
	eventually sh -c "[ \$(grep -c 'trying again' '$LOG') = 2 ]"
	mkdir folder
	eventually newcomer_served
	mv folder elsewhere
	eventually sh -c "[ \$(grep -c 'trying again' '$LOG') = 3 ]"
	mv elsewhere folder
	eventually newcomer_served
	stop
	missing "$SOCK"
}

@test "a socket that cannot be reached any more is made again, however that came" {
	need_root
	local sock pids=()
	mkdir -p moved/a/b linked/first linked/second mounted
	ln -s first linked/here
	for sock in moved/a/b/sock linked/here/sock mounted/sock; do
		SOCK=$DIR/$sock LOG=$WORK/log.${sock%%/*} start -s "$SHM-${sock%%/*}"
		pids+=("$PID")
	done
	mv moved/a moved/away
	mkdir -p moved/a/b
	ln -sfn second linked/here
	mount -t tmpfs tmpfs mounted || skip "no tmpfs can be mounted here"
	for sock in moved/a/b/sock linked/here/sock mounted/sock; do
		SOCK=$DIR/$sock
		eventually newcomer_served
		has "$WORK/log.${sock%%/*}" 'our socket is gone, making it again' "listening on $SOCK again"
	done
	# And again: what was there before stands there now, and nobody listens on it.
	umount -l mounted
	eventually newcomer_served
	kill "${pids[@]}"
	wait "${pids[@]}"
}

@test "a look at the socket that hangs delays nobody, and holds nothing" {
	need_strace
	local looker first tracer
	start -f store
	peer
	strace -f -o "$WORK/trace" -P "$SOCK" -e trace=newfstatat,lstat \
		--inject=newfstatat,lstat:delay_enter=600000000 -p "$PID" 2>/dev/null 3>&- &
	tracer=$!
	PIDS+=("$tracer")
	eventually grep -qs stat "$WORK/trace"
	looker=$(pgrep -P "$PID")
	PIDS+=("$looker")
	is 'what it has open' "$(ls "/proc/$looker/fd")" ''
	first=$HEARD
	peer
	is 'the greeting' "$(head -n 2 "$HEARD")" $'0\n1'
	eventually grep -q '^1 fd' "$first"
	kill "$PEER_PID"
	eventually grep -qx 1 "$first"
	kill "$looker" "$tracer" 2>/dev/null || true
	kill -KILL "$looker" "$tracer" 2>/dev/null || true
	stop
}

@test "without a watch, USR1 and HUP look for the socket" {
	local signal
	need_strace
	WRAP=(strace -D -o /dev/null -e trace=inotify_init1 --inject=inotify_init1:error=EMFILE)
	start -s "$SHM"
	has "$LOG" "cannot watch $SOCK" 'send HUP'
	for signal in USR1 HUP; do
		rm "$SOCK"
		kill -s "$signal" "$PID"
		eventually newcomer_served
	done
	stop
}

@test "a default ACL of the folder lets nobody in" {
	need_root
	need_tool setfacl setpriv
	mkdir folder
	chmod 755 folder
	setfacl -d -m "u:$NOBODY:rwx" folder 2>/dev/null || skip "no ACLs on this file system"
	SOCK=$DIR/folder/sock
	start -f folder/mem -g 0
	hasnt <(getfacl -n folder/sock folder/mem 2>/dev/null) "user:$NOBODY"
	WRAP=(setpriv "--reuid=$NOBODY" "--regid=$NOBODY" --clear-groups)
	try "${WRAP[@]}" perl -e "$PEER" "$SOCK" 1
	has "$WORK/err" 'Permission denied'
	stop
}

@test "a folder that somebody has locked is waited for a second, and then not" {
	need_tool flock
	flock "$DIR" sleep 1000 3>&- &
	PIDS+=($!)
	eventually sh -c "! flock -n '$DIR' true"
	start -s "$SHM"
	has "$LOG" "cannot lock the folder of $SOCK, going on without"
	greeting "$SOCK" >/dev/null
	stop
}

@test "a socket or folder of somebody else: the error says what to do" {
	need_root
	need_tool setpriv
	cp "$SERVER" "$WORK/tm_ivshmem_server"
	SERVER=$WORK/tm_ivshmem_server
	chmod 1777 "$DIR"
	mkdir -m 755 roots
	perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 1)' "$SOCK"
	chmod 777 "$SOCK"
	WRAP=(setpriv "--reuid=$NOBODY" "--regid=$NOBODY" --clear-groups)
	refused "$SOCK" 'belongs to uid 0' 'another path' -- -s "$SHM"
	SOCK=$DIR/roots/sock refused "$DIR/roots/sock" 'a folder that uid' -- -s "$SHM"
	rm "$SOCK"
	echo >roots/mem
	refused roots/mem 'belongs to uid 0' 'start the server as that user' -- -f roots/mem
	refused roots/new 'a folder that uid' -- -f roots/new
}

@test "of a node that was killed before it had read all, the log says that" {
	start -s "$SHM"
	perl -MSocket -e 'socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die;
		connect($s, pack_sockaddr_un($ARGV[0])) or die; sleep 1000' "$SOCK" 3>&- &
	PIDS+=($!)
	all_sent() {
		kill -USR1 "$PID"
		grep -q 'ID 0: .* 0 messages waiting' "$LOG"
	}
	eventually all_sent
	kill "$!"
	eventually grep -q 'ID 0 left' "$LOG"
	has "$LOG" 'ID 0 left: ended before it had read all'
	stop
}
