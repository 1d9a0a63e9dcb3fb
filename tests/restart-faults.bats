#!/usr/bin/env bats
# Restart in place, and all that can go wrong: a flush that is under way, system calls that fail,
# states that nobody can read.
# shellcheck disable=SC2016,SC2030,SC2031,SC2034,SC2059,SC2119,SC2153 # each test is a shell of its own

load lib/restart

# --- flushing

@test "a flush that is under way is waited for by the new image" {
	need_strace
	WRAP=(strace -D -f -o "$WORK/trace" -e trace=fdatasync -e inject=fdatasync:delay_enter=3000000)
	start -f mem
	peer
	served # and left: a flush begins
	eventually pgrep -P "$PID" >/dev/null
	served # another is to follow
	restart
	eventually no_child
	[ "$(grep -c 'fdatasync(' "$WORK/trace")" -ge 2 ]
	hasnt "$LOG" "cannot flush"
	stop
}

@test "a flush that fails is reported by the new image" {
	need_strace
	WRAP=(strace -D -f -o "$WORK/trace" -e trace=fdatasync
		-e inject=fdatasync:error=EIO:delay_enter=3000000)
	start -f mem
	peer
	greeting "$SOCK" 4 >/dev/null
	eventually pgrep -P "$PID" >/dev/null
	hup_until "restarted in place"
	eventually grep -q 'cannot flush' "$LOG"
	eventually no_child
	has "$LOG" "cannot flush $DIR/mem to disk: Input/output error"
	stop
}

@test "a flush that ends between the images leaves no zombie" {
	need_strace
	WRAP=(strace -D -f -o "$WORK/trace" -e trace=fdatasync -e inject=fdatasync:delay_enter=1000000)
	before_original 'if ($purpose eq "resume") {
			my $child = 0 + (/^flusher (\d+)$/m)[0] or exit;
			# It is a zombie now, and so it stays for the next image.
			for (1 .. 1000) {
				open(my $stat, "<", "/proc/$child/stat");
				last if <$stat> =~ /\) Z/;
				select(undef, undef, undef, 0.05);
			}
		}'
	mv "$PROGRAM" "$WORK/slow"
	cp "$ORIGINAL" "$PROGRAM"
	start -f mem
	replace "$WORK/slow"
	peer
	greeting "$SOCK" 4 >/dev/null
	eventually pgrep -P "$PID" >/dev/null
	hup_until "restarted in place"
	eventually no_child
	hasnt "$LOG" "cannot flush"
	served
	stop
}

# --- system calls that fail

@test "where the state cannot be saved or the program not be executed, the server goes on" {
	local what
	need_strace
	start -f mem
	peer
	for what in memfd_create:error=EMFILE fcntl:error=EMFILE:when=1 write:error=ENOSPC:when=1 \
		lseek:error=EIO; do
		inject "$what"
		no_restart "cannot save the state"
		inject_end
		restart
	done
	inject clone:error=EAGAIN
	no_restart "cannot start a process" "temporarily unavailable"
	inject_end
	restart
	# The child succeeds, and then the server does not.
	inject execve:error=ENOMEM
	no_restart "cannot execute $PROGRAM, going on without a restart: Cannot allocate memory"
	inject_end
	restart
	inject memfd_create:error=ENFILE:when=2
	no_restart "cannot save the state" "Too many open files in system"
	inject_end
	restart
	stop
}

@test "a state of which only a part could be saved is not used" {
	local i
	need_strace
	start -f mem -n 500
	for i in 1 2 3; do
		peer
	done
	# The first write fails, and those after it do not.
	inject write:error=ENOSPC:when=1
	hup_until "going on without"
	inject_end
	has "$LOG" "cannot save the state" "No space left on device"
	is restarts "$(times_logged "restarted in place")" 0
	hup_until "restarted in place, version $VERSION, 3 nodes"
	stop
}

@test "a supervisor is told that the program could not be executed" {
	need_strace
	supervise
	start -f mem
	peer
	inject execve:error=ENOMEM
	no_restart "cannot execute $PROGRAM"
	inject_end
	stop
	supervised "READY=1" "RELOADING=1" "READY=1" "STOPPING=1"
}

# --- states that make no sense

# The child could read the state, and then the server cannot: all that is left is to say why.
@test "a state that only the new image cannot read ends the server" {
	local status=0
	start -f mem
	peer
	before_original 's/^joins .*/joins x/m if $purpose eq "resume"'
	kill -s HUP "$PID"
	wait "$PID" || status=$?
	is "status of the server" "$status" 1
	has "$LOG" "cannot take over: line" "of the state is wrong: joins"
}

# The state of a server of one vector, and 301 peers, of whom most do not read.
state_capture() { # FILE
	before_original "open(my \$out, '>', '$1') or die; print \$out \$_; close \$out;"
	mv "$PROGRAM" "$WORK/capture"
	cp "$ORIGINAL" "$PROGRAM"
	start -f mem
	peer
	served
	perl -MSocket -e 'for my $i (1 .. 300) {
			socket($s[$i], PF_UNIX, SOCK_STREAM, 0) or die;
			connect($s[$i], pack_sockaddr_un($ARGV[0])) or die;
		}
		sleep 1000' "$SOCK" 3>&- &
	PIDS+=("$!")
	eventually grep -q 'ID 301 joined' "$LOG"
	replace "$WORK/capture"
	hup_until "restarted in place"
	grep -q '^retired 1 ' "$1"
	grep -q '^peer 2 [0-9]* [0-9]* [0-9]* 1 [0-9]* 2[0-9] 2' "$1"
}

# Whether a state would be taken over: status 86, or 1 and a line that says why.
check() { # FILE
	STATUS=0
	TM_IVSHMEM_SERVER_STATE="check 9 0" "$ORIGINAL" -f "$DIR/mem" 9<"$1" >"$WORK/out" 2>"$WORK/err" 3>&- ||
		STATUS=$?
}

# Ten lines that each state has, before what is tried.
FIELDS='listener 5\nsocket_dev 2\nsocket_ino 3\nstore 3\nlock 4\nsize 1048576\npidfile -1\nflusher 0\nflush_again 0\njoins 9\n'

wrong_line() { # NUMBER TEXT
	printf "$FIELDS$2" >"$WORK/state"
	check "$WORK/state"
	is "status for: $2: $(<"$WORK/err")" "$STATUS" 1
	[[ $(<"$WORK/err") == *": cannot take over: line $((10 + $1)) of the state is wrong: "+([a-z_]) ]] ||
		no "for: $2:" "$(<"$WORK/err")"
}

right() { # TEXT
	printf "$FIELDS$1" >"$WORK/state"
	check "$WORK/state"
	is "status for: $1" "$STATUS" 86
	is "what it said to: $1" "$(<"$WORK/err")" ''
}

@test "a state that makes no sense is refused with the number of its line" {
	local word number
	local peer='peer 0 1 5 20 1 1024 0\n'
	right ''
	right "${peer}peer 2 3 5 21 1 1025 2 0 1024 2 1025\n"
	right "unknown\n\nunknown word 1 2 3\n \nlistener 5\n${peer}"
	for word in listener socket_dev socket_ino store lock size pidfile flusher flush_again joins; do
		for number in '' ' ' ' x' ' -' ' 99999999999999999999' ' -99999999999999999999'; do
			wrong_line 1 "$word$number\n"
			wrong_line 2 "\n$word$number"
		done
	done
	for word in listener store lock pidfile flusher flush_again; do
		wrong_line 1 "$word 2147483648\n"
		wrong_line 1 "$word -2\n"
	done
	for number in '' 'x' '1' '-1 5' '65536 5' '5 -1' '5 99999999999999999999' '5 x'; do
		wrong_line 1 "retired $number\n"
	done
	for number in '' 0 '0 1' '0 1 5' '0 1 5 20' '0 1 5 20 1' '0 1 5 20 1 1024' '0 1 5 20 1 1024 1' \
		'0 1 5 20 1 1024 1 0' '0 1 5 20 1 1024 2 0 1024' '0 1 5 20 1 1024 2147483647 0 1024' \
		'0 1 5 20 1 1024 99999999999 0 1024' '-1 1 5 20 1 1024 0' '65536 1 5 20 1 1024 0' \
		'0 0 5 20 1 1024 0' '0 1 -5 20 1 1024 0' '0 1 5 -1 1 1024 0' '0 1 5 1024 1 1024 0' \
		'0 1 5 99999 1 1024 0' '0 1 5 20 0 0' '0 1 5 20 2 1024 1025 0' '0 1 5 20 1 -1 0' \
		'0 1 5 20 1 1024 -1' '0 1 5 20 1 1024 1 -2 5' '0 1 5 20 1 1024 1 65536 5' \
		'0 1 5 20 1 1024 1 0 -2' '0 1 5 20 1 2147483648 0'; do
		wrong_line 1 "peer $number\n"
		wrong_line 1 "peer $number"
	done
	printf "$FIELDS" | sed 1d >"$WORK/state"
	check "$WORK/state"
	is "status without a socket" "$STATUS" 1
	has "$WORK/err" "the state, of 9 lines, names no socket"
	: >"$WORK/state"
	check "$WORK/state"
	is "status without a line" "$STATUS" 1
	check "$DIR"
	is "status of a folder" "$STATUS" 1
	TM_IVSHMEM_SERVER_STATE="check 999 0" try "$ORIGINAL" -f mem
	is "status without a state" "$STATUS" 1
	hasnt "$WORK/err" "connect a node"
}

@test "a state that names a peer twice, or peers in another order, is refused" {
	wrong_line 2 'peer 0 1 5 20 1 1024 0\npeer 0 2 5 21 1 1025 0\n'
	wrong_line 2 'peer 0 2 5 20 1 1024 0\npeer 1 1 5 21 1 1025 0\n'
	wrong_line 2 'peer 0 2 5 20 1 1024 0\npeer 1 2 5 21 1 1025 0\n'
}

@test "inodes have 64 bits" {
	right "socket_dev 9223372036854775807\nsocket_ino -1\n"
}

@test "more peers than fit are refused" {
	printf "$FIELDS" >"$WORK/state"
	perl -e 'print "peer $_ ", $_ + 1, " 5 20 1 1024 0\n" for 0 .. 1023' >>"$WORK/state"
	check "$WORK/state"
	is "status" "$STATUS" 86
	echo 'peer 2000 2000 5 20 1 1024 0' >>"$WORK/state"
	check "$WORK/state"
	is "status" "$STATUS" 1
	has "$WORK/err" "line 1035 of the state is wrong"
}

@test "no state makes the program crash" {
	local rounds=500
	if grep -q __asan_ "$ORIGINAL"; then
		rounds=50
	fi
	state_capture "$WORK/state"
	check "$WORK/state"
	is "status of a real state: $(cat "$WORK/err")" "$STATUS" 86
	# shellcheck disable=SC2016
	perl -e '
		use strict; use warnings; use POSIX ();
		my ($state, $program, $work, $rounds, $seed) = @ARGV;
		my @extremes = qw(-1 0 1 1023 1024 65535 65536 2147483647 2147483648 -2147483648
			9223372036854775807 9223372036854775808 18446744073709551615 1e9 0x10 +1);
		my %seen;
		$^F = 9;
		srand $seed;
		print "# SEED=$seed\n";
		open(my $file, "<", $state) or die; { local $/; $state = <$file>; }
		for my $round (1 .. $rounds) {
			my $text = $state;
			for (0 .. int rand 3) {
				my @lines = split /(?<=\n)/, $text;
				my $line = int rand @lines;
				my $at = int rand length $text;
				my $how = int rand 9;
				if ($how == 0) { $text = substr $text, 0, $at }
				elsif ($how == 1) { substr($text, $at, 1 + int rand 20) = "" }
				elsif ($how == 2) { substr($text, $at, 1) = substr "0123456789- \nabp\0\xff", int rand 18, 1 }
				elsif ($how == 3) { splice @lines, $line, 1; $text = join "", @lines }
				elsif ($how == 4) { splice @lines, $line, 0, $lines[rand @lines]; $text = join "", @lines }
				elsif ($how == 5) { $text = join "", sort { rand() <=> 0.5 } @lines }
				else {
					my @words = split /(?<= )/, $lines[$line];
					$words[rand @words] = $extremes[rand @extremes] . ($how == 6 ? " " : "\n");
					$lines[$line] = join "", @words;
					$text = join "", @lines;
				}
				last if $text eq "";
			}
			open(my $out, ">", "$work/mutant") or die; print $out $text; close $out or die;
			my $pid = fork;
			if ($pid == 0) {
				open(my $in, "<", "$work/mutant") or die;
				POSIX::dup2(fileno $in, 9);
				open(STDERR, ">", "$work/mutant.err") or die;
				$ENV{TM_IVSHMEM_SERVER_STATE} = "check 9 0";
				exec $program, "-f", "$work/d/mem";
			}
			waitpid $pid, 0;
			open(my $err, "<", "$work/mutant.err") or die;
			my $said = do { local $/; <$err> } // "";
			$seen{$?}++;
			next if $? == 86 << 8 && $said eq "";
			next if $? == 1 << 8 && $said =~ /^\S+: cannot take over: .*(line \d+|\d+ lines).*\n\z/;
			print "round $round: status $?, $said\n";
			exit 1;
		}
		print "# status $_: $seen{$_} times\n" for sort keys %seen;
		exit(keys %seen == 2 ? 0 : 1);
	' "$WORK/state" "$ORIGINAL" "$WORK" "$rounds" "${SEED:-$RANDOM}"
	stop
}
